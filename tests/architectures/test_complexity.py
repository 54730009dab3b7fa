import pytest
from torch import nn

from nnunet_glims.architectures import GLIMS, LATUPNet
from nnunet_glims.architectures.complexity import count_gmac, count_parameters


def test_a_convolution_counts_as_by_hand():
    network = nn.Conv3d(3, 5, 3, padding=1)
    assert count_parameters(network) == 5 * 3 * 27 + 5
    assert count_gmac(network, 3, (4, 6, 8)) == pytest.approx(5 * 3 * 27 * 4 * 6 * 8 / 1e9)


def test_frozen_parameters_count():
    network = nn.Linear(3, 2)
    network.requires_grad_(False)
    assert count_parameters(network) == 8


def test_glims_needs_what_was_counted_on_the_released_model():
    assert count_gmac(GLIMS(4, 3, (96, 96, 96)), 4, (96, 96, 96)) == pytest.approx(57.0, abs=0.05)


def test_latupnet_needs_what_was_counted_on_the_released_model_less_what_upsampling_saves():
    released = 788.7  # 10⁹ at 128³ with three channels
    upsampling = sum(
        8 * wide * narrow * size**3 for wide, narrow, size in ((64, 32, 128), (128, 64, 64), (128, 128, 32))
    )
    saved = (
        (1 - (3 / 4) ** 3) * upsampling / 1e9
    )  # of the taps of two neighbours an axis, three products are left of four
    assert count_gmac(LATUPNet(3, 4), 3, (128, 128, 128)) == pytest.approx(released - saved, abs=0.1)
