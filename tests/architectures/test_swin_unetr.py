import sys

import pytest
import torch

from nnunet_glims.architectures import SwinUNETR
from nnunet_glims.errors import UsageError


def test_parameters_are_monais():
    pytest.importorskip("monai")
    assert sum(parameter.numel() for parameter in SwinUNETR(4, 3).parameters()) == 62_191_941


def test_a_patch_that_32_does_not_divide_is_padded_and_cut():
    pytest.importorskip("monai")
    network = SwinUNETR(1, 2, (40, 33, 64), feature_size=12).eval()
    x = torch.randn(1, 1, 40, 33, 64)
    with torch.no_grad():
        out = network(x)
        padded = network.decoder(torch.nn.functional.pad(x, (0, 0, 0, 31, 0, 24)))
    assert out.shape == (1, 2, 40, 33, 64)
    assert torch.equal(out, padded[:, :, :40, :33])


def test_the_smallest_patch_trains():
    pytest.importorskip("monai")
    network = SwinUNETR(1, 2, (32, 32, 32), feature_size=12)
    out = network(torch.randn(1, 1, 32, 24, 32))
    assert out.shape == (1, 2, 32, 24, 32)
    out.mean().backward()


def test_without_monai_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(UsageError, match=r"pip install 'nnunet-glims\[swinunetr\]'"):
        SwinUNETR(1, 2)


def test_bad_width_is_named():
    with pytest.raises(UsageError, match="feature_size 20 must be a multiple of 12"):
        SwinUNETR(1, 2, feature_size=20)
