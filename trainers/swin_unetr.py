"""Trainer of Swin UNETR (arXiv 2201.01266)."""

from nnunet_glims.networks import trained_by
from nnunet_glims.trainers.recipe_trainer import RecipeTrainer


class nnUNetTrainerSwinUNETR(RecipeTrainer):
    """MONAI's Swin UNETR; needs `pip install nnunet-glims[swinunetr]`."""

    light_network, light_network_arguments = trained_by("nnUNetTrainerSwinUNETR")
