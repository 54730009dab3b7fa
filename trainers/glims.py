"""Trainers of GLIMS (arXiv 2404.17854)."""

from nnunet_glims.networks import trained_by
from nnunet_glims.trainers.recipe_trainer import RecipeTrainer


class nnUNetTrainerGLIMS(RecipeTrainer):
    """GLIMS as its paper describes it, on any 3D patch that nnU-Net plans."""

    light_network, light_network_arguments = trained_by("nnUNetTrainerGLIMS")


class nnUNetTrainerGLIMSReleased(nnUNetTrainerGLIMS):
    """GLIMS as its authors released it; for 96³ patches only (plans override glims_released_brats)."""

    light_network, light_network_arguments = trained_by("nnUNetTrainerGLIMSReleased")
