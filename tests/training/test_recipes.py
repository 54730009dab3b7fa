import math

import pytest
import torch

from nnunet_glims.errors import UsageError
from nnunet_glims.training import recipes
from nnunet_glims.training.recipes import Recipe


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)),
        ("poly", lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9)),
        ("constant", lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)),
    ],
)
def test_schedules_equal_torchs(schedule, reference):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = reference(optimizer)
    recipe = Recipe(schedule=schedule, epochs=20)
    for epoch in range(20):
        assert recipe.lr_factor(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_to_the_full_rate_and_the_schedule_takes_the_rest():
    recipe = Recipe(schedule="cosine", epochs=10, warmup_epochs=4)
    assert [recipe.lr_factor(epoch) for epoch in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert recipe.lr_factor(7) == pytest.approx(0.5)


def test_head_weights_halve_and_sum_to_one():
    # The authors' 1, 1/2, 1/4, 1/8 divided by 1.875.
    assert Recipe().head_weights(4) == [w / 1.875 for w in (1, 0.5, 0.25, 0.125)]
    assert Recipe(deep_supervision_weights=[3, 1]).head_weights(2) == [0.75, 0.25]
    with pytest.raises(ValueError, match="must be 4 numbers"):
        Recipe(deep_supervision_weights=[3, 1]).head_weights(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1}, "plans: learning_rate: unknown key"),
        ({"iteration_per_epoch": 1}, "unknown key; did you mean 'iterations_per_epoch'"),
        ({"lr": 0}, r"plans: lr: .*(1e-12|0\.000000000001)"),
        ({"lr": math.inf}, "plans: lr: .*(finite|10)"),
        ({"lr": 1e30}, r"plans: lr: .*\b10\b.*1e\+30"),
        ({"weight_decay": 1e300}, r"plans: weight_decay: .*\b1\b.*1e\+300"),
        ({"momentum": 1}, r"plans: momentum: .*0\.9999"),
        ({"epochs": 10**9}, r"plans: epochs: .*100000\b.*1000000000"),
        ({"epochs": True}, "plans: epochs: a (whole )?number.* is wanted, not true"),
        ({"iterations_per_epoch": 10**9}, r"plans: iterations_per_epoch: .*100000\b"),
        ({"gradient_clip": 1e-300}, r"plans: gradient_clip: .*(1e-06|0\.000001)"),
        ({"deep_supervision_weights": [1, 1e300]}, r"plans: deep_supervision_weights.1: .*1000\b"),
        ({"region_weights": [{"labels": [1], "weight": 1e300}]}, r"plans: region_weights.0.weight: .*1000\b"),
        ({"lr": "fast"}, r"plans: lr: a number is wanted, not the text .fast."),
        ({"optimizer": "adam"}, r"plans: optimizer: .*'AdamW', 'Adam' or 'SGD' is wanted, not the text \"adam\""),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs 5 must be fewer than the 5 epochs"),
        ({"deep_supervision_weights": [0, 0]}, "must not all be 0"),
        ({"region_weights": [{"labels": [1]}]}, r"plans: region_weights.0.weight: this key is required"),
        ({"epochs": 0, "lr": -1}, "(?s)plans: epochs.*plans: lr"),
    ],
)
def test_wrong_settings_are_all_named_with_key_and_value(settings, message):
    with pytest.raises(UsageError, match=message):
        Recipe().changed(settings, "plans")


def test_the_default_recipes_are_the_papers():
    assert (recipes.GLIMS.optimizer, recipes.GLIMS.lr, recipes.GLIMS.weight_decay) == ("AdamW", 1e-3, 1e-5)
    assert (recipes.LATUPNET.optimizer, recipes.LATUPNET.lr, recipes.LATUPNET.schedule) == ("Adam", 1e-4, "constant")
