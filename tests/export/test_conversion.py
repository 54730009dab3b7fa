import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nnunet_glims.export import conversion


@pytest.mark.slow
def test_norms_of_large_volumes_are_exact(tmp_path):
    """onnxruntime's own instance norm is not, and dozens of them one after the other make logits wrong."""
    norm = nn.InstanceNorm3d(1, affine=True).eval()
    torch.manual_seed(0)
    image = 5 + torch.rand(1, 1, 96, 160, 160)
    conversion.write_onnx(norm, image, tmp_path / "norm.onnx", "fp32", 18)
    session = onnxruntime.InferenceSession(str(tmp_path / "norm.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})[0]
    double = image.double().numpy()
    expected = (double - double.mean()) / np.sqrt(double.var() + norm.eps)
    np.testing.assert_allclose(found, expected, atol=1e-5)
