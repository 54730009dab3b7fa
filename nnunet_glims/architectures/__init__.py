"""The networks: torch in, torch out, no nnU-Net. Every constructor follows the contract of nnU-Net's plans files."""

from nnunet_glims.architectures.glims import GLIMS
from nnunet_glims.architectures.latupnet import LATUPNet
from nnunet_glims.architectures.swin_unetr import SwinUNETR

__all__ = ["GLIMS", "LATUPNet", "SwinUNETR"]
