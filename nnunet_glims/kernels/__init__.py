"""The operations that GLIMS spends its time in, each with one plain formula and faster kernels that compute the same.

`ops.branches` and `ops.norm_act` choose: the C kernels for float32 on CPUs, compiled on first use where there is a C
compiler; the Triton kernels on CUDA devices where there is Triton, in float32, float16 and bfloat16; else the formulas in
`formulas`. NNUNET_GLIMS_KERNELS=eager keeps to the formulas, =triton asks for the Triton kernels, =auto is the default.
"""
