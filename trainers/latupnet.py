"""Trainer of LATUP-Net (arXiv 2404.05911)."""

from nnunet_glims.networks import trained_by
from nnunet_glims.trainers.recipe_trainer import RecipeTrainer


class nnUNetTrainerLATUPNet(RecipeTrainer):
    """LATUP-Net with SE attention, on any 3D patch that nnU-Net plans."""

    light_network, light_network_arguments = trained_by("nnUNetTrainerLATUPNet")
