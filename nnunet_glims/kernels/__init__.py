"""The operations that GLIMS spends most of its time in, each as a plain formula and as faster kernels.

`ops` has the operations as the networks call them and chooses the implementation:

- on CPUs the C kernels (`cpu`), in float32 and, without gradients, in bfloat16. They are compiled on first use
  (`compiled`), where there is a C compiler;
- on CUDA devices the Triton kernels (`gpu`) in float32, float16 and bfloat16, where Triton can be imported;
- otherwise the formulas (`formulas`) in plain PyTorch.

The environment variable NNUNET_GLIMS_KERNELS=eager always selects the formulas, =triton requires the Triton kernels,
and =auto, the default, chooses as above.
"""
