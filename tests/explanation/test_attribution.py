"""Maps of single patches against values computed in other ways."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_glims import architectures
from nnunet_glims.architectures.gates import SkipGate
from nnunet_glims.architectures.latupnet_attention import ATTENTION
from nnunet_glims.explanation.attribution import (
    grad_cam,
    guided_gradients,
    layers_of,
    logits_and_gates,
    make_differentiable,
)
from tests.preprocessed import TINY


class Two(nn.Module):
    """Two 1³ convolutions with a leaky ReLU in place between them, so that every number can be computed by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv3d(2, 3, 1), nn.LeakyReLU(0.1, inplace=True))
        self.head = nn.Conv3d(3, 2, 1)

    def forward(self, x):
        return self.head(self.first(x))


@pytest.fixture
def two():
    network = Two()
    make_differentiable(network)
    return network


PATCH = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 3, 4, 5)).astype(np.float32))
WEIGHTS = torch.from_numpy((np.random.default_rng(1).random((2, 3, 4, 5)) > 0.5).astype(np.float32))


def activations(two):
    kernel, bias = two.first[0].weight.flatten(1).numpy(), two.first[0].bias.numpy()
    linear = np.einsum("kc,cdhw->kdhw", kernel, PATCH[0].numpy()) + bias[:, None, None, None]
    return linear, np.where(linear > 0, linear, 0.1 * linear)


def test_grad_cam_is_what_its_formula_gives(two):
    features = activations(two)[1]
    head = two.head.weight.flatten(1).numpy()
    (found,) = grad_cam(two, PATCH, ["first"], [1, 0], WEIGHTS).numpy()
    for place, output in enumerate((1, 0)):
        importance = head[output] * WEIGHTS[place].mean().item()
        expected = np.maximum(np.einsum("k,kdhw->dhw", importance, features), 0)
        assert expected.any()
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-6)


def test_guided_gradients_are_what_their_formula_gives(two):
    linear = activations(two)[0]
    kernel, head = two.first[0].weight.flatten(1).numpy(), two.head.weight.flatten(1).numpy()
    found = guided_gradients(two, PATCH, [0, 1], WEIGHTS).numpy()
    for output in (0, 1):
        passed = np.maximum(head[output], 0)[:, None, None, None] * (linear > 0) * WEIGHTS[output].numpy()
        expected = np.abs(np.einsum("kc,kdhw->cdhw", kernel, passed)).sum(0)
        np.testing.assert_allclose(found[output], expected, rtol=1e-4, atol=1e-6)


def test_an_output_without_weights_has_no_map(two):
    weights = torch.stack([WEIGHTS[0], torch.zeros_like(WEIGHTS[0])])
    found = grad_cam(two, PATCH, ["first"], [0, 1], weights)[0]
    assert found[0].any()
    assert not found[1].any()


def build(name):
    torch.manual_seed(1)
    network = getattr(architectures, name)(1, 2, patch_size=(32, 32, 32), deep_supervision=False, **TINY[name])
    make_differentiable(network)
    return network


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("GLIMS", ["encoder.stem", "encoder.stages.0", "encoder.swin_c", "decoder.gates.4", "decoder.stages.0"]),
        ("LATUPNet", ["encoder.first", "encoder.stages.1", "encoder.bottleneck", "decoder.stages.0"]),
        ("SwinUNETR", ["decoder.network.swinViT", "decoder.network.encoder10", "decoder.network.decoder1"]),
    ],
)
def test_layers_are_stages_with_feature_maps(name, layers):
    if name == "SwinUNETR":
        pytest.importorskip("monai")
    size = 64 if name == "SwinUNETR" else 32  # which pads 32
    found = layers_of(build(name), torch.zeros(1, 1, size, size, size))
    assert [layer for layer in layers if layer not in found] == []
    for features in found.values():
        assert all(size % length == 0 for length in features.shape[2:])
    assert not any("seg_layers" in layer for layer in found)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("GLIMS", ["encoder.stem", "decoder.stages.2"]), ("LATUPNet", ["encoder.bottleneck", "decoder.stages.1"])],
)
def test_grad_cam_is_captums(name, layers):
    attr = pytest.importorskip("captum.attr")
    network = build(name)
    rng = np.random.default_rng(2)
    patch = torch.from_numpy(rng.normal(size=(1, 1, 32, 32, 32)).astype(np.float32))
    weights = torch.from_numpy((rng.random((1, 32, 32, 32)) > 0.9).astype(np.float32))
    found = grad_cam(network, patch, layers, [1], weights)
    for layer, ours in zip(layers, found[:, 0]):
        cam = attr.LayerGradCam(
            lambda x: (network(x)[:, 1] * weights).flatten(1).sum(1), network.get_submodule(layer)
        ).attribute(patch, relu_attributions=True)
        cam = F.interpolate(cam.detach(), (32, 32, 32), mode="trilinear")[0, 0]
        assert cam.any()
        torch.testing.assert_close(ours, cam, rtol=1e-3, atol=1e-4 * float(cam.max()))


@pytest.mark.parametrize("name", [*ATTENTION, "CSAB", "CSAB released"])
def test_gates_are_what_features_are_multiplied_by(name):
    torch.manual_seed(0)
    module = SkipGate(16, "released" in name) if name.startswith("CSAB") else ATTENTION[name](16)
    x = torch.randn(1, 16, 5, 6, 7)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        multiplied, gates = logits_and_gates(nn.Sequential(module), x)
    expected = {"CSAB": 2, "CSAB released": 2, "CBAM": 2, "None": 0, "inception": 0, "multimodal": 0}.get(name, 1)
    values = [value for of_module in gates.values() for value in of_module.values()]
    assert len(values) == expected
    if name != "inception":
        product = x[0]
        for value in values:
            product = product * value[0]
        torch.testing.assert_close(multiplied, product)
    for of_module in gates.values():
        for kind, value in of_module.items():
            assert value.shape[2:] == ((1, 1, 1) if kind == "channel" or "released" in name else (5, 6, 7))
