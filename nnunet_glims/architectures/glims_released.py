"""The names of GLIMS' parameters in the authors' released model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

Names = Iterator[tuple[str, str]]


def names(network: nn.Module) -> Names:
    """Yield the pair (name here, released name) of every parameter of a `GLIMS`."""
    encoder, decoder = network.encoder, network.decoder
    yield from _unit("encoder.stem", "stem")
    for i in range(4):
        yield from _aggregators(f"encoder.stages.{i}", f"dmsf_{i + 1}")
        yield from _unit(f"encoder.stages.{i}.down", f"dmsf_{i + 1}.ds.conv_3x3")
        yield from _unit(f"decoder.stages.{i}.up", f"dmsu_{i + 1}.up.convT")
        yield from _unit(f"decoder.stages.{i}.fuse", f"dmsu_{i + 1}.conv1x1")
        yield from _aggregators(f"decoder.stages.{i}", f"dmsu_{i + 1}")
        yield from _layer(f"decoder.seg_layers.{i}", f"out{i + 1}.conv.conv")
    for i in range(5):
        yield from _gate(f"decoder.gates.{i}", f"csab{i + 1}")
    yield from _swin("encoder.swin_a", "t3.layer", encoder.swin_a)
    yield from _swin("encoder.swin_b", "t4_pre.layer", encoder.swin_b)
    yield "encoder.merge.reduction.weight", "t4_pre.layer.downsample.reduction.weight"
    yield from _layer("encoder.merge.norm", "t4_pre.layer.downsample.norm")
    yield from _swin("encoder.swin_c", "t4.layer", encoder.swin_c)
    yield "decoder.expand.expand.weight", "t4_post.layer.upsample.expand.weight"
    yield from _layer("decoder.expand.norm", "t4_post.layer.upsample.norm_layer")
    yield from _unit("decoder.fuse", "t4_post.layer.conv1x1")
    yield from _swin("decoder.swin_d", "t4_post.layer", decoder.swin_d)
    yield from _swin("decoder.swin_e", "t3_up.layer", decoder.swin_e)


def _layer(ours: str, released: str) -> Names:
    for parameter in ("weight", "bias"):
        yield f"{ours}.{parameter}", f"{released}.{parameter}"


def _unit(ours: str, released: str) -> Names:
    yield from _layer(f"{ours}.conv", f"{released}.conv")
    yield f"{ours}.act.weight", f"{released}.adn.A.weight"


def _aggregators(ours: str, released: str) -> Names:
    for block in range(2):
        mine, theirs = f"{ours}.blocks.{block}", f"{released}.l{block + 1}"
        for branch, name in enumerate(("conv_3x3", "conv_3x3_dil", "conv_3x3_dil2")):
            yield from _layer(f"{mine}.branches.{branch}.conv", f"{theirs}.{name}.conv")
            yield from _layer(f"{mine}.branches.{branch}.norm", f"{theirs}.{name}.norm")
            yield f"{mine}.branches.{branch}.act.weight", f"{theirs}.{name}.prelu.weight"
        yield from _unit(f"{mine}.expand", f"{theirs}.conv_1x1")
        yield from _unit(f"{mine}.reduce", f"{theirs}.conv_1x1_2")
        yield f"{mine}.unused_slope", f"{theirs}.prelu.weight"
        yield f"{mine}.act.weight", f"{theirs}.prelu2.weight"


def _gate(ours: str, released: str) -> Names:
    yield from _layer(f"{ours}.channel.0", f"{released}.ChannelGate.mlp.1")
    yield from _layer(f"{ours}.channel.2", f"{released}.ChannelGate.mlp.3")
    yield f"{ours}.spatial.conv.weight", f"{released}.SpatialGate.spatial.conv.weight"
    yield from _layer(f"{ours}.spatial.norm", f"{released}.SpatialGate.spatial.norm")
    yield f"{ours}.spatial.act.weight", f"{released}.SpatialGate.spatial.prelu.weight"


def _swin(ours: str, released: str, stage: nn.Module) -> Names:
    yield f"{ours}.position.weight", f"{released}.position_embeddings"
    for block in range(len(stage.blocks)):
        mine, theirs = f"{ours}.blocks.{block}", f"{released}.blocks.{block}"
        yield f"{mine}.attention.bias_table", f"{theirs}.attn.relative_position_bias_table"
        for part, name in (("attention.qkv", "attn.qkv"), ("attention.proj", "attn.proj")):
            yield from _layer(f"{mine}.{part}", f"{theirs}.{name}")
        for part in ("norm1", "norm2", "mlp.linear1", "mlp.linear2"):
            yield from _layer(f"{mine}.{part}", f"{theirs}.{part}")
        yield f"{mine}.mlp.act.weight", f"{theirs}.mlp.fn.weight"
