"""Which precision networks compute in, and that nothing but settings decides it."""

import subprocess
import sys

import pytest
import torch

from nnunet_glims.architectures import LATUPNet
from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.plans.memory import in_half_precision
from nnunet_glims.training import precision
from nnunet_glims.training.precision import chosen, explain_choice, resolve
from nnunet_glims.training.recipes import PRECISION_VARIABLE, Recipe


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(PRECISION_VARIABLE, raising=False)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return LATUPNet(1, 2, features=(16, 16, 16)).eval()


def logits(network, x, setting):
    network.precision = setting
    with torch.no_grad():
        return network(x)


def test_auto_is_float32_on_cpus_and_bf16_is_asked_for(network):
    x = torch.randn(1, 1, 16, 16, 16)
    exact = logits(network, x, "fp32")
    assert torch.equal(logits(network, x, "auto"), exact)
    reduced = logits(network, x, "bf16")
    assert not torch.equal(reduced, exact)
    assert (reduced - exact).abs().mean() < 0.1 * exact.std()


@pytest.mark.parametrize("setting", ["auto", "bf16"])
def test_a_first_patch_of_air_changes_nothing_afterwards(network, setting):
    patch, air = torch.randn(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    alone = logits(network, patch, setting)
    torch.manual_seed(0)
    other = LATUPNet(1, 2, features=(16, 16, 16)).eval()
    logits(other, air, setting)
    assert torch.equal(logits(other, patch, setting), alone)
    # Neither do other weights that were there before, as between the folds of an ensemble.
    other.load_state_dict(LATUPNet(1, 2, features=(16, 16, 16)).state_dict())
    logits(other, patch, setting)
    other.load_state_dict(network.state_dict())
    assert torch.equal(logits(other, patch, setting), alone)


@pytest.mark.parametrize(
    ("setting", "has_bf16", "expected"),
    [("auto", True, "bf16"), ("auto", False, "fp16"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)
def test_on_gpus_auto_is_what_the_hardware_computes(setting, has_bf16, expected, monkeypatch):
    monkeypatch.setattr(precision, "_gpu_computes_bf16", lambda: has_bf16)
    assert resolve(setting, "cuda") == expected
    assert resolve("auto", "cpu") == "fp32"


def test_the_variable_wins_over_the_plans(monkeypatch):
    assert chosen("fp32") == "fp32"
    assert explain_choice(chosen("auto"), "cpu") == "fp32 on cpu (auto)"
    monkeypatch.setenv(PRECISION_VARIABLE, "bf16")
    assert chosen("fp32") == "bf16"
    assert explain_choice(chosen("fp32"), "cpu") == "bf16 on cpu (NNUNET_GLIMS_PRECISION=bf16)"


def test_the_memory_count_asks_the_same_rule(monkeypatch):
    assert in_half_precision(Recipe(), "cuda") and not in_half_precision(Recipe(), "cpu")
    monkeypatch.setenv(PRECISION_VARIABLE, "bf16")
    assert in_half_precision(Recipe(precision="fp32"), "cpu")
    monkeypatch.setenv(PRECISION_VARIABLE, "fp32")
    assert not in_half_precision(Recipe(), "cuda")


def test_unknown_settings_are_refused_with_the_choices(network, monkeypatch):
    with pytest.raises(UsageError, match="precision 'half' is unknown: choose auto, fp32, bf16 or fp16"):
        logits(network, torch.zeros(1, 1, 16, 16, 16), "half")
    monkeypatch.setenv(PRECISION_VARIABLE, "float32")
    with pytest.raises(UsageError, match="NNUNET_GLIMS_PRECISION=float32 is unknown: choose auto, fp32, bf16 or fp16"):
        chosen("fp32")


WITHOUT_CUDA = """
import torch

def refuse(*arguments, **options):
    raise AssertionError("CUDA was asked")

for name in ("is_available", "is_initialized", "device_count", "is_bf16_supported", "get_device_capability",
             "get_device_properties", "current_device", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
torch._C._cuda_getDeviceCount = refuse

import nnunet_glims.nnunet.plans.memory, nnunet_glims.trainers
from nnunet_glims.architectures import LATUPNet, SwinUNETR
network = LATUPNet(1, 2, features=(16, 16, 16)).eval()
network.precision = "auto"
network(torch.zeros(1, 1, 16, 16, 16))
"""


@pytest.mark.slow
def test_cuda_is_not_asked_by_imports_or_by_a_prediction_on_the_cpu():
    subprocess.run([sys.executable, "-c", WITHOUT_CUDA], check=True)
