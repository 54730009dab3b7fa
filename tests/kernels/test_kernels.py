"""Every kernel against the plain formula in float64, and what happens where kernels cannot be had."""

import platform
from functools import cache

import pytest
import torch

from nnunet_glims.architectures import GLIMS
from nnunet_glims.architectures.dilated import DilatedAggregator
from nnunet_glims.architectures.layers import Recomputing
from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import compiled, cpu, formulas, ops

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")
needs_bf16 = pytest.mark.skipif(
    compiled.library(torch.bfloat16) is None, reason="no C compiler, or no processor with bfloat16"
)
PRECISIONS = [
    pytest.param(torch.float32, 1e-5, marks=needs_compiler, id="fp32"),
    pytest.param(torch.bfloat16, 1e-2, marks=needs_bf16, id="bf16"),
]
"""With the error that is allowed, of the largest value; bfloat16 itself has 4e-3."""

SHAPES = [(1, 3, 8, 8, 8), (2, 5, 9, 7, 20), (1, 24, 17, 33, 40), (1, 2, 1, 5, 3), (3, 1, 2, 2, 35), (1, 7, 6, 20, 16)]


def branch_parameters(channels):
    weight = torch.randn(3, channels, 27)
    bias, gain, shift = torch.randn(3, channels), torch.rand(3, channels) + 0.5, torch.randn(3, channels)
    return weight, bias, gain, shift, torch.rand(3) - 0.2


def norm_parameters(channels):
    return torch.rand(channels) + 0.5, torch.randn(channels), torch.rand(1)


def expect_formula(operation, formula, inputs):
    """Values and gradients of `operation` in float32 equal those of `formula` in float64."""
    given = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = operation(*given), formula(*exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    incoming = torch.randn(y.shape)
    gradients = torch.autograd.grad(y, given, incoming)
    expected_gradients = torch.autograd.grad(expected, exact, incoming.double())
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.shape == wanted.shape
        scale = max(wanted.abs().max().item(), incoming.norm().item())
        assert (gradient - wanted).abs().max().item() < 1e-5 * scale


def expect_prediction(operation, formula, x, parameters, precision, tolerance):
    """Without gradients, values of `operation` are those of `formula` in float64 for the same input."""
    x = x.to(precision)
    with torch.no_grad():
        y = operation(x, *parameters)
    expected = formula(x.double(), *(parameter.double() for parameter in parameters))
    assert y.dtype == precision and y.shape == expected.shape
    assert (y - expected).abs().max().item() < tolerance * expected.abs().max().item()


def expect_norm_act(shape):
    """`ops.norm_act` computes the formula, with gain and shift and without."""
    gain, shift, slope = norm_parameters(shape[1])
    expect_formula(
        lambda x, gain, shift, slope: ops.norm_act(x, slope, gain, shift),
        formulas.norm_act,
        (torch.randn(shape) * 3 + 1, gain, shift, slope),
    )
    expect_formula(ops.norm_act, lambda x, slope: formulas.norm_act(x, None, None, slope), (torch.randn(shape), slope))


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_branches_compute_the_formula_and_its_gradients(shape):
    torch.manual_seed(0)
    x = torch.randn(shape) * 3 + 1
    assert compiled.library() is not None
    expect_formula(ops.branches, formulas.branches, (x, *branch_parameters(shape[1])))


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_act_computes_the_formula_and_its_gradients(shape):
    torch.manual_seed(0)
    expect_norm_act(shape)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(cpu, "WORTHWHILE_VOXELS", 1)


def convolution_inputs(shape, out, stride, up):
    weight = (shape[1], out) if up else (out, shape[1])
    return torch.randn(shape), torch.randn(*weight, *stride), torch.randn(out)


@needs_compiler
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 5, 6, 12, 18), 7), ((1, 24, 12, 24, 36), 13), ((1, 1, 2, 2, 3), 1)], ids=str
)
def test_cells_compute_the_formula_and_its_gradients(shape, out, stride, up, any_size):
    torch.manual_seed(0)
    expect_formula(
        lambda *inputs: ops.nonoverlapping_convolution(*inputs, stride, up),
        lambda *inputs: formulas.nonoverlapping_convolution(*inputs, stride, up),
        convolution_inputs(shape, out, stride, up),
    )


@needs_compiler
@pytest.mark.parametrize(("voxels", "kernels"), [((32, 16, 16), True), ((8, 16, 16), False), ((33, 16, 16), False)])
def test_products_that_torch_does_best_are_left_to_it(voxels, kernels):
    stride = (1, 1, 1) if voxels[0] < 33 else (2, 2, 2)
    x, weight, bias = convolution_inputs((1, 2, *voxels), 3, stride, False)
    with torch.profiler.profile() as profile:
        ops.nonoverlapping_convolution(x, weight, bias, stride)
    assert kernels == any(event.name == "nnunet_glims::nonoverlapping_convolution" for event in profile.events())


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 2, 9, 10, 11), (2, 2, 3, 5, 70), (1, 3, 12, 5, 16), (1, 1, 1, 1, 1)], ids=str)
def test_wide_convolutions_compute_the_formula_and_its_gradients(shape):
    torch.manual_seed(0)
    expect_formula(
        ops.gate_convolution, formulas.gate_convolution, (torch.randn(shape), torch.randn(1, shape[1], 7, 7, 7))
    )


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_predictions_compute_the_formulas(shape, precision, tolerance, any_size):
    torch.manual_seed(0)
    x, slope, how = torch.randn(shape) * 3 + 1, torch.rand(1), (precision, tolerance)
    expect_prediction(ops.branches, formulas.branches, x, branch_parameters(shape[1]), *how)
    expect_prediction(ops.norm_act, lambda x, slope: formulas.norm_act(x, None, None, slope), x, [slope], *how)
    expect_prediction(ops.gate_convolution, formulas.gate_convolution, x, [torch.randn(1, shape[1], 7, 7, 7)], *how)


def convolution_norm_act(x, weight, bias, slope, stride, up):
    return formulas.norm_act(formulas.nonoverlapping_convolution(x, weight, bias, stride, up), None, None, slope)


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 5, 6, 12, 18), 7), ((1, 24, 12, 24, 36), 13), ((1, 1, 2, 2, 6), 1)], ids=str
)
def test_cells_with_norm_and_activation_compute_the_formula(shape, out, stride, up, precision, tolerance, any_size):
    torch.manual_seed(0)
    x, weight, bias = convolution_inputs(shape, out, stride, up)
    parameters = weight.to(precision).float(), bias + 3, torch.rand(1)
    for operation, formula, given in (
        (ops.nonoverlapping_convolution, formulas.nonoverlapping_convolution, parameters[:2]),
        (ops.convolution_norm_act, convolution_norm_act, parameters),
    ):
        expect_prediction(
            lambda *inputs, of=operation: of(*inputs, stride, up),
            lambda *inputs, of=formula: of(*inputs, stride, up),
            x,
            given,
            precision,
            3 * tolerance,  # what is normalised was rounded before
        )


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 9, 64, 64, 64)], ids=str)
@pytest.mark.parametrize("small", [False, True], ids=["joined", "left to torch"])
def test_aggregators_predict_what_their_parts_compute(shape, small, precision, tolerance, monkeypatch):
    monkeypatch.setattr(cpu, "WORTHWHILE_VOXELS", 2**30 if small else 1)
    torch.manual_seed(0)
    aggregator = DilatedAggregator(shape[1], 2 * shape[1]).eval()
    x = torch.randn(shape).to(precision)
    with torch.no_grad(), torch.autocast("cpu", enabled=precision == torch.bfloat16):
        found = aggregator(x)
    expected = aggregator.double()(x.double())
    assert found.dtype == precision
    assert (found - expected).abs().max().item() < 3 * tolerance * expected.abs().max().item()


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("windows", "voxels", "heads", "width", "masks"),
    [(1, 343, 2, 32, 0), (4, 343, 3, 16, 4), (6, 50, 3, 10, 2), (5, 7, 1, 33, 0), (1, 1, 1, 1, 1)],
)
def test_attention_computes_the_formula(windows, voxels, heads, width, masks, precision, tolerance):
    torch.manual_seed(0)
    count = masks or windows
    qkv = 3 * torch.randn(windows // count, count, voxels, 3 * heads * width)
    table, index = torch.randn(60, heads), torch.randint(0, 60, (voxels, voxels))
    mask = torch.where(torch.rand(masks, voxels, voxels) < 0.3, -100.0, 0.0) if masks else None
    expect_prediction(
        lambda qkv, table: ops.window_attention(qkv, table, index, mask, heads),
        lambda qkv, table: formulas.window_attention(qkv, table, index, None if mask is None else mask.double(), heads),
        qkv,
        [table],
        precision,
        tolerance,
    )


@needs_compiler
def test_attention_passes_on_what_is_not_a_number():
    qkv, table, index = torch.randn(1, 2, 20, 3 * 2 * 4), torch.randn(9, 2), torch.randint(0, 9, (20, 20))
    qkv[0, 1, 5, 1] = float("nan")  # a query: its own voxel and head alone
    with torch.no_grad():
        found = ops.window_attention(qkv, table, index, None, 2).isnan().nonzero()
    assert found.tolist() == [[0, 1, 5, value] for value in range(4)]


@needs_compiler
def test_predictions_do_not_depend_on_the_default_precision(any_size):
    x, aggregator = torch.randn(1, 2, 6, 7, 8), DilatedAggregator(2, 4)
    kernel = torch.randn(1, 2, 7, 7, 7)
    with torch.no_grad():
        expected = aggregator(x), ops.gate_convolution(x, kernel)
        torch.set_default_dtype(torch.float16)
        try:
            found = aggregator(x), ops.gate_convolution(x, kernel)
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


@needs_compiler
@pytest.mark.parametrize("gradients", [False, True])
def test_with_gradients_nothing_is_joined(gradients, monkeypatch):
    joined = []
    monkeypatch.setattr(cpu, "dilated_aggregation", lambda x, *_: joined.append(x.shape) or x.clone())
    aggregator, x = DilatedAggregator(2, 4), torch.randn(1, 2, 24, 24, 24)
    with torch.set_grad_enabled(gradients):
        aggregator(x)
    assert joined == ([] if gradients else [x.shape])


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor")
def test_processors_without_avx512_compute_the_same(monkeypatch, tmp_path, any_size):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    older = tuple(option.replace("native", "x86-64-v3") for option in compiled.OPTIONS)
    monkeypatch.setattr(compiled, "OPTIONS", older)
    monkeypatch.setattr(compiled, "_loaded", cache(compiled._loaded.__wrapped__))
    assert compiled.library() is not None and compiled.library(torch.bfloat16) is None
    torch.manual_seed(0)
    x, slope, how = torch.randn(2, 5, 9, 7, 20), torch.rand(1), ((1, 1, 1), False)
    _, weight, bias = convolution_inputs(x.shape, 13, *how)
    expect_formula(ops.branches, formulas.branches, (x, *branch_parameters(5)))
    expect_formula(ops.gate_convolution, formulas.gate_convolution, (x[:, :2], torch.randn(1, 2, 7, 7, 7) / 10))
    expect_norm_act(x.shape)
    expect_formula(
        lambda *given: ops.nonoverlapping_convolution(*given, *how),
        lambda *given: formulas.nonoverlapping_convolution(*given, *how),
        (x, weight, bias),
    )
    expect_prediction(
        lambda *given: ops.convolution_norm_act(*given, *how),
        lambda *given: convolution_norm_act(*given, *how),
        x,
        (weight, bias, slope),
        torch.float32,
        1e-5,
    )
    qkv, table, index = torch.randn(2, 3, 50, 60), torch.randn(9, 2), torch.randint(0, 9, (50, 50))
    with torch.no_grad():
        found = ops.window_attention(qkv, table, index, None, 2)
    torch.testing.assert_close(found, formulas.window_attention(qkv, table, index, None, 2), rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
        lambda x: x.transpose(2, 4),
        lambda x: x[:, :, 1:, ::2],
    ],
    ids=["channels-last", "transposed", "sliced"],
)
def test_inputs_may_lie_in_memory_in_any_way(layout, any_size):
    x = layout(torch.randn(2, 4, 9, 10, 11))
    assert not x.is_contiguous()
    parameters = branch_parameters(4)
    torch.testing.assert_close(ops.branches(x, *parameters), formulas.branches(x, *parameters), rtol=1e-4, atol=1e-5)
    slope = torch.rand(1)
    torch.testing.assert_close(ops.norm_act(x, slope), formulas.norm_act(x, None, None, slope), rtol=1e-4, atol=1e-5)
    _, weight, bias = convolution_inputs(x.shape, 3, (1, 1, 1), False)
    weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    expected = formulas.nonoverlapping_convolution(x, weight, bias, (1, 1, 1))
    torch.testing.assert_close(
        ops.nonoverlapping_convolution(x, weight, bias, (1, 1, 1)), expected, rtol=1e-4, atol=1e-5
    )
    kernel = torch.randn(1, 4, 7, 7, 7)
    torch.testing.assert_close(
        ops.gate_convolution(x, kernel), formulas.gate_convolution(x, kernel), rtol=1e-4, atol=1e-4
    )


@needs_compiler
def test_the_variance_of_values_far_from_zero_is_exact():
    x = torch.randn(1, 2, 24, 24, 24) + 1000
    slope = torch.full((1,), 0.25)
    expected = formulas.norm_act(x.double(), None, None, slope.double())
    assert (ops.norm_act(x, slope) - expected).abs().max() < 2e-3  # float32 holds x itself to 3e-5 of its sd
    with torch.no_grad():
        found = ops.convolution_norm_act(x, torch.eye(2).view(2, 2, 1, 1, 1), torch.zeros(2), slope, (1, 1, 1))
    assert (found - expected).abs().max() < 2e-3


@needs_compiler
def test_non_finite_values_are_passed_on():
    x = torch.randn(1, 2, 6, 6, 6)
    x[0, 0, 3, 3, 3] = float("nan")
    y = ops.branches(x, *branch_parameters(2))
    assert y[:, ::2].isnan().all() and y[:, 1::2].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_result_does_not_depend_on_the_number_of_threads(threads):
    torch.manual_seed(0)
    x, parameters = torch.randn(2, 6, 9, 10, 11), branch_parameters(6)
    fine = torch.randn(1, 6, 32, 32, 40)
    weight, bias, slope = torch.randn(5, 6, 1, 1, 1, requires_grad=True), torch.randn(5), torch.rand(1)
    qkv, table, index = torch.randn(5, 3, 50, 24), torch.randn(9, 2), torch.randint(0, 9, (50, 50))

    def results():
        y = ops.nonoverlapping_convolution(fine, weight, bias, (1, 1, 1))
        with torch.no_grad():
            joined = ops.convolution_norm_act(fine, weight, bias, slope, (1, 1, 1))
            attended = ops.window_attention(qkv, table, index, None, 2)
        return ops.branches(x, *parameters), y, joined, attended, torch.autograd.grad(y.square().sum(), weight)[0]

    before, expected = torch.get_num_threads(), results()
    torch.set_num_threads(threads)
    try:
        assert all(map(torch.equal, results(), expected))
    finally:
        torch.set_num_threads(before)


def test_torch_accepts_the_operators():
    x, slope = torch.randn(1, 2, 5, 6, 7, requires_grad=True), torch.rand(1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops._branches, (x, *branch_parameters(2), 1e-5), test_utils=tests)
    torch.library.opcheck(ops._norm_act, (x, torch.ones(2), torch.zeros(2), slope, 1e-5), test_utils=tests)
    for up in (False, True):
        inputs = convolution_inputs((1, 2, 4, 6, 8), 3, (2, 2, 1), up)
        torch.library.opcheck(ops._nonoverlapping_convolution, (*inputs, [2, 2, 1], up), test_utils=tests)
    torch.library.opcheck(ops._gate_convolution, (x, torch.randn(1, 2, 7, 7, 7)), test_utils=tests)
    x, (*parameters, slopes) = x.detach(), branch_parameters(2)
    weight, bias = torch.randn(2, 2, 1, 1, 1), torch.randn(2)
    torch.library.opcheck(ops._convolution_norm_act, (x, weight, bias, slope, [1, 1, 1], False), test_utils=tests)
    expand = torch.randn(4, 6, 1, 1, 1), torch.randn(4), torch.randn(2, 4, 1, 1, 1), bias
    torch.library.opcheck(
        ops._dilated_aggregation, (x, *parameters, torch.cat([slopes, slopes]), *expand), test_utils=tests
    )
    index = torch.randint(0, 9, (5, 5))
    torch.library.opcheck(
        ops._window_attention, (torch.randn(1, 2, 5, 6), torch.randn(9, 2), index, None, 2), test_utils=tests
    )


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_use_the_formulas(dtype, gradients):
    x, parameters = torch.randn(1, 2, 5, 6, 7).to(dtype), [p.to(dtype) for p in branch_parameters(2)]
    with torch.set_grad_enabled(gradients):
        assert torch.equal(ops.branches(x, *parameters), formulas.branches(x, *parameters))


def test_eager_is_a_choice_and_other_words_are_refused(monkeypatch):
    x, parameters = torch.randn(1, 2, 5, 6, 7), branch_parameters(2)
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "eager")
    assert torch.equal(ops.branches(x, *parameters), formulas.branches(x, *parameters))
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "fast")
    with pytest.raises(UsageError, match="'fast'.*auto, eager or triton"):
        ops.branches(x, *parameters)


def activations_and_gradients(checkpointing):
    """Bytes kept for the backward pass besides parameters, and all gradients."""
    torch.manual_seed(0)
    network = GLIMS(1, 2, (32, 32, 32), feature_size=6, num_heads=(3,) * 5, checkpointing=checkpointing)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.randn(1, 1, 32, 32, 32))
    sum(output.square().mean() for output in outputs).backward()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    nbytes = sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)
    return nbytes, [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_memory_is_kept_where_there_is_enough(monkeypatch):
    decisions = []
    monkeypatch.setattr(cpu, "_set_keeping", decisions.append)
    monkeypatch.setattr(cpu, "_usable_memory", lambda: 16 * 2**30)
    for voxels in (0, 96**3, 2 * 128**3):
        cpu.keep_freed_memory(voxels)
    monkeypatch.setenv("NNUNET_GLIMS_KEEP_MEMORY", "0")
    cpu.keep_freed_memory(0)
    assert decisions == [True, True, False, False]


def test_a_network_tells_how_much_it_trains_on(monkeypatch):
    told = []
    monkeypatch.setattr("nnunet_glims.architectures.base.keep_freed_memory", told.append)
    network, x = GLIMS(1, 2, (16, 16, 16), feature_size=6, num_heads=(3,) * 5), torch.randn(2, 1, 16, 16, 16)
    network(x)
    with torch.no_grad():
        network(x)
    assert told == [2 * 16**3, 0]


@pytest.fixture
def always_worthwhile(monkeypatch):
    monkeypatch.setattr(Recomputing, "worthwhile", 0)


def test_small_volumes_are_not_computed_twice():
    assert activations_and_gradients("stages")[0] == activations_and_gradients("none")[0]


def test_checkpointing_changes_memory_not_gradients(always_worthwhile):
    straightforward, expected = activations_and_gradients("none")
    aggregators, found = activations_and_gradients("aggregators")
    torch.testing.assert_close(found, expected)
    stages, found = activations_and_gradients("stages")
    torch.testing.assert_close(found, expected)
    assert stages < aggregators < 0.5 * straightforward


def test_saved_activations_are_at_most_a_third_of_the_straightforward_ones(always_worthwhile, monkeypatch):
    by_default, _ = activations_and_gradients("aggregators")
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "eager")
    straightforward, _ = activations_and_gradients("none")
    assert by_default < 0.35 * straightforward
