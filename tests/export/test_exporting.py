import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from onnx import numpy_helper

from nnunet_glims.cli import main
from nnunet_glims.export import exporting, parity
from nnunet_glims.export.description import GAUSSIAN_SIGMA_SCALE, GAUSSIAN_VALUE_SCALING, STEP
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.export.exporting import ExportRequest, export
from nnunet_glims.export.parity import ParityError
from tests.preprocessed import DATASET
from tests.test_files import largest_file

from . import head, write_case, write_model_folder

SPACING = (1.0, 1.1, 4.0)


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder of nnU-Net's own U-Net with two folds."""
    settings = {"spacing": [3.0, 1.0, 1.0]}
    return write_model_folder(tmp_path_factory.mktemp("model"), folds=("0", "1"), regions=True, **settings)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Its export."""
    out = tmp_path_factory.mktemp("export") / "out"
    export(trained, out)
    return out


@pytest.fixture
def copied(exported, tmp_path):
    """An export that a test may damage."""
    return shutil.copytree(exported, tmp_path / "copied")


@pytest.fixture
def images(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        write_case(tmp_path / "images", name, head(seed=seed), SPACING)
    return tmp_path / "images"


def nnunet_prediction(folder, images, out, mirror, folds):
    """nnU-Net's label maps (z, y, x), by case."""
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    cases = [[str(images / f"{case}_{channel:04d}.nii.gz") for channel in (0, 1)] for case in ("one", "two")]
    out.mkdir()
    predictor.predict_from_files_sequential(cases, [str(out / case) for case in ("one", "two")])
    return {path.name: sitk.ReadImage(str(path)) for path in sorted(out.glob("*.nii.gz"))}


@pytest.mark.parametrize(("mirror", "sums"), [(True, "float32"), (False, "float32"), (False, "half")])
def test_predictions_are_nnunets_on_the_images_grid(trained, exported, images, tmp_path, monkeypatch, mirror, sums):
    monkeypatch.setattr(torch, "half", getattr(torch, sums))  # what nnU-Net adds up logits in
    expected = nnunet_prediction(trained, images, tmp_path / "nnunet", mirror, (0, 1))
    options = [] if mirror else ["--disable_tta"]
    assert main(["predict-onnx", str(exported), str(images), "-o", str(tmp_path / "out"), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    for name, reference in expected.items():
        found = sitk.ReadImage(str(tmp_path / "out" / name))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(found, what)() == getattr(reference, what)()
        found, reference = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(reference)
        assert set(np.unique(reference)) == {0, 1, 2}
        if sums == "half":
            assert (found == reference).mean() > 0.995  # see test_runner: half precision decides at the crop's edges
        else:
            np.testing.assert_array_equal(found, reference)


def test_channel_files_of_one_case_and_going_on(exported, images, tmp_path, capsys):
    files = [str(images / f"one_{channel:04d}.nii.gz") for channel in (0, 1)]
    command = ["predict-onnx", str(exported), *files, "-o", str(tmp_path / "out"), "--threads", "1", "--device", "cpu"]
    assert main(command) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.nii.gz"]
    assert "1 of 1" in capsys.readouterr().out
    assert main([*command, "--continue_prediction"]) == 0
    assert capsys.readouterr().out == ""


def test_the_settings_that_nnunet_has_in_its_code_are_its_own():
    step = inspect.signature(nnUNetPredictor.__init__).parameters["tile_step_size"].default
    sigma = inspect.signature(compute_gaussian).parameters["sigma_scale"].default
    assert (step, sigma) == (STEP, GAUSSIAN_SIGMA_SCALE)
    scaling = f"value_scaling_factor={GAUSSIAN_VALUE_SCALING:g}"
    assert scaling in inspect.getsource(nnUNetPredictor._internal_predict_sliding_window_return_logits)


def test_model_json_says_what_a_runner_needs(exported):
    content = json.loads((exported / "model.json").read_text())
    assert content["channels"] == ["a", "b"]
    assert content["patch_size"] == [16, 16, 16]
    assert content["regions_class_order"] == [1, 2]
    assert content["sliding_window"]["mirror_axes"] == [0, 1, 2]
    assert content["normalization"][0] == {
        "scheme": "ZScoreNormalization",
        "use_mask": False,
        **dict.fromkeys(("mean", "std", "percentile_00_5", "percentile_99_5")),
    }
    assert [fold["fold"] for fold in content["folds"]] == ["0", "1"]
    assert content["folds"][0]["parity"][0]["relative_error"] < 1e-3
    assert "licence" in content["licence"]
    assert ExportedModel.read(exported).spacing == (3.0, 1.0, 1.0)
    network = onnx.load(exported / "fold_0.onnx")
    assert network.opset_import[0].version == 18
    assert [d.dim_value for d in network.graph.input[0].type.tensor_type.shape.dim] == [1, 2, 16, 16, 16]


FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is forbidden here")

FORBIDDEN = {"torch", "nnunetv2", "rich", "pandas", "monai", "nibabel", "batchgenerators", "acvl_utils"}
sys.meta_path.insert(0, Forbid())
from nnunet_glims.cli import main
code = main(sys.argv[1:])
assert not FORBIDDEN & set(sys.modules), FORBIDDEN & set(sys.modules)
sys.exit(code)
"""


def test_predicting_imports_neither_torch_nor_nnunet(exported, images, tmp_path):
    command = ["predict-onnx", exported, images, "-o", tmp_path / "out", "--disable_tta"]
    result = subprocess.run(
        [sys.executable, "-c", FORBID, *map(str, command)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("network", ["GLIMS", "LATUPNet", "SwinUNETR"])
def test_our_networks_survive(network, tmp_path):
    if network == "SwinUNETR":
        pytest.importorskip("monai")
    folder = write_model_folder(tmp_path, network)
    before = dict(os.environ)
    written = export(folder, tmp_path / "out")
    assert written.folds[0].parity[0]["relative_error"] < 1e-3
    assert "Apache-2.0" in written.licence
    assert dict(os.environ) == before
    script = export(folder, tmp_path / "script", ExportRequest(format="torchscript"))
    assert script.folds[0].parity[0]["relative_error"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "part"), [("fp16", 0.6), ("int8", 0.4)])
def test_smaller_files(trained, exported, tmp_path, monkeypatch, precision, part):
    monkeypatch.setattr(exporting.conversion, "SMALLEST_COMPRESSED", 10)  # these networks are tiny
    monkeypatch.setitem(parity.TOLERANCES, "int8", parity.Tolerance(agreement=0.9))  # and the patch is noise
    monkeypatch.setitem(parity.TOLERANCES, "fp16", parity.Tolerance(relative_error=0.02, agreement=0.99))
    out = tmp_path / "out"
    assert main(["export", str(trained), str(out), "--precision", precision, "--folds", "1"]) == 0
    model = ExportedModel.read(out)
    assert model.precision == precision
    assert 0 < model.folds[0].parity[0]["relative_error"] < 0.3

    def stored(folder):
        weights = onnx.load(folder / "fold_1.onnx").graph.initializer
        return sum(numpy_helper.to_array(weight).nbytes for weight in weights)

    assert stored(out) < part * stored(exported)


def test_torchscript_is_written_and_not_run_by_the_onnx_runner(trained, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(trained), str(out), "--format", "torchscript", "--folds", "0"]) == 0
    loaded = torch.jit.load(out / "fold_0.pt")
    assert loaded(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
    assert main(["predict-onnx", str(out), str(images), "-o", str(tmp_path / "labels")]) == 2
    assert "export with --format onnx" in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


def test_a_real_patch_is_compared_where_the_data_is_found(trained, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    write_case(raw / DATASET / "imagesTr", "case", head(), SPACING)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    written = export(trained, tmp_path / "out", ExportRequest(folds=("0",)))
    assert [entry["patch"] for entry in written.folds[0].parity] == ["random", "raw case"]


@pytest.mark.slow
def test_an_export_that_differs_fails_and_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    load = exporting.load_networks
    monkeypatch.setattr(
        exporting, "load_networks", lambda *args, **kw: [lambda x: load(*args, **kw)[0](x) * np.float32(1.01)]
    )
    with pytest.raises(ParityError, match="fold 0: on a patch .* Nothing was written"):
        export(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert main(["export", str(trained), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "differs from PyTorch" in error
    assert "Traceback" not in error


def test_an_export_that_yields_nan_fails():
    figures = [parity.difference("random", np.ones((2, 2, 2, 2)), np.full((2, 2, 2, 2), np.nan), True)]
    with pytest.raises(ParityError):
        parity.check("0", "fp32", figures)


def test_rounding_that_a_small_patch_magnifies_is_allowed():
    """PyTorch's own error against float64 is 1.6e-3 of the logits' standard deviation on 16³ voxels of GLIMS."""
    figures = [{"patch": "random", "relative_error": 1.2e-3, "agreement": 1.0, "dice": []}]
    parity.check("0", "fp32", figures, lambda patch: 1.6e-3)
    with pytest.raises(ParityError):
        parity.check("0", "fp32", figures, lambda patch: 1e-6)


@pytest.mark.slow
def test_a_tiny_patch_of_glims_is_exported(tmp_path):
    folder = write_model_folder(tmp_path, "GLIMS", patch_size=[16, 16, 16])
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", "torchscript"]) == 0
    assert main(["export", str(folder), str(tmp_path / "onnx")]) == 0


CHANGES = {
    "cut off": (lambda content: content[: len(content) // 2], "cannot be read: the compressed data are cut off"),
    "another byte": (lambda content: content[:-500] + b"\xff" + content[-499:], "cannot be read: the compressed data"),
    "empty": (lambda _: b"", "cannot be read: the file is empty"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_images_are_not_predicted(exported, images, tmp_path, capsys, change):
    path = images / "two_0001.nii.gz"
    path.write_bytes(CHANGES[change][0](path.read_bytes()))
    assert main(["predict-onnx", str(exported), str(images), "-o", str(tmp_path / "out"), "--disable_tta"]) == 1
    assert f"{path}: {CHANGES[change][1]}" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["one.nii.gz"]


def test_values_that_are_not_finite_are_not_predicted(exported, tmp_path, capsys):
    image = head()
    image[1, 2, 2, :3] = np.inf
    write_case(tmp_path / "images", "one", image, SPACING)
    command = ["predict-onnx", str(exported), str(tmp_path / "images"), "-o", str(tmp_path / "out")]
    path = tmp_path / "images/one_0001.nii.gz"
    assert main(command) == 1
    assert f"{path}: 3 infinite of 10560 values" in capsys.readouterr().err
    large = sitk.GetImageFromArray(np.full(head().shape[1:], 1e200))
    large.CopyInformation(sitk.ReadImage(str(tmp_path / "images/one_0000.nii.gz")))
    sitk.WriteImage(large, str(path))
    assert main(command) == 1
    assert f"{path}: 10560 infinite of 10560 values in float32" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_a_label_map_that_is_not_whole_is_predicted_again(exported, images, tmp_path, capsys):
    command = ["predict-onnx", str(exported), str(images), "-o", str(tmp_path / "out"), "--disable_tta"]
    assert main(command) == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/two.nii.gz").write_bytes(expected["two.nii.gz"][:-20])  # as a full disk leaves it
    capsys.readouterr()
    assert main([*command, "--continue_prediction"]) == 0
    out = capsys.readouterr().out
    assert "two.nii.gz" in out and "one.nii.gz" not in out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected


def test_a_full_disk_leaves_no_label_map(exported, images, tmp_path, capsys):
    command = ["predict-onnx", str(exported), str(images), "-o", str(tmp_path / "out"), "--disable_tta"]
    with largest_file(200):
        assert main(command) == 1
    assert f"{tmp_path / 'out/one.nii.gz'}: cannot be written: " in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_an_image_below_the_models_resolution_is_told_the_size_it_needs(exported, tmp_path, capsys):
    image = np.zeros((2, 1, 20, 22), np.float32)
    image[:, 0, 4:10, 4:12] = 1
    write_case(tmp_path / "images", "one", image, (1.0, 1.1, 1.2))
    assert main(["predict-onnx", str(exported), str(tmp_path / "images"), "-o", str(tmp_path / "out")]) == 1
    assert "case one" in (error := capsys.readouterr().err)
    assert "1×6×8 voxels of 1.2×1.1×1 mm" in error and "at least 2×6×8 are needed" in error


class Foreign:
    """Something a checkpoint should not hold."""


def test_a_checkpoint_that_may_hold_code_needs_trust(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / trained.name)
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "surprise": Foreign()}, path, pickle_module=pickle)
    command = ["export", str(folder), str(tmp_path / "out"), "--folds", "0", "--format", "torchscript"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "Foreign" in error
    assert "--trust" in error
    assert main([*command, "--trust"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{out}", "--folds", "0,4"], "fold 4 has no checkpoint_final.pth; there are 0, 1"),
        (["{images}", "{out}"], "this is no model folder of nnU-Net"),
        (["{model}", "{out}", "--precision", "fp8"], "--precision fp8 is unknown: choose fp32, fp16, int8"),
        (["{model}", "{out}", "--format", "tflite"], "--format tflite is unknown: choose onnx, torchscript"),
        (["{model}", "{out}", "--format", "torchscript", "--precision", "int8"], "use --format onnx"),
        (["{model}", "{out}", "--opset", "9"], "--opset 9: choose 18, 19, 20"),
        (["{model}", "{images}"], "this exists already: choose another folder"),
        (["{model}", "{export}"], "replace the export with --overwrite"),
    ],
)
def test_wrong_exports_are_one_message(trained, exported, images, tmp_path, capsys, arguments, message):
    places = {"model": trained, "out": tmp_path / "out", "images": images, "export": exported}
    assert main(["export", *(part.format(**places) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("preprocessor_name", "Mine", "preprocessor_name 'Mine' cannot be exported, only DefaultPreprocessor"),
        ("normalization_schemes", ["Mine", "Mine"], "normalization_schemes 'Mine' cannot be exported"),
        ("resampling_fn_data", "mine", "resampling_fn_data 'mine' cannot be exported"),
        ("previous_stage", "3d_lowres", "second stage of a cascade"),
    ],
)
def test_plans_the_runner_cannot_follow_are_refused(tmp_path, capsys, key, value, message):
    folder = write_model_folder(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"][key] = value
    (folder / "plans.json").write_text(json.dumps(plans))
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_overwrite_replaces_an_export(copied, trained):
    export(trained, copied, ExportRequest(folds=("1",)), overwrite=True)
    assert sorted(path.name for path in copied.iterdir()) == ["fold_1.onnx", "model.json"]


def refused(capsys, *arguments, code=2) -> str:
    assert main(["predict-onnx", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_damaged_exports_are_refused(copied, images, tmp_path, capsys):
    out = tmp_path / "labels"
    with (copied / "fold_1.onnx").open("r+b") as file:
        file.seek(2000)
        file.write(b"?")
    message = refused(capsys, copied, images, "-o", out, code=1)
    assert "fold_1.onnx: this is not the file that was exported" in message
    (copied / "fold_1.onnx").unlink()
    assert "fold_1.onnx: this file of the export is missing" in refused(capsys, copied, images, "-o", out)
    assert "there is no model.json" in refused(capsys, images, images, "-o", out)
    assert not out.exists()


def test_wrong_images_are_refused(exported, images, tmp_path, capsys):
    out = tmp_path / "labels"
    one = images / "one_0000.nii.gz"
    assert "1 files were given: the model takes 2 channels" in refused(capsys, exported, one, "-o", out)
    assert "there is no such file or folder" in refused(capsys, exported, tmp_path / "none", "-o", out)
    assert "--threads 0" in refused(capsys, exported, images, "-o", out, "--threads", 0)
    shutil.copy(one, images / "one_0002.nii.gz")
    assert "one_0002.nii.gz: the model takes 2 channels a case" in refused(capsys, exported, images, "-o", out)
    (images / "one_0002.nii.gz").unlink()
    (images / "two_0001.nii.gz").unlink()
    assert "two_0001.nii.gz: case two lacks this channel" in refused(capsys, exported, images, "-o", out)
    (tmp_path / "empty").mkdir()
    assert "no images named CASE_0000.nii.gz" in refused(capsys, exported, tmp_path / "empty", "-o", out)
    assert not out.exists()
    shifted = write_case(tmp_path / "shifted", "case", head(), (1.0, 1.0, 1.0))
    assert "has spacing" in refused(capsys, exported, one, shifted[1], "-o", out)
    (tmp_path / "text.nii.gz").write_text("no image")
    message = refused(capsys, exported, tmp_path / "text.nii.gz", one, "-o", out, code=1)
    assert "this is no gzip file" in message
    assert list(out.iterdir()) == []
