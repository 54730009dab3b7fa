"""predict-onnx with exports whose model.json or networks are damaged, or were made to harm."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nnunet_glims.cli import main

from . import head, write_case

PATCH = (8, 8, 8)


def network(inputs=2, outputs=3, patch=PATCH, kind=TensorProto.FLOAT, factor=1.0, extra_input=False):
    """An ONNX network whose outputs are multiples of its first channel."""
    given = [helper.make_tensor_value_info("x", kind, [1, inputs, *patch])]
    if extra_input:
        given.append(helper.make_tensor_value_info("y", kind, [1]))
    made = helper.make_tensor_value_info("logits", kind, [1, outputs, *patch])
    weight = helper.make_tensor("w", kind, [outputs, inputs, 1, 1, 1], np.full(outputs * inputs, factor).tolist())
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["logits"])], "network", given, [made], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def describe(folder, name="fold_0.onnx"):
    """The content of model.json for a network file of the folder."""
    resampling = {"order": 1, "force_separate_z": None, "anisotropy_threshold": 3}
    return {
        "version": 1,
        "format": "onnx",
        "precision": "fp32",
        "opset": 18,
        "dataset": "Dataset001_A",
        "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans",
        "configuration": "3d_fullres",
        "licence": "none",
        "versions": {},
        "channels": ["a", "b"],
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "one": 1, "two": 2},
        "regions_class_order": None,
        "outputs": 3,
        "patch_size": list(PATCH),
        "spacing": [1.0, 1.0, 1.0],
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "normalization": [{"scheme": "ZScoreNormalization", "use_mask": False}] * 2,
        "resampling_image": resampling,
        "resampling_logits": resampling,
        "sliding_window": {
            "step": 0.5,
            "gaussian_sigma_scale": 0.125,
            "gaussian_value_scaling": 10,
            "mirror_axes": [0, 1],
        },
        "folds": [{"fold": "0", "file": name, "sha256": sha256(folder / name), "parity": []}],
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with an export and an image."""
    root = tmp_path_factory.mktemp("exports")
    write_case(root / "images", "one", head((10, 9, 8)))
    (root / "export").mkdir()
    onnx.save(network(), root / "export/fold_0.onnx")
    (root / "export/model.json").write_text(json.dumps(describe(root / "export")))
    return root


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def predict(folder):
    return main(["predict-onnx", str(folder / "export"), str(folder / "images"), "-o", str(folder / "labels")])


def refused(folder, capsys, code=1):
    assert predict(folder) == code
    assert not (folder / "labels").exists() or not list((folder / "labels").iterdir())
    error = capsys.readouterr().err
    assert "--debug" not in error and "pydantic" not in error
    return error


def change(folder, **changes):
    """Write model.json with other values; a key in two parts with a dot is one of the mapping inside."""
    content = describe(folder / "export")
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            content[outer] = {**content[outer], inner: value}
        else:
            content[outer] = value
    (folder / "export/model.json").write_text(json.dumps(content, indent=1))


def test_the_export_is_whole(folder):
    assert predict(folder) == 0
    assert [path.name for path in (folder / "labels").iterdir()] == ["one.nii.gz"]


@pytest.mark.parametrize(
    "key", ["channels", "file_ending", "labels", "outputs", "patch_size", "spacing", "folds", "version"]
)
def test_every_key_is_needed(key, folder, capsys):
    content = describe(folder / "export")
    del content[key]
    (folder / "export/model.json").write_text(json.dumps(content))
    error = refused(folder, capsys)
    assert str(folder / "export/model.json") in error and f"{key}: this key is required" in error


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "7", "null", '"text"', '{"version": 1', "\0\0\0\0"])
def test_other_files_are_no_model_json(text, folder, capsys):
    (folder / "export/model.json").write_text(text)
    assert str(folder / "export/model.json") in refused(folder, capsys)


CT = {
    "scheme": "CTNormalization",
    "use_mask": False,
    "mean": 1,
    "std": 2,
    "percentile_00_5": -2,
    "percentile_99_5": 4,
}
WRONG = {
    "version": [2, "1", None, True, 1.5],
    "format": ["tflite", 1],
    "precision": ["fp8"],
    "channels": [[], "ab", [1, 2], None, ["a"]],
    "file_ending": ["/../../evil.nii.gz", "", "nii.gz", None, "..\\x"],
    "labels": [[], {"one": "1"}, {"one": -1}, {"background": 0}, None],
    "regions_class_order": [[], [1, 2], ["a", "b", "c"], 3],
    "outputs": [0, -1, 2, "3", 3.5, None],
    "patch_size": [[], [8, 8], [8, 8, 8, 8], [8, 8, 0], [8, 8, -8], [8, 8, 1e6], [10**6] * 3, [8.5, 8, 8], "888", None],
    "spacing": [[], [1, 1], [1, 1, 0], [1, 1, -1], ["1", 1, 1], 1, None, [1, 1, 1, 1]],
    "transpose_forward": [[0, 1], [0, 1, 3], [0, 0, 1], [1, 0, 2], None],
    "normalization": [
        [],
        [{"scheme": "ZScoreNormalization", "use_mask": False}],
        [{"scheme": "Mine", "use_mask": False}] * 2,
        [{"scheme": "CTNormalization", "use_mask": False}] * 2,
        [{"scheme": "ZScoreNormalization", "use_mask": "no"}] * 2,
        [{**CT, "std": 0}] * 2,
        [{**CT, "percentile_00_5": 5}] * 2,
    ],
    "resampling_image__order": [-1, 9, "3", None],
    "resampling_logits__anisotropy_threshold": [0, None],
    "sliding_window__step": [0, -0.5, 1e-9, 2, None],
    "sliding_window__gaussian_sigma_scale": [0, -1, 1e-300],
    "sliding_window__gaussian_value_scaling": [0, 1e300],
    "sliding_window__mirror_axes": [[3], [-1], [0, 0], 0],
    "folds": [[], {}, [3], [{"fold": "0"}], None],
    "patch_sise": [[8, 8, 8]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str)
def test_wrong_values_are_named(key, value, folder, capsys):
    change(folder, **{key: value})
    error = refused(folder, capsys)
    assert str(folder / "export/model.json") in error
    words = {"transpose_forward": "transpose_"}.get(key, key.replace("__", "."))
    assert words in error or (key in ("labels", "regions_class_order") and "outputs" in error)


@pytest.mark.parametrize("spacing", [[1e-6] * 3, [1e-9, 1, 1]])
def test_a_spacing_at_which_no_image_fits_into_memory_is_refused(spacing, folder, capsys):
    change(folder, spacing=spacing)
    error = refused(folder, capsys)
    assert "one_0000.nii.gz" in error and "the spacing of the image or of the model is wrong" in error


def test_a_spacing_at_which_the_image_is_less_than_a_voxel_is_refused_alike(folder, capsys):
    change(folder, spacing=[1000] * 3)
    assert "less than a voxel of the model's" in refused(folder, capsys)


@pytest.mark.parametrize("place", ["images", "images/labels", "export", "export/labels"])
def test_label_maps_do_not_go_among_images_or_into_the_export(place, folder, capsys):
    before = sorted(folder.rglob("*"))
    for images in ([folder / "images"], sorted((folder / "images").iterdir())):
        code = main(["predict-onnx", str(folder / "export"), *map(str, images), "-o", str(folder / place)])
        if place == "images/labels" and len(images) > 1:  # files may be given from a folder that has one for results
            assert code == 0
        else:
            assert code == 2 and sorted(folder.rglob("*")) == before


def test_a_version_of_the_future_says_so_alone(folder, capsys):
    change(folder, version=2, window={"new": True}, channels=None)
    error = refused(folder, capsys)
    assert "version 2" in error and "export the model again" in error
    assert "window" not in error


@pytest.mark.parametrize(
    "name",
    ["../outside.onnx", "{root}/outside.onnx", "sub/../../outside.onnx", "..\\outside.onnx", "..", "", "C:x.onnx"],
)
def test_network_files_lie_in_the_folder(name, folder, capsys):
    shutil.copy(folder / "export/fold_0.onnx", folder / "outside.onnx")
    (folder / "export/sub").mkdir()
    fold = describe(folder / "export")["folds"][0]
    change(folder, folds=[{**fold, "file": name.format(root=folder)}])
    error = refused(folder, capsys)
    assert "folds.0.file: " in error and "is no name of a file in this folder" in error


def test_a_fold_counts_once(folder, capsys):
    fold = describe(folder / "export")["folds"][0]
    change(folder, folds=[fold, fold])
    assert "folds: 0, 0: each fold stands there once" in refused(folder, capsys)


@pytest.mark.parametrize("threads", ["0", "-1", "10000000000"])
def test_numbers_of_threads_have_limits(threads, folder, capsys):
    arguments = [str(folder / "export"), str(folder / "images"), "-o", str(folder / "labels"), "--threads", threads]
    assert main(["predict-onnx", *arguments]) == 2
    assert f"--threads {threads}" in capsys.readouterr().err


def test_links_out_of_the_folder_are_refused(folder, capsys):
    (folder / "export/fold_0.onnx").rename(folder / "outside.onnx")
    (folder / "export/fold_0.onnx").symlink_to(folder / "outside.onnx")
    error = refused(folder, capsys)
    assert "leads out of the folder" in error and str(folder / "outside.onnx") in error


def test_a_link_to_the_folder_is_followed(folder):
    (folder / "export").rename(folder / "elsewhere")
    (folder / "export").symlink_to(folder / "elsewhere")
    assert predict(folder) == 0


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x09" + b"\xff" * 40, "cut"], ids=str)
def test_networks_that_cannot_be_opened_are_named(content, folder, capsys):
    path = folder / "export/fold_0.onnx"
    path.write_bytes(path.read_bytes()[:-30] if content == "cut" else content)
    change(folder)  # with the checksum of the damaged file
    error = refused(folder, capsys)
    assert f"{path}: onnxruntime cannot open this file" in error


OTHERS = {
    "channels": {"inputs": 3},
    "outputs": {"outputs": 2},
    "patch": {"patch": (8, 8, 16)},
    "two dimensions": {"patch": (8, 8)},
    "doubles": {"kind": TensorProto.DOUBLE},
    "two inputs": {"extra_input": True},
}


@pytest.mark.parametrize("what", OTHERS)
def test_networks_that_model_json_does_not_describe_are_refused(what, folder, capsys):
    path = folder / "export/fold_0.onnx"
    onnx.save(network(**OTHERS[what]), path)
    change(folder)
    error = refused(folder, capsys)
    assert str(path) in error
    assert "by model.json it is one tensor(float)" in error or "onnxruntime cannot open" in error


def test_logits_that_are_not_finite_are_refused(folder, capsys):
    path = folder / "export/fold_0.onnx"
    onnx.save(network(factor=float("nan")), path)
    change(folder)
    assert f"{path}: the network's logits are not finite" in refused(folder, capsys)
