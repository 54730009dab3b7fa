"""nnU-Net trainers of the light networks; these are the names to give to `-tr`."""

from nnunet_glims.trainers.glims import nnUNetTrainerGLIMS, nnUNetTrainerGLIMSReleased
from nnunet_glims.trainers.latupnet import nnUNetTrainerLATUPNet
from nnunet_glims.trainers.swin_unetr import nnUNetTrainerSwinUNETR

__all__ = ["nnUNetTrainerGLIMS", "nnUNetTrainerGLIMSReleased", "nnUNetTrainerLATUPNet", "nnUNetTrainerSwinUNETR"]
