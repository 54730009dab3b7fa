"""Light 3D segmentation networks for nnU-Net v2: GLIMS, LATUP-Net, and Swin UNETR to compare them with.

Importing this package is cheap on purpose (it happens at every interpreter start, see `discovery`): networks live in
`nnunet_glims.architectures`, trainers in `nnunet_glims.trainers`.
"""

__version__ = "0.1.0"
