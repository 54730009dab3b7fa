"""The counted memory of a training step against what steps really take."""

import pytest
import torch
from torch import nn

from nnunet_glims.architectures import GLIMS, LATUPNet
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.plans.memory import nnunet_loss, training_step
from nnunet_glims.training.recipes import Recipe

PATCH = (32, 32, 48)
GLIMS_OPTIONS = {"feature_size": 12, "num_heads": [3] * 5, "depths": [1] * 5}
FLOAT32 = Recipe(precision="fp32")


def glims(**options):
    return GLIMS(2, 3, PATCH, **GLIMS_OPTIONS, **options)


def latupnet(**options):
    return LATUPNet(2, 3, PATCH, features=(16, 16, 32), deep_supervision=True, **options)


def allocated_in_a_step(network):
    """Bytes of the weights and of all that a real step allocates at most, by torch's profiler."""
    x = torch.randn(2, 2, *PATCH)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        x = x + 1  # the batch counts
        nnunet_loss(network(x), regions=False).backward()
    now = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


@pytest.mark.parametrize("build", [glims, latupnet])
def test_what_is_counted_is_what_a_step_allocates_on_a_cpu(build, monkeypatch):
    monkeypatch.setattr("nnunet_glims.architectures.layers.Recomputing.worthwhile", 2**15)
    monkeypatch.setenv("NNUNET_GLIMS_KEEP_MEMORY", "0")
    counted = training_step(build(), PATCH, 2, FLOAT32, "cpu")
    assert counted.overhead == 0
    measured = allocated_in_a_step(build())
    assert counted.total - counted.moments == pytest.approx(measured, rel=0.2)  # convolutions have buffers of their own


def test_moments_are_those_of_the_optimiser():
    weights = sum(weight.nbytes for weight in latupnet().parameters())
    assert training_step(latupnet(), PATCH, 1, FLOAT32, "cpu").moments == 2 * weights
    assert training_step(latupnet(), PATCH, 1, Recipe(optimizer="SGD"), "cpu").moments == weights


def test_half_precision_halves_what_convolutions_keep():
    full = training_step(latupnet(), PATCH, 2, FLOAT32, "cuda")
    half = training_step(latupnet(), PATCH, 2, Recipe(precision="fp16"), "cuda")
    assert training_step(latupnet(), PATCH, 2, Recipe(), "cuda") == half  # "auto" on a GPU
    assert training_step(latupnet(), PATCH, 2, Recipe(), "cpu").kept == full.kept
    assert 0.5 < half.kept / full.kept < 0.75  # the loss and the norms stay in float32


def test_autocast_is_imitated_as_torch_does_it_where_rules_agree():
    """Convolutions, PReLU and linear layers are cast on CPUs as on GPUs; there the same tensors are kept for real."""

    class Small(nn.Module):
        input_channels = 2
        decoder = nn.Module()

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv3d(2, 32, 3, padding=1), nn.PReLU(), nn.Conv3d(32, 3, 1), nn.PReLU())

        def forward(self, x):
            return self.layers(x).float()

    counted = training_step(Small(), PATCH, 1, Recipe(precision="bf16"), "cpu")
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    network = Small()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: None), torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(1, 2, *PATCH))
        loss = nnunet_loss([out], regions=False)
    of_weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    bytes_kept = sum(storage.nbytes() for address, storage in kept.items() if address not in of_weights)
    assert loss.requires_grad
    assert counted.kept == pytest.approx(bytes_kept, rel=0.1)


def test_more_is_recomputed_less_is_held():
    def held(setting, kernels):
        with torch.device("meta"):
            network = GLIMS(1, 2, (64, 64, 64), depths=[1] * 5, checkpointing=setting)
        return training_step(network, (64, 64, 64), 2, network_named("GLIMS").recipe, "cuda", kernels=kernels).total

    none, aggregators = (held(setting, False) for setting in ("none", "aggregators"))
    assert none > 1.5 * aggregators
    assert held("aggregators", True) < 0.9 * aggregators


def test_regions_are_counted_with_their_loss():
    labels, regions = (training_step(latupnet(), PATCH, 1, FLOAT32, "cpu", regions=of) for of in (False, True))
    assert labels.weights == regions.weights and labels.kept != regions.kept
