"""What every network owes nnU-Net: constructor, shapes, deep supervision, JSON arguments, trainability."""

import json

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_glims.architectures import GLIMS, LATUPNet, SwinUNETR
from nnunet_glims.errors import UsageError

SMALL = {
    "GLIMS": (GLIMS, {"patch_size": [32, 32, 32], "feature_size": 12, "depths": [2, 2, 2, 2, 2]}),
    "LATUPNet": (LATUPNet, {"patch_size": [32, 32, 32]}),
    "SwinUNETR": (SwinUNETR, {"patch_size": [32, 32, 32], "feature_size": 12}),
}
HEADS = {"GLIMS": 4, "LATUPNet": 3, "SwinUNETR": 1}


def image(name, batch=1, channels=2):
    return torch.randn(batch, channels, *SMALL[name][1]["patch_size"])


@pytest.fixture(params=SMALL)
def named(request):
    if request.param == "SwinUNETR":
        pytest.importorskip("monai")
    return request.param


def build(name, channels=2, classes=3, **overrides):
    network_class, arguments = SMALL[name]
    return network_class(channels, classes, **{**arguments, **overrides})


def test_a_plans_file_can_name_it(named):
    network_class, arguments = SMALL[named]
    path = f"nnunet_glims.architectures.{network_class.__name__}"
    network = get_network_from_plans(path, json.loads(json.dumps(arguments)), [], 2, 3, deep_supervision=False)
    assert type(network) is network_class
    x = image(named)
    assert network(x).shape == (1, 3, *x.shape[2:])


def test_deep_supervision_gives_a_list_finest_first_and_can_be_switched_off(named):
    network = build(named, deep_supervision=True).eval()
    x = image(named)
    with torch.no_grad():
        outputs = network(x)
        assert [tuple(out.shape[2:]) for out in outputs] == [(x.shape[2] >> i,) * 3 for i in range(HEADS[named])]
        assert network.deep_supervision_scales() == [[0.5**i] * 3 for i in range(HEADS[named])]
        network.decoder.deep_supervision = False
        assert torch.equal(network(x), outputs[0])


def test_weights_trained_with_deep_supervision_load_without_it(named):
    trained = build(named, deep_supervision=True).eval()
    for_prediction = build(named, deep_supervision=False).eval()
    for_prediction.load_state_dict(trained.state_dict())
    x = image(named)
    with torch.no_grad():
        assert torch.equal(for_prediction(x), trained(x)[0])


def test_every_trainable_parameter_gets_a_gradient(named):
    # A parameter without one would stop distributed training.
    network = build(named, deep_supervision=True)
    sum(out.square().mean() for out in network(image(named, batch=2))).backward()
    without = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)


def test_cases_of_a_batch_do_not_see_each_other(named):
    network = build(named, deep_supervision=False).eval()
    x = image(named, batch=2)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(x[:1]), network(x[1:])])
    # Rounding differs with the batch size; a batch statistic would differ by the order of the output itself.
    assert (together - alone).abs().max() < 1e-2 * alone.std()


def test_building_leaves_the_global_random_state_to_the_user(named):
    torch.manual_seed(1)
    first = build(named).state_dict()
    second = build(named).state_dict()
    torch.manual_seed(1)
    again = build(named).state_dict()
    weight = next(name for name, value in first.items() if value.ndim == 5)
    assert torch.equal(first[weight], again[weight])
    assert not torch.equal(first[weight], second[weight])


def test_wrong_channels_are_named(named):
    with pytest.raises(UsageError, match=r"\(1, 5, .*built for 2 input channels"):
        build(named)(image(named, channels=5))
    with pytest.raises(UsageError, match="num_classes must be at least 1, not 0"):
        build(named, classes=0)


def test_logits_leave_in_float32_under_autocast_and_precision_overrules_the_caller(named):
    network = build(named, deep_supervision=False).eval()
    x = image(named)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced = network(x)
            network.precision = "fp32"
            overruled = network(x)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, full)
    assert torch.equal(overruled, full)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GLIMS", "LATUPNet"])
def test_it_compiles_without_a_graph_break(name):
    depths = {"depths": [2, 1, 1, 1, 1]} if name == "GLIMS" else {}  # two blocks, of which one shifts its windows
    network = build(name, deep_supervision=False, **depths).eval()
    x = image(name)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), network(x))


PLANNED = [
    ((40, 56, 40), None),
    ((16, 64, 64), (7.7, 1.25, 1.25)),
    ((20, 160, 128), (5.0, 0.7, 0.7)),
    ((96, 64, 48), None),
    ((64, 96, 64), None),
]
"""Of each of the patches below one that is smaller and has the same strides."""
PLANNED_ON_A_GPU = [
    ((32, 224, 256), (7.7, 1.25, 1.25)),
    ((20, 320, 256), (5.0, 0.7, 0.7)),
    ((160, 128, 112), None),
    ((64, 192, 160), None),
]


@pytest.mark.parametrize(
    ("patch", "spacing"),
    PLANNED + [pytest.param(*planned, marks=pytest.mark.long) for planned in PLANNED_ON_A_GPU],
    ids=lambda value: "x".join(map(str, value or ())),
)
@pytest.mark.parametrize("name", ["GLIMS", "LATUPNet"])
def test_any_patch_nnunet_plans_runs_forward_and_backward(name, patch, spacing):
    from nnunet_glims.topology import stage_strides

    narrow = {"GLIMS": {"feature_size": 3, "num_heads": [3] * 5}, "LATUPNet": {"features": [16, 16, 16]}}[name]
    stages = {"GLIMS": 6, "LATUPNet": 4}[name]
    network = build(
        name, 1, 2, patch_size=patch, strides=stage_strides(patch, spacing, stages), deep_supervision=True, **narrow
    )
    outputs = network(torch.randn(1, 1, *patch))
    assert outputs[0].shape == (1, 2, *patch)
    sum(out.square().mean() for out in outputs).backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)
    for out, scale in zip(outputs, network.deep_supervision_scales(), strict=True):
        assert out.shape[2:] == tuple(round(size * part) for size, part in zip(patch, scale, strict=True))
