import pytest

from nnunet_glims.nnunet.discovery import OPT_OUT, VARIABLE

from . import (
    GLIMS,
    assert_same_prediction,
    model_folder,
    prediction_command,
    run_command,
    train,
    training_command,
)

pytestmark = pytest.mark.slow

OWN_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerOfTheirOwn(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1
        self.num_iterations_per_epoch = 1
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities=False):
        pass  # whose two workers would import nnU-Net, each
"""


@pytest.fixture(scope="module")
def own_trainers(tmp_path_factory):
    """A folder of a user's own, as nnU-Net's documentation has it."""
    folder = tmp_path_factory.mktemp("own_trainers")
    (folder / "their_trainer.py").write_text(OWN_TRAINER)
    return folder


def test_a_users_own_trainer_is_found_beside_ours(folders, own_trainers, tmp_path):
    environment = {**folders, "nnUNet_results": tmp_path, VARIABLE: own_trainers}
    run_command(*training_command(0, trainer="nnUNetTrainerOfTheirOwn", plans="nnUNetPlans"), **environment)
    model = model_folder(environment, "nnUNetTrainerOfTheirOwn", "nnUNetPlans")
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()


def test_ours_are_found_beside_a_users_own(fold_0, own_trainers, prediction, tmp_path):
    run_command(
        *prediction_command(tmp_path, fold_0["nnUNet_raw"], "-npp", 1, "-nps", 1), **fold_0, **{VARIABLE: own_trainers}
    )
    assert_same_prediction(tmp_path, prediction)


def test_who_opted_out_has_stock_nnunet(folders, tiny_plans):
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {GLIMS}"):
        train(0, **folders, **{OPT_OUT: "1"})
