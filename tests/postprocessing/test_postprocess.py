"""`nnunet-glims postprocess` on small predictions, beside plain NumPy and SciPy."""

import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_glims.cli import main
from nnunet_glims.postprocessing.rules import Rules
from nnunet_glims.validation import validate
from tests.test_files import largest_file

from .conftest import BRATS, ORGANS, ORIGIN, SPACING, by_nnunet, read_labels, smooth, write_labels, write_prediction

GLIMS_RULES = ((3, 75, 2, 0.9, 1), (1, 75, 1, 0.9, 2), (2, 500, 0, 0.9, 0))
"""Label, voxels, channel, mean probability, label it becomes."""


def run(*arguments, code=0):
    assert main(["postprocess", *map(str, arguments), "--workers", "1"]) == code


def slowly(probabilities):
    """GLIMS' challenge inference, from its description, component by component on the whole image."""
    whole, core, enhancing = probabilities
    labels = np.zeros(whole.shape, int)
    labels[whole > 0.5] = 2
    labels[core > 0.6] = 1
    labels[enhancing > 0.6] = 3
    for label, fewest, channel, sure, becomes in GLIMS_RULES:
        components, count = ndimage.label(labels == label, np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            inside = components == number
            if inside.sum() < fewest and probabilities[channel][inside].mean() < sure:
                labels[inside] = becomes
    enhancing = labels == 3
    labels[ndimage.binary_fill_holes(enhancing) & ~enhancing] = 1
    return labels


@pytest.mark.parametrize("seed", range(6))
def test_the_glims_preset_does_what_its_paper_says(seed, tmp_path):
    probabilities = smooth(seed, shape=(24, 30, 28)).astype(np.float32)
    write_prediction(tmp_path / "model", "case", probabilities)
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", "glims_brats2023")
    expected = slowly(probabilities)
    assert len(np.unique(expected)) == 4 and not np.array_equal(expected, by_nnunet(probabilities, BRATS))
    assert np.array_equal(read_labels(tmp_path / "out/case.nii.gz"), expected)


def test_a_hole_in_the_enhancing_tumour_becomes_necrosis_and_an_open_one_does_not(tmp_path):
    probabilities = np.zeros((3, 20, 20, 20), np.float32)
    probabilities[:, 4:16, 4:16, 4:16] = 0.99
    probabilities[1:, 8:10, 8:10, 8:10] = 0.2  # whole tumour only: ED, enclosed
    probabilities[1:, 4:8, 13, 13] = 0.2  # reaches the border
    write_prediction(tmp_path / "model", "case", probabilities)
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", "glims_brats2023")
    labels = read_labels(tmp_path / "out/case.nii.gz")
    assert (labels[8:10, 8:10, 8:10] == 1).all()
    assert (labels[4:8, 13, 13] == 2).all()
    assert (labels == 3).sum() == 12**3 - 8 - 4


def test_sure_small_components_stay(tmp_path):
    probabilities = np.zeros((3, 12, 12, 30), np.float32)
    for start, certainty in ((2, 0.95), (20, 0.85)):
        probabilities[:, 4:7, 4:7, start : start + 3] = certainty
    write_prediction(tmp_path / "model", "case", probabilities)
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", "glims_brats2023")
    labels = read_labels(tmp_path / "out/case.nii.gz")
    assert (labels[4:7, 4:7, 2:5] == 3).all()
    assert not labels[..., 10:].any()


def test_without_rules_nnunets_labels_come_back_with_their_geometry(predicted, tmp_path):
    rules = tmp_path / "half.json"
    regions = [
        {"name": name, "labels": labels, "paint": paint}
        for name, labels, paint in (("WT", [3, 2, 1], 2), ("TC", [1, 3], 1), ("ET", [3], 3))
    ]
    rules.write_text(json.dumps({"regions": regions}))
    run(predicted, "-o", tmp_path / "none", "--preset", "none")
    run(predicted, "-o", tmp_path / "half", "--preset", rules)
    for case in ("case_a", "case_b"):
        for out in ("none", "half"):
            written = sitk.ReadImage(str(tmp_path / out / f"{case}.nii.gz"))
            assert np.array_equal(sitk.GetArrayFromImage(written), read_labels(predicted / f"{case}.nii.gz"))
            assert np.allclose(written.GetSpacing(), SPACING) and np.allclose(written.GetOrigin(), ORIGIN)
    record = json.loads((tmp_path / "half/postprocessing.json").read_text())
    assert record["changed_voxels"] == {"case_a": 0, "case_b": 0}
    assert json.loads((tmp_path / "half/dataset.json").read_text()) == BRATS


def test_models_are_averaged_as_logits(tmp_path):
    models = [np.full((3, 3, 3, 3), 0.01), np.full((3, 3, 3, 3), 0.01)]
    models[0][0, 1, 1, 1], models[1][0, 1, 1, 1] = 0.999, 0.3  # mean logit 3.03, mean probability 0.65
    models[0][0, 1, 1, 2], models[1][0, 1, 1, 2] = 0.001, 0.9  # mean logit -2.4
    models[0][0, 0, 0, 0], models[1][0, 0, 0, 0] = 0.6, 0.45  # mean logit 0.1
    for number, probabilities in enumerate(models):
        write_prediction(tmp_path / f"model_{number}", "case", probabilities)
    run(tmp_path / "model_0", tmp_path / "model_1", "-o", tmp_path / "out", "--preset", "none")
    expected = np.zeros((3, 3, 3))
    expected[1, 1, 1] = expected[0, 0, 0] = 2
    assert np.array_equal(read_labels(tmp_path / "out/case.nii.gz"), expected)


def test_three_models_on_random_probabilities(tmp_path):
    models = [smooth(seed, sharp=2.5) for seed in (3, 4, 5)]  # far from where float32 probabilities saturate
    for number, probabilities in enumerate(models):
        write_prediction(tmp_path / f"model_{number}", "case", probabilities)
    run(*(tmp_path / f"model_{n}" for n in range(3)), "-o", tmp_path / "out", "--preset", "glims_brats2023")
    logits = np.mean([np.log(model / (1 - model)) for model in models], axis=0)
    expected = slowly(1 / (1 + np.exp(-logits)))
    assert len(np.unique(expected)) == 4
    assert (read_labels(tmp_path / "out/case.nii.gz") == expected).mean() > 0.9999


def test_labels_without_regions_are_averaged_too(tmp_path):
    models = []
    for number in range(2):
        raw = smooth(number, channels=3)
        models.append(raw / raw.sum(0))
        write_prediction(tmp_path / f"model_{number}", "case", models[-1], ORGANS)
    run(tmp_path / "model_0", tmp_path / "model_1", "-o", tmp_path / "out", "--preset", "none")
    expected = np.log(models).mean(0).argmax(0)
    assert (read_labels(tmp_path / "out/case.nii.gz") == expected).mean() > 0.9999


def test_label_maps_suffice_for_rules_without_probabilities(tmp_path):
    labels = np.zeros((10, 10, 10))
    labels[1:3, 1:3, 1:3] = 1  # 8 voxels
    labels[3, 3, 3] = 1  # a corner away, so the ninth
    labels[7:9, 7:9, 7:9] = 1  # 8 voxels
    labels[5, 0:2, 0:4] = 2  # 8 voxels of a label without rule
    write_labels(tmp_path / "model/case.nii.gz", labels)
    (tmp_path / "rules.json").write_text(json.dumps({"components": [{"label": 1, "smaller_than": 9, "becomes": 2}]}))
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", tmp_path / "rules.json")
    labels[7:9, 7:9, 7:9] = 2
    assert np.array_equal(read_labels(tmp_path / "out/case.nii.gz"), labels)


def test_an_empty_prediction_stays_empty(tmp_path):
    write_prediction(tmp_path / "model", "case", np.full((3, 5, 6, 7), 0.1))
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", "glims_brats2023")
    assert not read_labels(tmp_path / "out/case.nii.gz").any()


def test_several_processes_write_the_same(predicted, tmp_path):
    run(predicted, "-o", tmp_path / "one", "--preset", "glims_brats2023")
    arguments = ["postprocess", str(predicted), "-o", str(tmp_path / "two"), "--preset", "glims_brats2023"]
    assert main([*arguments, "--workers", "2"]) == 0
    for file in (tmp_path / "one").glob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_full_disk_ends_with_1_and_leaves_no_folder(predicted, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    arguments = ["postprocess", str(predicted), "-o", str(tmp_path / "out"), "--preset", "glims_brats2023"]
    with largest_file(100):
        assert main([*arguments, "--workers", "1"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def second_model(folder, shape=(14, 20, 18), cases=("case_a", "case_b"), dataset_json=BRATS, channels=3):
    for case in cases:
        write_prediction(folder, case, smooth(9, channels, shape), dataset_json)


def truncated(file):
    file.write_bytes(file.read_bytes()[:-500])


def damaged(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def unclosed(file):
    header = b"{'descr': '<f4', 'shape': (3,"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("probabilities.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


SHORT_ORDER = {**BRATS, "regions_class_order": [2, 1]}
OTHER = {**BRATS, "labels": {**BRATS["labels"], "enhancing_tumor": [2, 3]}}
WRONG = {
    "no folder": (lambda m, o: None, "other: there is no such folder"),
    "no probabilities": (
        lambda m, o: (second_model(o), (o / "case_b.npz").unlink()),
        "case_b, which has its label map",
    ),
    "no dataset.json": (lambda m, o: (second_model(o), (o / "dataset.json").unlink()), "has no dataset.json"),
    "another data set": (lambda m, o: second_model(o, dataset_json=OTHER), "its dataset.json has other labels"),
    "other cases": (lambda m, o: second_model(o, cases=("case_a", "case_b", "case_x")), "probabilities of case case_x"),
    "another shape": (lambda m, o: second_model(o, (14, 20, 17)), "has 17×20×14 voxels, not 18×20×14"),
    "truncated": (lambda m, o: (second_model(o), truncated(o / "case_a.npz")), "case_a.npz: damaged"),
    "damaged": (lambda m, o: (second_model(o), damaged(o / "case_a.npz")), "case_a.npz: damaged"),
    "no npz of nnU-Net's": (
        lambda m, o: (second_model(o), np.savez(o / "case_a.npz", data=np.zeros(3))),
        "has no 'probabilities'",
    ),
    "a pickle inside": (
        lambda m, o: (second_model(o), np.savez(o / "case_a.npz", probabilities=np.array([{}], object))),
        "holds object",
    ),
    "a reader that turns axes": (
        lambda m, o: (
            second_model(o),
            (o / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"})),
        ),
        "NibabelIOWithReorient, which may turn",
    ),
    "plans that are a list": (
        lambda m, o: (second_model(o), (o / "plans.json").write_text("[]")),
        f"other{os.sep}plans.json",
    ),
    "a region without its place in the order": (
        lambda m, o: (
            second_model(o),
            [(folder / "dataset.json").write_text(json.dumps(SHORT_ORDER)) for folder in (m, o)],
        ),
        "dataset.json: labels: nnU-Net refuses these: regions_class_order",
    ),
    "an unclosed header": (lambda m, o: (second_model(o), unclosed(o / "case_a.npz")), "case_a.npz: damaged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named_and_nothing_is_written(wrong, predicted, tmp_path, capsys):
    spoil, message = WRONG[wrong]
    spoil(predicted, tmp_path / "other")
    there = sorted(tmp_path.iterdir())
    code = 1 if "damaged" in message or "cannot be read" in message else 2
    run(predicted, tmp_path / "other", "-o", tmp_path / "out", "--preset", "glims_brats2023", code=code)
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == there


def test_all_problems_are_in_one_message(predicted, tmp_path, capsys):
    second_model(tmp_path / "other", (14, 20, 17))
    run(predicted, tmp_path / "other", "-o", tmp_path / "out", "--preset", "none", code=2)
    message = capsys.readouterr().err
    assert "2 problems" in message and "case_a.npz" in message and "case_b.npz" in message


def test_a_folder_that_is_there_is_not_touched(predicted, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    run(predicted, "-o", tmp_path / "out", "--preset", "none", code=2)
    assert "is there already" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_organ_probabilities_do_not_fit_tumour_rules(tmp_path, capsys):
    raw = smooth(0)
    write_prediction(tmp_path / "model", "case", raw / raw.sum(0), ORGANS)
    run(tmp_path / "model", "-o", tmp_path / "out", "--preset", "glims_brats2023", code=2)
    assert "no probability for the region of labels [1, 2, 3]" in capsys.readouterr().err


RULES = {
    "components.0.label: this key": {"components": [{"smaller_than": 3}]},
    "belong together": {"components": [{"label": 1, "smaller_than": 3, "region": "x"}]},
    "region 'x' is not among": {
        "components": [{"label": 1, "smaller_than": 3, "region": "x", "mean_probability_below": 0.5}]
    },
    "did you mean 'holes'": {"hole": []},
    "label 1 becomes itself": {"holes": [{"label": 1, "becomes": 1}]},
    "a number below 1": {"regions": [{"name": "a", "labels": [1], "paint": 1, "threshold": 1.5}]},
    "there is no rule in this file": {},
    "the file: a mapping of keys to values is wanted, not an empty list": [],
    "components: a list is wanted, not null": {"components": None},
    "holes.0.label: a whole number is wanted, not true": {"holes": [{"label": True, "becomes": 2}]},
    "each may be there once": {"regions": [{"name": "a", "labels": [1], "paint": 1}] * 2},
}


@pytest.mark.parametrize("message", RULES)
def test_wrong_rules_are_named(message, predicted, tmp_path, capsys):
    (tmp_path / "rules.json").write_text(json.dumps(RULES[message]))
    run(predicted, "-o", tmp_path / "out", "--preset", tmp_path / "rules.json", code=2)
    assert message in capsys.readouterr().err


def test_an_unknown_preset_gets_the_nearest(predicted, tmp_path, capsys):
    run(predicted, "-o", tmp_path / "out", "--preset", "glims_brats", code=2)
    assert "did you mean 'glims_brats2023'" in capsys.readouterr().err


def test_the_documentations_example_is_valid():
    text = (Path(__file__).parents[2] / "docs/postprocessing.md").read_text()
    example = json.loads(text.split("```json\n")[1].split("```")[0])
    assert len(validate(Rules, example, "docs").components) == 2


@pytest.mark.parametrize("factor", [0, 0.5])
def test_probabilities_of_labels_that_do_not_sum_to_1_are_refused(factor, tmp_path, capsys):
    raw = smooth(0)
    for folder in ("a", "b"):
        write_prediction(tmp_path / folder, "case", raw / raw.sum(0), ORGANS)
    np.savez(tmp_path / "b/case.npz", probabilities=(factor * raw / raw.sum(0)).astype(np.float16))
    run(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", "--preset", "none", code=1)
    assert "not to 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_is_not_averaged_with_itself(predicted, tmp_path, capsys):
    run(predicted, predicted, "-o", tmp_path / "out", "--preset", "none", code=2)
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rule", [{"components": [{"label": 9, "smaller_than": 5}]}, {"holes": [{"label": 1, "becomes": 200}]}]
)
def test_rules_for_labels_that_are_not_there_are_refused(rule, predicted, tmp_path, capsys):
    (tmp_path / "rules.json").write_text(json.dumps(rule))
    run(predicted, "-o", tmp_path / "out", "--preset", tmp_path / "rules.json", code=2)
    assert "the data set has the labels 1, 2, 3 only" in capsys.readouterr().err
