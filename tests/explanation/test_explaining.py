"""The command on a network that has learnt something, and whole volumes against nnU-Net's own way."""

import json
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_glims.cli import main
from nnunet_glims.explanation import sanity
from nnunet_glims.explanation.explainer import Explainer, ExplanationRequest
from nnunet_glims.explanation.volumes import ImagePipeline
from nnunet_glims.nnunet.models import ModelFolder
from tests.export import PLAIN, head, write_case, write_model_folder
from tests.test_files import largest_file

from .conftest import cubes

CPU = torch.device("cpu")


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def explained(trained, images, tmp_path_factory):
    """The command's folder for two cases, with truth and checks."""
    root = tmp_path_factory.mktemp("explained")
    for name, seed in (("one", 1), ("two", 2)):
        (file,) = write_case(root / "truth", name, cubes(seed)[1][None])
        file.rename(root / "truth" / f"{name}.nii.gz")
    options = [
        "--truth",
        str(root / "truth"),
        "--sanity",
        "--layer",
        "decoder.stages.0,decoder.stages.1",
        "-device",
        "cpu",
    ]
    assert main(["explain", str(trained), str(images), "-o", str(root / "out"), *options]) == 0
    return root / "out"


def test_maps_lie_on_the_image_and_point_at_the_cubes(explained, images):
    for case, seed in (("one", 1), ("two", 2)):
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        truth = cubes(seed)[1]
        for layer in ("decoder.stages.0", "decoder.stages.1"):
            for target, label in (("cube", 1), ("core", 2)):
                found = sitk.ReadImage(str(explained / case / f"{layer}_{target}.nii.gz"))
                for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                    np.testing.assert_allclose(getattr(found, what)(), getattr(image, what)(), atol=1e-6)
                values = sitk.GetArrayFromImage(found)
                assert values.min() >= 0
                assert values.max() == pytest.approx(1)
                assert values[truth == label].mean() > 3 * values[truth != label].mean()
        predicted = read(explained / case / "prediction.nii.gz")
        assert (predicted == truth).mean() > 0.97


def test_what_is_written(explained):
    layers = ["decoder.stages.0", "decoder.stages.1"]
    maps = [f"{layer}_{target}.nii.gz" for layer in layers for target in ("cube", "core")]
    expected = sorted(["prediction.nii.gz", *maps, *(f"{layer}.png" for layer in layers)])
    for case in ("one", "two"):
        assert sorted(path.name for path in (explained / case).iterdir()) == expected
        assert (explained / case / "decoder.stages.0.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in explained.iterdir()) == ["explanation.json", "index.html", "one", "two"]
    page = (explained / "index.html").read_text()
    assert page.count("data:image/png") == 4
    summary = json.loads((explained / "explanation.json").read_text())
    assert summary["layers"] == layers
    assert summary["targets"] == {"cube": [1], "core": [2]}


def test_maps_change_with_random_weights_and_their_voxels_matter(explained):
    cases = json.loads((explained / "explanation.json").read_text())["cases"]
    checks = [of for case in cases.values() for layer in case["sanity"].values() for of in layer.values()]
    assert len(checks) == 8
    for check in checks:
        assert abs(check["random_weights"]["rank_correlation"]) < 0.6
        assert check["random_weights"]["ssim"] < 0.9
        deleted = check["deletion"]
        assert deleted["voxels"] == round(0.05 * 22 * 24 * 20)
        assert deleted["most_salient_masked"] < deleted["random_masked"] - 0.3
        assert deleted["random_masked"] < deleted["logit"]


def test_a_map_of_the_wrong_places_fails_the_deletion_test(trained, images):
    explainer = Explainer(trained)
    data = explainer.pipeline.preprocess([images / f"one_{channel:04d}.nii.gz" for channel in (0, 1)]).data
    logits = explainer.predict(data)[0]
    region = explainer.regions(logits)[0]
    found = sanity.deletion(data, -logits[1], region, logits[1], lambda changed: explainer.predict(changed)[0][1])
    assert found["most_salient_masked"] > found["random_masked"]


def test_similarity():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.random((8, 9, 10)).astype(np.float32)) for _ in range(2))
    assert sanity.similarity(one, one**3)["rank_correlation"] == pytest.approx(1)
    assert sanity.similarity(one, one)["ssim"] == pytest.approx(1)
    assert abs(sanity.similarity(one, other)["rank_correlation"]) < 0.15
    assert sanity.similarity(one, torch.zeros_like(one)) == {"rank_correlation": None, "ssim": None}


@pytest.mark.parametrize("size", [(22, 24, 20), (10, 40, 16)], ids=str)
def test_logits_are_nnunets(trained, monkeypatch, size):
    monkeypatch.setattr(torch, "half", torch.float32)  # what nnU-Net adds up logits in
    explainer = Explainer(trained)
    predictor = nnUNetPredictor(use_mirroring=False, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), (0,))
    data = torch.randn(2, *size)
    expected = predictor.predict_logits_from_preprocessed_data(data)
    torch.testing.assert_close(explainer.predict(data)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(22, 40, 20), (10, 16, 12)], ids=str)
def test_windows_weights_add_up_to_1(trained, size):
    data = torch.randn(2, *size)
    found = ImagePipeline(ModelFolder(trained), CPU).average_windows(data, 2, lambda patch, _: patch[0])
    torch.testing.assert_close(found, data)
    parts = ImagePipeline(ModelFolder(trained), CPU).average_windows(data, 1, lambda patch, part: part[None])
    assert parts.min() > 0
    assert parts.max() <= 1 + 1e-6


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_maps_come_back_as_nnunets_label_maps_do(tmp_path, transpose):
    """An image with a zero margin, in thick slices, to a finer grid and back."""
    folder = write_model_folder(tmp_path, regions=True, transpose=transpose, spacing=[2.0, 0.7, 0.8])
    files = write_case(tmp_path / "images", "case", head(), (0.8, 0.9, 5.0))
    volumes = ImagePipeline(ModelFolder(folder), CPU)
    image = volumes.preprocess(files)
    assert image.data.shape[1:] != head().shape[1:]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *image.data.shape[1:])).astype(np.float32))
    labels = volumes.label_map(logits, image.properties)
    back = volumes.to_image_grid(logits, image.properties)
    assert back.shape == (2, *head().shape[1:])
    clear = (np.abs(back) > 1e-3).all(0)
    expected = np.where(back[1] > 0, 2, np.where(back[0] > 0, 1, 0))
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(labels[clear], expected[clear])
    assert not back[:, head()[0] == 0][:, :100].any()


@pytest.mark.parametrize(("network", "gates", "spatial"), [("GLIMS", 5, 5), ("LATUPNet", 6, 0)])
def test_our_networks_regions_and_gates(network, gates, spatial, tmp_path):
    folder = write_model_folder(tmp_path, network, regions=True, spacing=[3.0, 1.0, 1.0])
    write_case(tmp_path / "images", "case", head(), (1.0, 1.0, 4.0))
    options = ["-o", str(tmp_path / "out"), "--target", "core", "--method", "guided-gradcam", "-device", "cpu"]
    assert main(["explain", str(folder), str(tmp_path / "images"), *options]) == 0
    table = pd.read_csv(tmp_path / "out" / "channel_gates.csv")
    assert table["gate"].nunique() == gates
    assert 0 < table["mean"].min() < table["mean"].max() < 1
    assert (tmp_path / "out" / "channel_gates.png").exists()
    case = tmp_path / "out" / "case"
    maps = {path.name: read(path) for path in case.glob("*.nii.gz")}
    assert sum(name.startswith("gate_") for name in maps) == spatial
    for voxels in maps.values():
        assert voxels.shape == head().shape[1:]
        assert not voxels[0, 0, 0]  # outside of the head
    summary = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert summary["targets"] == {"core": [2]}
    (layer,) = summary["layers"]
    assert bool(maps[f"{layer}_core.nii.gz"].any()) == (summary["cases"]["case"]["predicted_voxels"]["core"] > 0)


def test_names_of_labels_become_names_of_files(trained, images, tmp_path):
    folder = shutil.copytree(trained, tmp_path / trained.name)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "oedema/infiltration": 1, "a%2Fb: <i>?": 2}
    (folder / "dataset.json").write_text(json.dumps(content))
    files = [str(images / f"one_{channel:04d}.nii.gz") for channel in (0, 1)]
    options = ["-o", str(tmp_path / "out"), "--layer", "encoder.stages.2", "-device", "cpu"]
    assert main(["explain", str(folder), *files, *options]) == 0
    maps = ["oedema%2Finfiltration", "a%252Fb%3A %3Ci%3E%3F"]
    found = {path.name for path in (tmp_path / "out/one").glob("*.nii.gz")}
    assert found == {"prediction.nii.gz", *(f"encoder.stages.2_{name}.nii.gz" for name in maps)}
    summary = json.loads((tmp_path / "out/explanation.json").read_text())
    assert set(summary["targets"]) == {"oedema/infiltration", "a%2Fb: <i>?"}
    links = re.findall(r'href="([^"#]*)"', (tmp_path / "out/index.html").read_text())
    linked = {unquote(link).removeprefix("./") for link in links if not link.startswith("data:")}
    assert linked == {f"one/{name}" for name in found}


def test_a_full_disk_leaves_no_explanation(trained, images, tmp_path, capsys):
    files = [str(images / f"one_{channel:04d}.nii.gz") for channel in (0, 1)]
    with largest_file(4000):
        assert main(["explain", str(trained), *files, "-o", str(tmp_path / "out"), "-device", "cpu"]) == 1
    assert "cannot be written: " in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_network_that_computes_nan_is_named(trained, images, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / trained.name)
    path = folder / "fold_0/checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values())).flatten()[0] = torch.nan
    torch.save(checkpoint, path)
    files = [str(images / f"one_{channel:04d}.nii.gz") for channel in (0, 1)]
    assert main(["explain", str(folder), *files, "-o", str(tmp_path / "out"), "-device", "cpu"]) == 1
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_2d(tmp_path):
    flat = {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
    }
    architecture = {**PLAIN, "arch_kwargs": PLAIN["arch_kwargs"] | flat}
    folder = write_model_folder(tmp_path, patch_size=[16, 16], spacing=[1.0, 1.3], architecture=architecture)
    write_case(tmp_path / "images", "case", head(), (1.0, 1.0, 4.0))
    options = ["-o", str(tmp_path / "out"), "--method", "guided-gradcam", "-device", "cpu"]
    assert main(["explain", str(folder), str(tmp_path / "images"), *options]) == 0
    maps = {path.name: read(path) for path in (tmp_path / "out" / "case").glob("*.nii.gz")}
    assert {voxels.shape for voxels in maps.values()} == {head().shape[1:]}
    assert any(voxels.max() == pytest.approx(1, abs=0.1) for voxels in maps.values() if voxels.dtype.kind == "f")


def test_layers_are_listed(trained, capsys):
    assert main(["explain", str(trained), "--layers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["encoder.stages.0", "6", "16×16×16"] in lines
    assert ["encoder.stages.2", "8", "4×4×4"] in lines
    assert lines[-1] == ["Without", "--layer:", "encoder.stages.2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{images}"], "with -o the folder to write"),
        (["{model}", "-o", "{out}"], "give a folder of images"),
        (["{images}", "{images}", "-o", "{out}"], "this is no model folder of nnU-Net"),
        (["{model}", "{images}", "-o", "{out}", "--target", "core,ET"], "--target ET is unknown: known are cube, core"),
        (["{model}", "{images}", "-o", "{out}", "--layer", "decoder.stages.9"], "--layer decoder.stages.9 is unknown"),
        (["{model}", "{images}", "-o", "{out}", "--method", "lime"], "--method lime is unknown"),
        (["{model}", "{images}", "-o", "{out}", "--fold", "3"], "fold 3 has no checkpoint_final.pth; there are 0"),
        (["{model}", "{images}/one_0000.nii.gz", "-o", "{out}"], "1 files were given: the model takes 2 channels"),
        (["{model}", "{lacking}", "-o", "{out}"], "one_0001.nii.gz: case one lacks this channel"),
        (["{model}", "{images}/three_0000.nii.gz", "-o", "{out}"], "there is no such file or folder"),
        (["{model}", "{images}", "-o", "{out}", "--truth", "{images}"], "no true label map of case one"),
        (["{model}", "{images}", "-o", "{out}", "--truth", "{other}"], "is this another case?"),
        (["{model}", "{mixed}", "-o", "{out}"], "resample the channels to one grid"),
        (["{model}", "{cut}", "-o", "{out}"], "one_0001.nii.gz: cannot be read: the compressed data are cut off"),
        (["{model}", "{images}", "-o", "{images}"], "this exists already: choose another folder"),
    ],
)
def test_wrong_inputs_are_one_message_and_nothing_is_written(trained, images, tmp_path, capsys, arguments, message):
    lacking, other, mixed, cut = (tmp_path / name for name in ("lacking", "other", "mixed", "cut"))
    for folder in (lacking, other, mixed, cut):
        folder.mkdir()
        if folder != other:
            shutil.copy(images / "one_0000.nii.gz", folder)
    (cut / "one_0001.nii.gz").write_bytes((images / "one_0001.nii.gz").read_bytes()[:5000])
    small = write_case(tmp_path / "small", "one", np.ones((1, 5, 6, 7), np.float32))[0]
    for case in ("one", "two"):
        shutil.copy(small, other / f"{case}.nii.gz")
    shutil.copy(small, mixed / "one_0001.nii.gz")
    before = sorted(tmp_path.iterdir())
    places = {"model": trained, "images": images, "out": tmp_path / "out"}
    places |= {folder.name: folder for folder in (lacking, other, mixed, cut)}
    code = 1 if "{cut}" in arguments else 2
    assert main(["explain", *(part.format(**places) for part in arguments)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_explanation_is_replaced_on_request_only(trained, images, tmp_path, capsys):
    files = [str(images / f"two_{channel:04d}.nii.gz") for channel in (0, 1)]
    command = ["explain", str(trained), *files, "-o", str(tmp_path / "out"), "--target", "CUBE", "-device", "cpu"]
    assert main(command) == 0
    (tmp_path / "out" / "old").touch()
    assert main(command) == 2
    assert "replace the explanation with --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "old").exists()


def test_several_cases_as_files(trained, images):
    from nnunet_glims.export.cases import find_input_cases

    files = sorted(images.glob("*.nii.gz"))
    assert [case.name for case in find_input_cases(files, ".nii.gz", ["a", "b"])] == ["one", "two"]


def test_a_region_that_is_not_predicted_has_an_empty_map(trained, tmp_path):
    noise = np.random.default_rng(5).normal(10, 1, (2, 18, 18, 18)).astype(np.float32)
    explainer = Explainer(trained, ExplanationRequest(targets=("core",)))
    data = explainer.pipeline.preprocess(write_case(tmp_path, "noise", noise)).data
    regions = torch.zeros(1, *data.shape[1:])
    assert not explainer.maps(data, regions).any()
    assert explainer.maps(data, torch.ones_like(regions)).any()
