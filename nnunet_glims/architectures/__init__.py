"""The networks, as PyTorch modules that need no nnU-Net. nnU-Net can build each of them from the arguments in a plans file."""

from nnunet_glims.architectures.glims import GLIMS
from nnunet_glims.architectures.latupnet import LATUPNet
from nnunet_glims.architectures.swin_unetr import SwinUNETR

__all__ = ["GLIMS", "LATUPNet", "SwinUNETR"]
