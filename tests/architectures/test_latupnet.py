import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_glims.architectures import LATUPNet
from nnunet_glims.architectures.latupnet import UpsampleConvolution
from nnunet_glims.architectures.latupnet_attention import ATTENTION
from nnunet_glims.errors import UsageError
from tests import golden

PARAMETERS = {  # whole network, 4 channels -> 4 classes
    "SE": 3_069_924,
    "None": 3_057_124,
    "SE3DConv": 3_069_924,
    "ECA": 3_108_324,
    "channel": 3_159_524,
    "spatial": 3_408_868,
    "CBAM": 3_511_268,
    "inception": 8_651_684,
    "multimodal": 3_063_524,
    "multimodal_fixed": 3_063_524,
}
WITH_VALUES = ("SE", "None", "inception", "SE3DConv", "channel", "spatial")


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("attention", ATTENTION)
def test_parameters_are_those_of_the_released_variants(attention):
    assert count(LATUPNet(4, 4, attention=attention)) == PARAMETERS[attention]


def test_parameters_of_the_paper():
    assert count(LATUPNet(3, 4)) == 3_069_060


@pytest.mark.parametrize("attention", WITH_VALUES)
def test_released_weights_compute_the_released_values(attention):
    network = LATUPNet.from_released_arrays(golden.parameters("latupnet", attention)).eval()
    assert network.attention == attention
    x = torch.from_numpy(golden.volume("latup-input-4-(32, 32, 32)", (1, 4, 32, 32, 32)))
    with torch.no_grad():
        probabilities = network(x).softmax(1)
    index, value, _ = golden.values("latupnet", f"{attention}_4_32x32x32")
    assert np.abs(probabilities.flatten()[torch.from_numpy(index)].numpy() - value).max() < 1e-4


def keras_layout(array):
    array = np.asarray(array)
    return array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array.T


@pytest.mark.parametrize("attention", ["SE", "inception"])
def test_the_released_layout_gives_the_same_network(attention):
    arrays = golden.parameters("latupnet", attention)
    ours = LATUPNet.from_released_arrays(arrays).state_dict()
    theirs = LATUPNet.from_released_arrays(
        {name: keras_layout(array) for name, array in arrays.items()}, layout="keras"
    ).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("attention", "layers"),
    [
        ("ECA", {"ECA_fc": lambda c: (c, c)}),
        (
            "CBAM",
            {
                "CBAM_CH_fc1": lambda c: (c, c),
                "CBAM_CH_fc2": lambda c: (c, c),
                "CBAM_SP_conv": lambda c: (c, 2, 7, 7, 7),
            },
        ),
        ("multimodal", {"MM_fc1": lambda c: (c // 16, c), "MM_fc2": lambda c: (c, c // 16)}),
    ],
)
def test_variants_without_reference_values_load_by_their_released_names(attention, layers):
    arrays = golden.parameters("latupnet", "None")
    for site, channels in (("enc2", 96), ("enc3", 64), ("bn", 128), ("dec3", 128), ("dec2", 64), ("dec1", 32)):
        for layer, shape in layers.items():
            arrays[f"{site}_{layer}.kernel"] = torch.full(shape(channels), 0.01)
            if layer.endswith("conv"):
                arrays[f"{site}_{layer}.bias"] = torch.zeros(channels)
    assert LATUPNet.from_released_arrays(arrays).attention == attention


def test_three_channel_input_is_read_off_the_shapes():
    arrays = golden.parameters("latupnet", "SE")
    arrays["enc1_pc_embed.kernel"] = arrays["enc1_pc_embed.kernel"][:, :3]
    assert LATUPNet.from_released_arrays(arrays).input_channels == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a.pop("dec2_conv3.bias"), "missing: dec2_conv3.bias"),
        (lambda a: a.update({"dec9.kernel": torch.zeros(1)}), "left over: dec9.kernel"),
        (lambda a: a.pop("enc3_conv1.kernel"), "missing: enc3_conv1.kernel"),
        (
            lambda a: a.update({"bn_SE_fc_relu.kernel": torch.zeros(8, 128)}),
            r"has shape \(8, 128\), expected \(16, 128\)",
        ),
    ],
)
def test_released_arrays_that_do_not_fit_are_refused_by_name(damage, message):
    arrays = golden.parameters("latupnet", "SE")
    damage(arrays)
    with pytest.raises(UsageError, match=message):
        LATUPNet.from_released_arrays(arrays)


def test_released_multimodal_attention_does_nothing_and_the_fixed_one_weighs_voxels():
    x = torch.randn(2, 32, 4, 6, 5)
    assert torch.equal(ATTENTION["multimodal"](32)(x), x)
    weights = (ATTENTION["multimodal_fixed"](32)(x) / x)[:, 0]
    assert weights.std() > 1e-3
    assert weights.flatten(1).mean(1).tolist() == pytest.approx([1, 1], rel=1e-4)


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2), (3, 1, 2), (1, 1, 1)], ids=str)
def test_upsampling_on_the_coarse_grid_is_the_same_convolution(scale):
    x = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    module = UpsampleConvolution(5, 4, scale).double()
    fine = F.pad(F.interpolate(x, scale_factor=[float(step) for step in scale]), (0, 1) * 3)
    outputs = module(x), F.conv3d(fine, module.weight, module.bias)
    torch.testing.assert_close(*outputs)
    given = (x, module.weight, module.bias)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), given) for output in outputs))


def test_the_l2_penalty_falls_on_the_kernels_the_paper_names():
    network = LATUPNet(3, 4)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    selected = {names[id(parameter)] for parameter in network.selected_decay_parameters()}
    expected = {f"encoder.stages.{i}.conv{j}.weight" for i in range(2) for j in (1, 2)}
    expected |= {f"decoder.stages.{i}.conv{j}.weight" for i in range(3) for j in (2, 3)}
    assert selected == expected | {"decoder.seg_layers.0.weight"}


def test_convolutions_start_he_uniform_with_zero_bias():
    convolution = LATUPNet(3, 4).encoder.stages[0].conv1
    bound = np.sqrt(6 / (96 * 27))
    assert convolution.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert convolution.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "se"}, "attention 'se' is unknown: choose one of SE, "),
        ({"features": [32, 64]}, "features"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch_size": [64, 64, 60], "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3}, "divided by 8 along axis 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        LATUPNet(1, 2, **arguments)


def test_an_input_that_cannot_be_halved_is_refused():
    with pytest.raises(UsageError, match=r"axis 0 must be a multiple of 8; pad the image to \[24, 32, 32\]"):
        LATUPNet(1, 2)(torch.randn(1, 1, 20, 32, 32))
