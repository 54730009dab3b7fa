"""The Triton kernels against the plain formula in float64, in Triton's interpreter; `test_triton.py` runs this file.

By hand: TRITON_INTERPRET=1 NNUNET_GLIMS_KERNELS=triton python -m pytest tests/kernels/interpreted_triton.py
An interpreted plane takes a hundredth of a second, so that volumes are tiny: 64 voxels of a plane and 4 planes are a part.
"""

import warnings

import pytest
import torch
from torch import nn

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import formulas, gpu, ops
from tests.kernels.test_kernels import branch_parameters, expect_formula, expect_norm_act, norm_parameters

pytestmark = pytest.mark.filterwarnings("error:The Triton kernel")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def _the_same_numbers():
    torch.manual_seed(0)
    yield
    gpu._failed = False


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 5, 9, 8), (2, 2, 1, 2, 3), (1, 1, 2, 1, 40)],
    ids=["several parts", "several cases, smaller than the dilations", "a row"],
)
def test_branches_compute_the_formula_and_its_gradients(shape):
    expect_formula(ops.branches, formulas.branches, (torch.randn(shape) * 3 + 1, *branch_parameters(shape[1])))


@pytest.mark.parametrize("shape", [(2, 2, 5, 7, 11), (1, 2, 1, 1, 2), (3, 1, 4, 4, 4)], ids=str)
def test_norm_act_computes_the_formula_and_its_gradients(shape):
    expect_norm_act(shape)


@pytest.mark.parametrize(("dilation", "tap"), [(1, 0), (2, 5), (3, 24)])
def test_every_tap_reads_the_voxel_that_it_belongs_to(dilation, tap):
    """One voxel of the input is not zero; one tap of one dilation is not."""
    x, weight = torch.zeros(1, 1, 2, 4, 4), torch.zeros(3, 1, 27)
    x[0, 0, 1, 2, 1] = weight[dilation - 1, 0, tap] = 1
    others = torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3, 1), torch.ones(3)
    expected = formulas.branches(x, weight, *others)
    torch.testing.assert_close(ops.branches(x, weight, *others), expected, rtol=1e-4, atol=1e-5)


def relative_error(found, expected):
    assert found.isfinite().all()
    return (found.double() - expected).norm().item() / max(expected.norm().item(), 1e-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_in_and_output_alone(dtype):
    """Parameters and their gradients stay float32, and errors are those of rounding what is stored."""
    shape = (1, 1, 2, 5, 6)
    for operation, formula, parameters in (
        (ops.branches, formulas.branches, branch_parameters(1)),
        (lambda x, g, b, s: ops.norm_act(x, s, g, b), formulas.norm_act, norm_parameters(1)),
    ):
        given = [torch.randn(shape).to(dtype), *parameters]
        exact = [tensor.double().requires_grad_() for tensor in given]
        given = [tensor.clone().requires_grad_() for tensor in given]
        y, expected = operation(*given), formula(*exact)
        assert y.dtype == dtype and relative_error(y, expected) < TOLERANCE[dtype]
        incoming = torch.randn(y.shape).to(dtype)
        found = torch.autograd.grad(y, given, incoming)
        wanted = torch.autograd.grad(expected, exact, incoming.double())
        assert [gradient.dtype for gradient in found] == [tensor.dtype for tensor in given]
        for index, (gradient, of_formula) in enumerate(zip(found, wanted, strict=True)):
            if of_formula.norm() > 1e-10:  # the bias of a convolution with a norm behind it has none
                assert relative_error(gradient, of_formula) < 3 * TOLERANCE[dtype], index


def test_the_variance_of_values_far_from_zero_is_exact():
    x, slope = torch.randn(1, 2, 8, 9, 10) + 1000, torch.full((1,), 0.25)
    expected = formulas.norm_act(x.double(), None, None, slope.double())
    assert (ops.norm_act(x, slope) - expected).abs().max() < 2e-3  # float32 holds x itself to 3e-5 of its sd
    x, weight = torch.randn(1, 1, 3, 4, 5), torch.zeros(3, 1, 27)
    weight[:, :, 13] = 1
    bias, others = torch.full((3, 1), 1000.0), (torch.ones(3, 1), torch.zeros(3, 1), torch.full((3,), 0.25))
    expected = formulas.branches(x.double(), weight.double(), bias.double(), *(other.double() for other in others))
    assert (ops.branches(x, weight, bias, *others) - expected).abs().max() < 2e-3


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
        lambda x: x[:, :, :, 1::2],
    ],
    ids=["channels-last", "sliced"],
)
def test_inputs_may_lie_in_memory_in_any_way(layout):
    x, parameters, slope = layout(torch.randn(1, 2, 2, 4, 5)), branch_parameters(2), torch.rand(1)
    assert not x.is_contiguous()
    torch.testing.assert_close(ops.branches(x, *parameters), formulas.branches(x, *parameters), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ops.norm_act(x, slope), formulas.norm_act(x, None, None, slope), rtol=1e-4, atol=1e-5)


def test_non_finite_values_stay_in_their_channel():
    x = torch.randn(1, 2, 6, 6, 6)
    x[0, 0, 3, 3, 3] = float("nan")
    y = ops.norm_act(x, torch.rand(1))
    assert y[:, 0].isnan().all() and y[:, 1].isfinite().all()


def test_float64_uses_the_formula():
    x, parameters = torch.randn(1, 1, 2, 3, 4).double(), [p.double() for p in branch_parameters(1)]
    assert torch.equal(ops.branches(x, *parameters), formulas.branches(x, *parameters))


class Block(nn.Module):
    """Both operations, with parameters."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ParameterList(branch_parameters(1))
        self.norm = nn.ParameterList(norm_parameters(3))

    def forward(self, x):
        gain, shift, slope = self.norm
        return ops.norm_act(ops.branches(x, *self.branches), slope, gain, shift)


def test_under_autocast_and_compiled_as_one_graph_it_computes_the_same():
    block, x = Block(), torch.randn(1, 1, 1, 3, 4)
    results = []
    for network in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        assert y.dtype == torch.bfloat16
        block.zero_grad()
        y.float().square().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in block.parameters())
        results.append([y, *(parameter.grad.clone() for parameter in block.parameters())])
    torch.testing.assert_close(*results)


def test_torch_accepts_the_operators():
    x, tests = (
        torch.randn(1, 1, 1, 2, 3, requires_grad=True),
        ("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    torch.library.opcheck(ops._branches, (x, *branch_parameters(1), 1e-5), test_utils=tests)
    half = x.detach().bfloat16().requires_grad_()
    torch.library.opcheck(
        ops._norm_act, (half, *norm_parameters(1), 1e-5), test_utils=(*tests, "test_aot_dispatch_static")
    )


def breaks(*_):
    raise RuntimeError("out of resource: registers")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "dtype", "compiled"),
    [
        ("branches", torch.float16, False),
        ("branches_backward", torch.float32, False),
        ("branches", torch.float32, True),
        ("norm_act_backward", torch.float16, True),
    ],
)
def test_a_kernel_that_fails_leaves_it_to_the_formulas_with_one_warning(name, dtype, compiled, monkeypatch):
    monkeypatch.setattr(gpu.library(), name, breaks)
    torch._dynamo.reset()
    block = Block()
    network = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    exact = torch.randn(1, 1, 1, 3, 4).to(dtype).double().requires_grad_()
    x = exact.detach().to(dtype).requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            y = network(x)
            x.grad = None
            block.zero_grad()
            y.backward(torch.ones_like(y))
    told = [str(warning.message) for warning in caught if "Triton kernel" in str(warning.message)]
    assert len(told) == 1 and f"kernel {name} failed" in told[0] and "out of resource: registers" in told[0]
    expected = block.double()(exact)
    block.zero_grad()
    expected.backward(torch.ones_like(expected))
    assert relative_error(y, expected) < TOLERANCE[dtype]
    assert relative_error(x.grad, exact.grad) < 10 * TOLERANCE[dtype]


def test_running_out_of_memory_is_no_failure_of_a_kernel(monkeypatch):
    def exhausted(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu.library(), "norm_act", exhausted)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ops.norm_act(torch.randn(1, 1, 2, 2, 2), torch.rand(1))
    assert not gpu._failed


def test_without_the_interpreter_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.setattr(gpu.library(), "INTERPRETED", False)
    with pytest.raises(UsageError, match=r"NNUNET_GLIMS_KERNELS=triton: .*'cpu'.*set auto or eager"):
        ops.norm_act(torch.randn(1, 1, 2, 2, 2), torch.rand(1))


def test_auto_leaves_cpu_tensors_to_what_cpus_have(monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "auto")
    monkeypatch.setattr(gpu.library(), "norm_act", breaks)
    assert ops.norm_act(torch.randn(1, 1, 2, 2, 2), torch.rand(1)).isfinite().all()
