"""Write a network to a file: as ONNX with weights in float32, float16 or int8, or as TorchScript."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, StringIO
from math import isqrt, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_glims.errors import UsageError
from nnunet_glims.files import write_bytes
from nnunet_glims.kernels.ops import plain_operators

OPSETS = range(18, 21)
"""ONNX operator sets in which torch can export GLIMS, LATUP-Net, Swin UNETR and nnU-Net's U-Net. The more recent ones
need a more recent onnxruntime, so the lowest is the default."""

SMALLEST_COMPRESSED = 512
"""Weights with fewer values than this, or with one axis only (norms, biases, slopes), stay float32: they take little
room, and rounding them costs accuracy."""


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence logging, warnings and prints of torch's exporters, which are about the exporters themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_torchscript(network: nn.Module, patch: Tensor, path: Path) -> None:
    """Write a network as TorchScript, traced on a patch (1, channels, z, y, x). The file is valid for this size only."""
    content = BytesIO()  # torch ends the process where it cannot write to a disk
    with plain_operators(), _silenced(), torch.no_grad():
        torch.jit.save(torch.jit.trace(network, patch, check_trace=False), content)
    write_bytes(path, content.getvalue())


def write_onnx(network: nn.Module, patch: Tensor, path: Path, precision: str, opset: int) -> None:
    """Write a network as ONNX, with the input "image" and the output "logits".

    Args:
        network: the network in evaluation mode.
        patch: (1, channels, z, y, x). The file is valid for patches of this size only.
        path: file to write.
        precision: how weights are stored: "fp32", "fp16" or "int8". Arithmetic is float32 always.
        opset: ONNX operator set.

    Raises:
        UsageError: torch's exporter cannot write the network, or not in this operator set.
    """
    with plain_operators(), _silenced(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (patch,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:  # torch's exporter raises many kinds, with pages of advice to its developers
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(
                f"torch cannot export this network to ONNX ({reason}): try --format torchscript"
            ) from error
        assert program is not None
        model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise UsageError(f"--opset {opset}: torch cannot write this network in it, but in opset {written}")
    import onnx

    model = onnx.shape_inference.infer_shapes(model)
    _spell_out_norms(model)
    if precision != "fp32":
        _store_smaller(model, precision)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _spell_out_norms(model) -> None:
    """Replace each instance norm by elementary operators that compute means over rows, and then the mean of these.

    onnxruntime's own operator accumulates all voxels in a single float32. On a patch of 32×224×256 voxels this changed
    GLIMS' logits by 4 % of their standard deviation.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    known = (*graph.value_info, *graph.input, *graph.output)
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in known}
    nodes = []
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type == "InstanceNormalization" else None
        if not shape or 0 in shape:
            nodes.append(node)
            continue
        image, gain, shift = node.input
        name = f"{node.output[0]}_norm"
        voxels = prod(shape[2:])
        columns = next(count for count in range(isqrt(voxels), 0, -1) if voxels % count == 0)
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        constants = {
            "rows": np.array([*shape[:2], -1, columns]),
            "channel": np.array([1, -1, 1, 1]),
            "shape": np.array(shape),
            "last": np.array([3]),
            "before": np.array([2]),
            "columns": np.array(columns, np.float32),
            "epsilon": np.array(epsilon, np.float32),
        }
        graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{key}") for key, value in constants.items())
        for operator, inputs, output in (
            ("Reshape", (image, "/rows"), "/x"),
            ("ReduceMean", ("/x", "/last"), "/row_means"),
            ("ReduceMean", ("/row_means", "/before"), "/mean"),
            ("Sub", ("/x", "/mean"), "/centred"),
            ("ReduceSumSquare", ("/centred", "/last"), "/row_squares"),
            ("ReduceMean", ("/row_squares", "/before"), "/squares"),
            ("Div", ("/squares", "/columns"), "/variance"),
            ("Add", ("/variance", "/epsilon"), "/positive"),
            ("Sqrt", ("/positive",), "/deviation"),
            ("Reshape", (gain, "/channel"), "/gain"),
            ("Reshape", (shift, "/channel"), "/shift"),
            ("Div", ("/gain", "/deviation"), "/factor"),
            ("Mul", ("/centred", "/factor"), "/scaled"),
            ("Add", ("/scaled", "/shift"), "/y"),
            ("Reshape", ("/y", "/shape"), node.output[0]),
        ):
            names = [part.replace("/", f"{name}_", 1) if part.startswith("/") else part for part in (*inputs, output)]
            nodes.append(helper.make_node(operator, names[:-1], names[-1:], f"{names[-1]}_{operator}"))
    del graph.node[:]
    graph.node.extend(nodes)


def _store_smaller(model, precision: str) -> None:
    """Replace each large weight by its float16 or int8 version, which operators convert back when the file is loaded.

    int8 weights are scaled so that the largest magnitude of each slice along their first axis becomes 127.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    kept, nodes = [], []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < SMALLEST_COMPRESSED:
            kept.append(weight)
            continue
        stored, name = f"{weight.name}_{precision}", weight.name
        if precision == "fp16":
            kept.append(numpy_helper.from_array(values.astype(np.float16), stored))
            nodes.append(helper.make_node("Cast", [stored], [name], f"{name}_cast", to=TensorProto.FLOAT))
            continue
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
        scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
        kept.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), stored))
        kept.append(numpy_helper.from_array(scale, f"{name}_scale"))
        nodes.append(helper.make_node("Cast", [stored], [f"{name}_whole"], f"{name}_cast", to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], f"{name}_scaling"))
    nodes.extend(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
