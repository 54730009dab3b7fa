"""Constants that are nnU-Net's or the trainers': these tests fail when they change there."""

import inspect
import re

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_glims.experiments import estimate
from nnunet_glims.experiments.executors import step
from nnunet_glims.trainers import stop_signals


def test_the_length_of_nnunets_own_training():
    source = inspect.getsource(nnUNetTrainer.__init__)
    found = [
        int(re.search(rf"self.{name} = (\d+)", source)[1])
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
    ]
    assert tuple(found) == estimate.NNUNET_STEPS


def test_a_stopped_training_is_known_by_the_trainers_exit_code():
    assert step.STOPPED == stop_signals.EXIT_STOPPED
