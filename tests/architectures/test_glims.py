import numpy as np
import pytest
import torch

from nnunet_glims.architectures import GLIMS
from nnunet_glims.architectures.window_attention import cut_into_windows, join_windows, window_layout
from nnunet_glims.errors import UsageError
from tests import golden

PAPER = (96, 96, 96)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("released", [False, True], ids=["described", "released"])
@pytest.mark.parametrize(
    ("channels", "classes", "width", "parameters"),
    [(4, 3, 24, 47_163_349), (1, 14, 24, 47_167_281), (4, 3, 12, 12_420_703)],
)
def test_parameters_are_the_published_ones(channels, classes, width, parameters, released):
    assert count(GLIMS(channels, classes, PAPER, feature_size=width, released=released)) == parameters


@pytest.fixture(scope="module")
def released():
    return GLIMS.from_released_state_dict(golden.parameters("glims")).eval()


def errors(network, dtype):
    x = torch.from_numpy(golden.volume("glims-input-4", (1, 4, *PAPER))).to(dtype)
    with torch.no_grad():
        outputs = network.to(dtype)(x)
    for head, output in enumerate(outputs):
        index, value, std = golden.values("glims", f"F12_4to3_head{head}")
        yield np.abs(output.flatten()[torch.from_numpy(index)].numpy() - value).max() / std


def test_released_weights_compute_the_released_values_in_float32(released):
    for error, tolerance in zip(errors(released, torch.float32), (2.2e-3, 1e-3, 6e-4, 2e-4), strict=True):
        assert error < tolerance


@pytest.mark.slow
def test_released_weights_compute_the_released_values_in_float64(released):
    assert max(errors(released, torch.float64)) < 1e-8
    released.float()


def test_the_integer_buffers_of_a_released_checkpoint_are_ignored():
    weights = golden.parameters("glims")
    weights["t3.layer.blocks.0.attn.relative_position_index"] = torch.zeros(343, 343, dtype=torch.long)
    network = GLIMS.from_released_state_dict(weights, deep_supervision=False)
    assert (network.input_channels, network.num_classes, network.released) == (4, 3, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("csab3.ChannelGate.mlp.1.bias"), "missing: csab3.ChannelGate.mlp.1.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "left over: extra"),
        (lambda w: w.pop("stem.conv.weight"), "missing: stem.conv.weight"),
        (
            lambda w: w.update({"out2.conv.conv.bias": torch.zeros(4)}),
            r"out2.conv.conv.bias has shape \(4,\), expected \(3,\)",
        ),
    ],
)
def test_released_weights_that_do_not_fit_are_refused_by_name(damage, message):
    weights = golden.parameters("glims")
    damage(weights)
    with pytest.raises(UsageError, match=message):
        GLIMS.from_released_state_dict(weights)


def test_the_released_model_refuses_other_patches():
    with pytest.raises(UsageError, match=r"\[128, 128, 128\].*96×96×96"):
        GLIMS(4, 3, (128, 128, 128), released=True)
    network = GLIMS(1, 1, PAPER, feature_size=3, num_heads=(3,) * 5, released=True)
    with pytest.raises(UsageError, match=r"input of \[64, 64, 64\].*96×96×96"):
        network(torch.randn(1, 1, 64, 64, 64))


def test_described_and_released_differ_in_function_not_in_weights():
    arguments = {"feature_size": 3, "num_heads": (3,) * 5, "deep_supervision": False}
    described = GLIMS(1, 2, PAPER, **arguments).eval()
    released = GLIMS(1, 2, PAPER, released=True, **arguments).eval()
    released.load_state_dict(described.state_dict())
    x = torch.randn(1, 1, *PAPER)
    with torch.no_grad():
        assert not torch.allclose(described(x), released(x), atol=1e-3)


def test_linear_layers_start_from_a_narrow_normal_in_the_described_network_only():
    described, released = (
        GLIMS(1, 2, PAPER, released=flag).encoder.swin_a.blocks[0].mlp.linear1 for flag in (False, True)
    )
    assert described.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert described.bias.abs().max() == 0
    # PyTorch's default is uniform in ±1/sqrt(fan_in) = ±0.072, a standard deviation of 0.042.
    assert released.weight.std().item() == pytest.approx(1 / np.sqrt(3 * 192), rel=0.1)


def test_an_input_of_another_size_than_the_patch_runs():
    network = GLIMS(1, 2, (64, 64, 64), feature_size=3, num_heads=(3,) * 5, deep_supervision=False).eval()
    with torch.no_grad():
        # 80 / 16 = 5 voxels before patch merging: padded to 6 and cut after expanding.
        assert network(torch.randn(1, 1, 80, 64, 96)).shape == (1, 2, 80, 64, 96)
    with pytest.raises(UsageError, match=r"axis 1 must be a multiple of 16; pad the image to \[64, 80, 64\]"):
        network(torch.randn(1, 1, 64, 72, 64))


def test_bad_arguments_are_named():
    with pytest.raises(UsageError, match="32 features cannot be split over 6"):
        GLIMS(1, 2, (64, 64, 64), feature_size=4)
    with pytest.raises(UsageError, match="depths"):
        GLIMS(1, 2, (64, 64, 64), depths=(2, 2))
    with pytest.raises(UsageError, match="strides"):
        GLIMS(1, 2, (64, 64, 64), strides=[[1, 1, 1], [3, 2, 2]])


def test_windows_are_put_back_where_they_were_cut():
    x = torch.arange(2 * 6 * 14 * 7 * 3).view(2, 6, 14, 7, 3)
    windows = cut_into_windows(x, (6, 7, 7))
    assert windows.shape == (2, 2, 6 * 7 * 7, 3)
    assert torch.equal(join_windows(windows, (6, 7, 7), (6, 14, 7)), x)


def brute_force_visible(size, padded, shift, query, key):
    """May two voxels of the rolled, padded volume see each other? From the definition, voxel by voxel."""
    for axis in range(3):

        def region(position, axis=axis):
            if not shift[axis]:
                return 0
            return 0 if position < padded[axis] - 7 else 1 if position < padded[axis] - 3 else 2

        if region(query[axis]) != region(key[axis]):
            return False
    original = [(key[axis] + shift[axis]) % padded[axis] for axis in range(3)]
    return all(original[axis] < size[axis] for axis in range(3))


def test_shifted_windows_see_neither_the_other_side_nor_padding():
    size = (12, 5, 7)
    layout = window_layout(size, shifted=True, released=False)
    assert (layout.window, layout.shift, layout.padded) == ((7, 5, 7), (3, 0, 0), (14, 5, 7))
    positions = cut_into_windows(
        torch.stack(torch.meshgrid(*map(torch.arange, layout.padded), indexing="ij"), -1)[None], layout.window
    )[0]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        window, query, key = rng.integers(2), rng.integers(245), rng.integers(245)
        visible = brute_force_visible(
            size, layout.padded, layout.shift, positions[window, query].tolist(), positions[window, key].tolist()
        )
        assert (layout.mask[window, query, key] == 0) == visible


def test_bias_rows_come_from_the_real_offsets_of_a_clipped_window():
    layout = window_layout((2, 3, 7), shifted=False, released=False)
    voxels = [(d, h, w) for d in range(2) for h in range(3) for w in range(7)]
    for i, j in ((0, 0), (0, 41), (41, 0), (22, 9)):
        offset = [a - b for a, b in zip(voxels[i], voxels[j], strict=True)]
        row = (offset[0] + 6) * 169 + (offset[1] + 6) * 13 + offset[2] + 6
        assert layout.bias_index[i, j] == row


@torch.no_grad()
def test_what_attention_keeps_between_patches_follows_weights_and_sizes():
    network = GLIMS(1, 2, (32, 32, 32), feature_size=6, num_heads=(3,) * 5, deep_supervision=False).eval()
    patches = torch.randn(1, 1, 32, 32, 32), torch.randn(2, 1, 32, 48, 32)
    first = [network(x) for x in patches]
    assert all(map(torch.equal, first, [network(x) for x in patches]))
    for parameter in network.parameters():
        parameter.data.mul_(1.1)
    fresh = GLIMS(1, 2, (32, 32, 32), feature_size=6, num_heads=(3,) * 5, deep_supervision=False).eval()
    fresh.load_state_dict(network.state_dict())
    for x, before in zip(patches, first, strict=True):
        assert torch.equal(network(x), fresh(x)) and not torch.equal(network(x), before)
