"""The precision that networks choose by themselves on CPUs."""

import pytest
import torch

from nnunet_glims.architectures import LATUPNet, base
from nnunet_glims.training.precision import labels_alike


@pytest.fixture
def network(monkeypatch):
    torch.manual_seed(0)
    network = LATUPNet(1, 2, features=(16, 16, 16)).eval()
    monkeypatch.setattr(base, "cpu_has_bf16", lambda: True)
    return network


@pytest.fixture
def outputs(network):
    """The network's logits of one patch in each precision."""
    x, found = torch.randn(1, 1, 16, 16, 16), {}
    with torch.no_grad():
        for network.precision in ("fp32", "bf16"):
            found[network.precision] = network(x)
    network.precision = "auto"
    assert not torch.equal(found["fp32"], found["bf16"])
    return x, found


@pytest.mark.parametrize(("alike", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_first_patch_decides(network, outputs, alike, precision, monkeypatch):
    x, expected = outputs
    asked = []
    monkeypatch.setattr(base, "labels_alike", lambda *logits: asked.append(logits) or alike)
    with torch.no_grad():
        assert all(torch.equal(network(x), expected[precision]) for _ in range(2))
    assert len(asked) == 1


@pytest.mark.parametrize("where", ["with gradients", "in training", "by the processor", "as said"])
def test_elsewhere_it_stays_float32(network, outputs, where, monkeypatch):
    x, expected = outputs
    monkeypatch.setattr(base, "labels_alike", lambda *logits: True)
    network.train(where == "in training")
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    if where == "by the processor":
        monkeypatch.setattr(base, "cpu_has_bf16", lambda: False)
    network.precision = "fp32" if where == "as said" else "auto"
    with torch.set_grad_enabled(where == "with gradients"):
        assert torch.equal(network(x), expected["fp32"])


@pytest.mark.parametrize(("share", "alike"), [(0.0, True), (0.0009, True), (0.0011, False)])
@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_labels_may_differ_in_a_thousandth_of_the_voxels(share, alike, regions):
    voxels, classes = 10**4, 3
    exact = torch.tensor([-1.0, 0.0, 1.0]).view(1, classes, 1, 1, 1).repeat(1, 1, voxels, 1, 1)
    changed = exact.clone()
    if regions:  # another sign, and the largest logit as before; each region has voxels of its own
        changed[:, 1, : round(share * classes * voxels)] = 0.5
    else:
        changed[:, 0, : round(share * voxels)] = 2.0
    assert labels_alike(exact, changed) is alike
