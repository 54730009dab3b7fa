"""The Triton kernels: in Triton's interpreter, through Triton's compiler, and, where there is a GPU, on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_glims.architectures import GLIMS
from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import formulas, gpu, ops
from nnunet_glims.nnunet.plans.memory import training_step
from nnunet_glims.training.recipes import Recipe
from tests.kernels.test_kernels import branch_parameters, norm_parameters

needs_triton = pytest.mark.skipif(gpu.library() is None, reason="no Triton")
HERE = Path(__file__).parent


@needs_triton
@pytest.mark.slow
def test_the_interpreted_kernels_compute_the_formulas():
    """In a process of its own: Triton looks for the interpreter's variable when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "NNUNET_GLIMS_KERNELS": "triton", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    root = HERE.parent.parent
    run = subprocess.run(
        [*command, str(HERE / "interpreted_triton.py")], env=environment, cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def compiled(kernel, choice, warps, capability=80, precision="fp16"):
    """Compile a kernel for a GPU, which need not be there."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    pointers = {"x": precision, "y": precision, "gradient": precision, "of_x": precision}
    kinds = {"voxels": "i32", "eps": "fp32"} | dict.fromkeys(gpu.library().SIZES, "i32")
    types = {
        name: kinds.get(name) or ("constexpr" if name in choice else f"*{pointers.get(name, 'fp32')}")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in choice.items()}
    source = compiler.ASTSource(kernel, types, places)
    target = backends.GPUTarget("cuda", capability, 32)
    return compiler.compile(source, target=target, options={"num_warps": warps, "num_stages": 1})


@needs_triton
@pytest.mark.parametrize(
    ("name", "products", "carried"), [("_convolve", 81, 18), ("_convolve_back", 81, 6), ("_correlate", 3, 3)]
)
def test_convolutions_compile_with_every_product_and_every_unfinished_plane(name, products, carried, tmp_path):
    """What an interpreter cannot see: variables that the compiler takes for constants, registers that do not suffice."""
    tuned = getattr(gpu.library(), name)
    kernel = compiled(tuned.fn, tuned.configs[-1].kwargs, tuned.configs[-1].num_warps)
    text = kernel.asm["ttir"]
    loops = [line for line in text.splitlines() if "scf.for" in line]
    assert text.count("math.fma") == products and len(loops) == 1
    assert loops[0].split("->")[1].count("xf32>") == carried
    tool = Path(sys.modules["triton"].__file__).parent / "backends/nvidia/bin/cuobjdump"
    if tool.exists():
        (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        usage = subprocess.run(
            [tool, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
        )
        assert "STACK:0 " in usage.stdout


@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_without_neighbours_compile(precision):
    kernels = gpu.library()
    choice = {"BLOCK": kernels.SPAN_BLOCK, "SPAN": kernels.SPAN}
    for kernel in (kernels._moments, kernels._apply, kernels._add_gradients, kernels._input_gradient):
        assert compiled(kernel, choice, 4, precision=precision).asm["cubin"]
    assert compiled(kernels._combine, {"BLOCK": 256}, 4).asm["cubin"]


def test_cpu_tensors_are_refused_where_triton_is_asked_for(monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "triton")
    message = "'cpu'" if gpu.library() is not None else "cannot be imported"
    with pytest.raises(UsageError, match=f"NNUNET_GLIMS_KERNELS=triton: .*{message}.*auto or eager"):
        ops.norm_act(torch.randn(1, 1, 2, 2, 2), torch.rand(1))


def test_a_triton_that_cannot_be_imported_is_named_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_KERNELS", "triton")
    monkeypatch.setattr(gpu, "_loaded", lambda: ModuleNotFoundError("No module named 'triton'"))
    with pytest.raises(UsageError, match="Triton cannot be imported.*No module named 'triton'.*auto or eager"):
        ops.norm_act(torch.randn(1, 1, 2, 2, 2), torch.rand(1))
    assert not gpu.usable(torch.float32)


def test_what_gpus_keep_is_counted_without_one(monkeypatch):
    monkeypatch.setattr(gpu, "library", lambda: object())
    counted = {}
    for setting in ("auto", "eager"):
        monkeypatch.setenv("NNUNET_GLIMS_KERNELS", setting)
        network = GLIMS(1, 2, (32, 32, 32), feature_size=6, num_heads=(3,) * 5)
        counted[setting] = training_step(network, (32, 32, 32), 1, Recipe(), "cuda").kept
    assert counted["auto"] < 0.7 * counted["eager"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("error:The Triton kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 24, 96, 96, 96), (1, 24, 128, 128, 128), (2, 48, 37, 51, 43), (1, 7, 5, 200, 24)], ids=str
)
def test_on_a_gpu_kernels_compute_the_formulas(shape, dtype):
    torch.manual_seed(0)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for operation, formula, parameters in (
        (ops.branches, formulas.branches, branch_parameters(shape[1])),
        (lambda x, g, b, s: ops.norm_act(x, s, g, b), formulas.norm_act, norm_parameters(shape[1])),
    ):
        given = [torch.randn(shape).to(dtype), *parameters]
        given = [tensor.cuda().requires_grad_() for tensor in given]
        exact = [tensor.detach().double().requires_grad_() for tensor in given]
        y, expected = operation(*given), formula(*exact)
        incoming = torch.randn_like(y)
        pairs = [(y, expected)]
        pairs += zip(
            torch.autograd.grad(y, given, incoming),
            torch.autograd.grad(expected, exact, incoming.double()),
            strict=True,
        )
        for index, (found, wanted) in enumerate(pairs):
            if wanted.norm() > 1e-8:  # the bias of a convolution with a norm behind it has no gradient
                assert (found.double() - wanted).norm() / wanted.norm() < tolerance, index
