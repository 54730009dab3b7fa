import json

import pytest

from nnunet_glims.errors import UsageError
from nnunet_glims.networks import NETWORKS, network_named
from nnunet_glims.nnunet.plans.configuration import complete_configuration
from nnunet_glims.nnunet.plans.override import apply_override, load_override, override_names
from nnunet_glims.training.recipes import Recipe
from tests.preprocessed import DATASET, make_plans

PROMISED = {
    "cpu_demo", "glims_brats", "glims_btcv", "glims_low_vram", "glims_released_brats", "latupnet_brats", "latupnet_cpu_demo",
    "latupnet_low_vram", "latupnet_paper",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    plans = make_plans(patch_size=(128, 128, 128))
    del plans["configurations"]["3d_fullres"]["training"]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path = tmp_path / DATASET
    path.mkdir()
    (path / "nnUNetPlans.json").write_text(json.dumps(plans))
    return path


def own_override(tmp_path, **content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"description": "mine", "source": "ours", **content}))
    return str(path)


def test_the_promised_overrides_are_there():
    assert set(override_names()) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_each_override_applies_to_planned_data_and_its_network_can_be_built(folder, name):
    from nnunet_glims import architectures

    applied = apply_override(folder, name)
    written = json.loads(applied.path.read_text())
    assert applied.path == folder / f"nnUNetPlans_{name}.json"
    assert written["plans_name"] == applied.plans_name == f"nnUNetPlans_{name}"
    assert list(written["configurations"]) == ["3d_fullres"]
    configuration = written["configurations"]["3d_fullres"]
    _, override = load_override(name)
    for key in ("patch_size", "batch_size"):
        if getattr(override, key) is not None:
            assert configuration[key] == getattr(override, key)
    assert all(word in override.source for word in ("Ours",) if "Paper" not in override.source)
    if override.network is not None:
        architecture = configuration["architecture"]
        assert architecture["network_class_name"] == network_named(override.network).path
        assert configuration["training"] == Recipe(**configuration["training"]).model_dump()
        getattr(architectures, override.network)(2, 3, **architecture["arch_kwargs"])


def test_the_same_spacing_and_normalisation_share_the_preprocessed_data(folder):
    applied = apply_override(folder, "glims_brats")
    configuration = json.loads(applied.path.read_text())["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert applied.preprocess_command is None
    assert applied.trainer == "nnUNetTrainerGLIMS"


def test_other_normalisation_or_spacing_gets_data_of_its_own_and_says_how(folder, tmp_path):
    applied = apply_override(folder, "latupnet_paper")
    configuration = json.loads(applied.path.read_text())["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["RescaleTo01Normalization"] * 2
    assert configuration["data_identifier"] == "nnUNetPlans_latupnet_paper_3d_fullres"
    assert applied.preprocess_command == (
        "nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans_latupnet_paper -c 3d_fullres"
    )
    applied = apply_override(folder, own_override(tmp_path, spacing=[2, 1, 0.5]))
    configuration = json.loads(applied.path.read_text())["configurations"]["3d_fullres"]
    assert configuration["median_image_size_in_voxels"] == [18, 36, 72]
    assert "-plans_name nnUNetPlans_mine" in applied.preprocess_command


def test_the_released_override_names_the_released_trainer(folder):
    assert apply_override(folder, "glims_released_brats").trainer == "nnUNetTrainerGLIMSReleased"


def test_applying_twice_is_the_same_and_another_content_needs_overwrite(folder, tmp_path):
    name = own_override(tmp_path, batch_size=3)
    first = apply_override(folder, name).path.read_text()
    assert apply_override(folder, name).path.read_text() == first
    own_override(tmp_path, batch_size=4)
    with pytest.raises(UsageError, match="another plans file of that name.*--overwrite"):
        apply_override(folder, name)
    assert (folder / "nnUNetPlans_mine.json").read_text() == first
    apply_override(folder, name, overwrite=True)
    assert '"batch_size": 4' in (folder / "nnUNetPlans_mine.json").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"patch": [1, 2, 3]}, r"mine.json: patch: unknown key; did you mean 'patch_size'"),
        ({"patch_size": [96, 96]}, r"mine.json: patch_size: .*at least 3"),
        ({"batch_size": 0}, r"mine.json: batch_size: .*\(got 0\)"),
        ({"network": "GLIMZ"}, "network 'GLIMZ' is unknown: did you mean 'GLIMS'"),
        ({"network_arguments": {"feature_size": 12}}, "network_arguments: these need a network"),
        ({"training": {"lrr": 1}}, r"mine.json: training: lrr: unknown key; did you mean 'lr'"),
        ({"normalization_schemes": ["a"] * 3}, "normalization_schemes: 3 given for a data set of 2 channels"),
    ],
)
def test_a_wrong_override_names_file_and_key_and_writes_nothing(folder, tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        apply_override(folder, own_override(tmp_path, **content))
    assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(UsageError, match="'glims_bratz' is unknown: did you mean 'glims_brats'"):
        load_override("glims_bratz")
    with pytest.raises(UsageError, match=r"nowhere.json: there is no such file"):
        load_override(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken.json: this is not JSON"):
        load_override(str(tmp_path / "broken.json"))
    with pytest.raises(UsageError, match=r"nnUNetPlansX.json: there are no plans yet"):
        apply_override(folder, "glims_brats", base="nnUNetPlansX")
    with pytest.raises(UsageError, match="'3d_fulres' is not in the plans: did you mean '3d_fullres'"):
        apply_override(folder, "glims_brats", "3d_fulres")
    with pytest.raises(UsageError, match="'2d' is two-dimensional"):
        apply_override(folder, "glims_brats", "2d")


def test_completing_is_stable():
    network = network_named("GLIMS")
    once = complete_configuration(make_plans()["configurations"]["3d_fullres"], network, {}, "test")
    assert complete_configuration(once, network, {}, "test") == once


def test_every_network_has_a_trainer_and_a_class():
    from nnunet_glims import architectures, trainers

    for network in NETWORKS:
        assert getattr(trainers, network.trainer).light_network is network
        assert hasattr(architectures, network.name)
