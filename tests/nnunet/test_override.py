import json
import subprocess
import sys

import pytest

from nnunet_glims.errors import UsageError
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.plans.configuration import complete_configuration
from nnunet_glims.nnunet.plans.override import apply_override, load_override, override_names
from nnunet_glims.training.recipes import Recipe
from tests.preprocessed import DATASET, dataset_json, make_plans

PROMISED = {
    "cpu_demo", "glims_brats", "glims_btcv", "glims_low_vram", "glims_released_brats", "latupnet_brats", "latupnet_cpu_demo",
    "latupnet_low_vram", "latupnet_paper",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    plans = make_plans(patch_size=(128, 128, 128))
    del plans["configurations"]["3d_fullres"]["training"]
    lowres = {**plans["configurations"]["3d_fullres"], "spacing": [2.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_lowres"] = {**lowres, "data_identifier": "nnUNetPlans_3d_lowres"}
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
        assert applied.trainer in network_named(override.network).trainers


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
    applied = apply_override(folder, name)
    first = applied.path.read_text()
    again = apply_override(folder, name)
    assert again.path.read_text() == first
    assert (applied.was_written, again.was_written) == (True, False)
    own_override(tmp_path, batch_size=4)
    wanted = r"nnUNetPlans_mine.json: configurations.3d_fullres.batch_size is 3 in this file and would be 4 now: the settings"
    with pytest.raises(UsageError, match=f"{wanted}.* --overwrite"):
        apply_override(folder, name)
    assert (folder / "nnUNetPlans_mine.json").read_text() == first
    apply_override(folder, name, overwrite=True)
    assert '"batch_size": 4' in (folder / "nnUNetPlans_mine.json").read_text()


def change(path, *keys, value):
    """Replace one value in a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_second_configuration_is_added_and_both_stay(folder, tmp_path):
    name = own_override(tmp_path, network="LATUPNet", batch_size=3, patch_size=[64, 64, 64])
    for configuration in ("3d_fullres", "3d_lowres", "3d_fullres"):
        applied = apply_override(folder, name, configuration)
    written = json.loads(applied.path.read_text())
    assert list(written["configurations"]) == ["3d_fullres", "3d_lowres"]
    assert [content["spacing"] for content in written["configurations"].values()] == [[1, 1, 1], [2, 2, 2]]
    assert {content["batch_size"] for content in written["configurations"].values()} == {3}
    # An override that has changed since is asked about for all of them, and then holds for all of them.
    own_override(tmp_path, network="LATUPNet", batch_size=4, patch_size=[64, 64, 64])
    with pytest.raises(UsageError, match=r"batch_size is 3 in this file and would be 4 now"):
        apply_override(folder, name, "3d_lowres")
    apply_override(folder, name, "3d_lowres", overwrite=True)
    written = json.loads(applied.path.read_text())["configurations"]
    assert {name: content["batch_size"] for name, content in written.items()} == {"3d_fullres": 4, "3d_lowres": 4}


def test_a_configuration_that_the_base_lacks_by_now_is_named(folder, tmp_path):
    name = own_override(tmp_path, batch_size=3)
    path = apply_override(folder, name, "3d_lowres").path
    base = json.loads((folder / "nnUNetPlans.json").read_text())
    del base["configurations"]["3d_lowres"], base["configurations"]["3d_cascade_fullres"]
    (folder / "nnUNetPlans.json").write_text(json.dumps(base))
    before = path.read_text()
    with pytest.raises(
        UsageError,
        match=r"its configuration '3d_lowres' cannot be made from nnUNetPlans.json.*Delete the file",
    ):
        apply_override(folder, name)
    assert path.read_text() == before


def test_one_override_on_two_base_plans_makes_two_files(folder, tmp_path):
    (folder / "nnUNetResEncUNetMPlans.json").write_text((folder / "nnUNetPlans.json").read_text())
    name = own_override(tmp_path, batch_size=3)
    paths = [apply_override(folder, name, base=base).path.name for base in ("nnUNetPlans", "nnUNetResEncUNetMPlans")]
    assert paths == ["nnUNetPlans_mine.json", "nnUNetResEncUNetMPlans_mine.json"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("configurations", "3d_fullres", "batch_dice"), True, "configurations.3d_fullres.batch_dice is false in this file"),
        (("transpose_forward",), [2, 0, 1], r"transpose_forward is \[0, 1, 2\] in this file and would be \[2, 0, 1\] now"),
    ],
)  # fmt: skip
def test_base_plans_that_have_changed_since_are_named(folder, tmp_path, keys, value, message):
    name = own_override(tmp_path, batch_size=3)
    path = apply_override(folder, name).path
    before = path.read_text()
    change(folder / "nnUNetPlans.json", *keys, value=value)
    with pytest.raises(UsageError, match=rf"{message}.*nnUNetPlans.json has changed since.*--overwrite"):
        apply_override(folder, name)
    assert path.read_text() == before
    apply_override(folder, name, overwrite=True)
    made_again = path.read_text()
    assert made_again != before
    assert apply_override(folder, name).path.read_text() == made_again


def test_a_change_of_the_base_that_makes_no_difference_is_none(folder, tmp_path):
    name = own_override(tmp_path, batch_size=3)
    path = apply_override(folder, name).path
    change(folder / "nnUNetPlans.json", "configurations", "3d_fullres", "batch_size", value=17)
    apply_override(folder, name)
    assert json.loads(path.read_text())["configurations"]["3d_fullres"]["batch_size"] == 3


def test_a_file_that_was_changed_by_hand_or_has_no_record_says_so(folder, tmp_path):
    name = own_override(tmp_path, batch_size=3)
    path = apply_override(folder, name).path
    made = path.read_text()
    change(path, "configurations", "3d_fullres", "batch_size", value=5)
    with pytest.raises(UsageError, match="batch_size is 5 in this file and would be 3 now: it was changed by hand"):
        apply_override(folder, name)
    changed = json.loads(path.read_text())
    del changed["nnunet_glims"]
    path.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="another plans file of that name, which does not say what it was made from"):
        apply_override(folder, name)
    # A file of the last release has no record; with the same content it is taken over and gets one.
    changed["configurations"]["3d_fullres"]["batch_size"] = 3
    path.write_text(json.dumps(changed))
    apply_override(folder, name)
    assert path.read_text() == made


def test_a_damaged_record_is_named(folder, tmp_path):
    name = own_override(tmp_path, batch_size=3)
    path = apply_override(folder, name).path
    change(path, "nnunet_glims", value={"version": "1"})
    change(path, "configurations", "3d_fullres", "batch_size", value=4)
    with pytest.raises(UsageError, match=r"nnUNetPlans_mine.json: nnunet_glims: base: this key is required"):
        apply_override(folder, name)


def test_plans_say_what_they_were_made_from_and_nnunet_does_not_mind(folder, tmp_path):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_glims import __version__

    path = apply_override(folder, own_override(tmp_path, batch_size=3)).path
    record = json.loads(path.read_text())["nnunet_glims"]
    assert record["base"] == "nnUNetPlans" and record["version"] == __version__
    assert record["overrides"] == {"3d_fullres": {"description": "mine", "source": "ours", "batch_size": 3}}
    manager = PlansManager(str(path))
    assert manager.plans_name == "nnUNetPlans_mine"
    assert manager.get_configuration("3d_fullres").batch_size == 3
    assert manager.available_configurations == ["3d_fullres"]


def test_data_that_no_longer_fit_are_preprocessed_again(folder, tmp_path):
    name = own_override(tmp_path, spacing=[2, 1, 1])
    preprocess = "nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans_mine -c 3d_fullres"
    assert apply_override(folder, name).next_commands[0] == preprocess
    (folder / "nnUNetPlans_mine_3d_fullres").mkdir()
    assert apply_override(folder, name).is_preprocessed
    own_override(tmp_path, spacing=[3, 1, 1])
    applied = apply_override(folder, name, overwrite=True)
    assert not applied.is_preprocessed and applied.next_commands[0] == preprocess


def test_an_override_without_network_keeps_the_one_of_the_base(folder, tmp_path):
    apply_override(folder, "glims_low_vram")
    applied = apply_override(folder, own_override(tmp_path, patch_size=[64, 32, 32]), base="nnUNetPlans_glims_low_vram")
    assert applied.trainer == "nnUNetTrainerGLIMS"
    architecture = json.loads(applied.path.read_text())["configurations"]["3d_fullres"]["architecture"]
    assert architecture["arch_kwargs"]["feature_size"] == 12
    assert architecture["arch_kwargs"]["patch_size"] == [64, 32, 32]
    assert architecture["arch_kwargs"]["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 4 + [[2, 1, 1]]


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("GLIMS", {"featuresize": 12}, "featuresize: unknown key; did you mean 'feature_size'"),
        ("GLIMS", {"feature_size": "abc"}, r"feature_size: a whole number is wanted, not the text .abc."),
        ("GLIMS", {"feature_size": 12.0}, r"feature_size: a whole number is wanted, not 12.0"),
        ("GLIMS", {"feature_size": -24}, "feature_size: -24: .*feature_size -24 must be a positive number"),
        ("GLIMS", {"feature_size": 0}, "feature_size: 0: .*feature_size 0 must be a positive number"),
        ("GLIMS", {"feature_size": 7}, "feature_size: 7: .*cannot be split over 6 attention heads"),
        ("GLIMS", {"feature_size": 12, "depths": [1, 2]}, r"depths: \[1, 2\]: .*five positive numbers"),
        ("GLIMS", {"num_heads": [5] * 5}, "num_heads: .*cannot be split over 5 attention heads"),
        ("GLIMS", {"num_classes": 3}, "num_classes: nnU-Net sets this"),
        ("GLIMS", {"released": True}, "released: True: .*96×96×96 patches"),  # the base plans 128³
        ("LATUPNet", {"released": True}, "released: unknown key; known are patch_size, strides, features"),
        ("LATUPNet", {"atention": "ECA"}, "atention: unknown key; did you mean 'attention'"),
        ("LATUPNet", {"attention": "ECB"}, "attention: 'ECB': .*is unknown"),
        ("LATUPNet", {"dropout": -0.5}, "dropout: -0.5: .*probability"),
        ("SwinUNETR", {"depths": [0] * 4}, r"depths: \[0, 0, 0, 0\]: .*four positive numbers"),
        ("SwinUNETR", {"feature_size": 12, "num_heads": [5] * 4}, r"num_heads: \[5, 5, 5, 5\]: SwinUNETR cannot be built"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_built_is_refused_before_anything_is_written(
    folder, tmp_path, network, arguments, message
):
    if network == "SwinUNETR":
        pytest.importorskip("monai")
    name = own_override(tmp_path, network=network, network_arguments=arguments, training={"lr": 0.1})
    load_override(name)  # this stays without torch
    with pytest.raises(UsageError, match=f"mine.json: network_arguments: {message}"):
        apply_override(folder, name)
    assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]


def test_swin_unetr_is_checked_and_written_too(folder, tmp_path):
    pytest.importorskip("monai")
    arguments = {"feature_size": 12, "depths": [1] * 4}
    name = own_override(tmp_path, network="SwinUNETR", network_arguments=arguments, patch_size=[64, 64, 64])
    assert apply_override(folder, name).trainer == "nnUNetTrainerSwinUNETR"


def test_networks_are_checked_with_the_channels_and_classes_of_the_data(folder, monkeypatch):
    from nnunet_glims.nnunet.plans import building

    seen = []
    real = building.build_without_content
    monkeypatch.setattr(building, "build_without_content", lambda *given: seen.append(given[1:3]) or real(*given))
    apply_override(folder, "latupnet_brats")
    (folder / "dataset.json").write_text(json.dumps(dataset_json()))
    apply_override(folder, "latupnet_low_vram")
    assert seen == [(2, 2), (2, 3)]


def test_listing_overrides_stays_without_torch():
    code = "import sys; from nnunet_glims.cli import main; main(['plans', 'list']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"patch": [1, 2, 3]}, r"mine.json:1: patch: unknown key; did you mean 'patch_size'"),
        ({"patch_size": [96, 96]}, r"mine.json:1: patch_size: at least 3"),
        ({"batch_size": 0}, r"mine.json:1: batch_size: a number of at least 1 is wanted, not 0"),
        ({"network": "GLIMZ"}, "mine.json: network 'GLIMZ' is unknown: did you mean 'GLIMS'"),
        ({"network_arguments": {"feature_size": 12}}, "network_arguments: these need a network"),
        ({"training": {"lrr": 1}}, r"mine.json: training: lrr: unknown key; did you mean 'lr'"),
        ({"normalization_schemes": ["a"] * 3}, "normalization_schemes: 3 given for a data set of 2 channels"),
        (
            {"normalization_schemes": ["CTNormalization", "ZscoreNormalization"]},
            "normalization_schemes: nnU-Net has no normalisation 'ZscoreNormalization': did you mean 'ZScoreNormalization'",
        ),
        ({"normalization_schemes": ["np"]}, "nnU-Net has no normalisation 'np': known are CTNormalization"),
    ],
)
def test_a_wrong_override_names_file_and_key_and_writes_nothing(folder, tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        apply_override(folder, own_override(tmp_path, **content))
    assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]


@pytest.mark.parametrize(
    "content", ["[]", "3", "{}", '{"configurations": []}', '{"configurations": {"3d_fullres": []}}']
)
@pytest.mark.parametrize("name", ["nnUNetPlans", "nnUNetPlans_glims_brats"])
def test_a_file_that_holds_no_plans_is_named(folder, name, content):
    path = folder / f"{name}.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"(?s){name}.json:1: .* is (wanted|required).*These are no plans"):
        apply_override(folder, "glims_brats")
    assert path.read_text() == content


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(UsageError, match="'glims_bratz' is unknown: did you mean 'glims_brats'"):
        load_override("glims_bratz")
    with pytest.raises(UsageError, match=r"nowhere.json: there is no such file"):
        load_override(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken.json:1: this is not JSON"):
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
