"""`nnunet-glims postprocess-fit` on made-up cross-validations whose best rules are known."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import stats

from nnunet_glims.cli import main

from .conftest import BRATS, ORGANS, read_labels, write_labels, write_prediction

SHAPE = (16, 20, 20)
FOLDS, CASES = 5, 2


def fit(model, out, code=0):
    arguments = ["postprocess-fit", str(model), "-o", str(out), "--truth", str(model.parent / "truth")]
    assert main([*arguments, "--workers", "1"]) == code


def tumour(grown=0):
    mask = np.zeros(SHAPE, bool)
    mask[3 - grown : 12 + grown, 3 - grown : 12 + grown, 3 - grown : 12 + grown] = True
    return mask


def speck():
    """30 voxels apart from the tumour."""
    mask = np.zeros(SHAPE, bool)
    mask[5:10, 15:18, 17:19] = True
    return mask


def write_fold(root, fold, with_true_speck=False):
    """The whole tumour is predicted with 0.8, one voxel around it with 0.57, and a speck of 30 voxels with 0.85."""
    for number in range(CASES):
        case = f"case_{fold}{number}"
        probabilities = np.full((3, *SHAPE), 0.01)
        probabilities[0][tumour(grown=1)] = 0.57
        probabilities[0][tumour()] = 0.8
        probabilities[0][speck()] = 0.85
        truth = tumour() | speck() if with_true_speck else tumour()
        write_prediction(root / f"model/fold_{fold}/validation", case, probabilities)
        (root / f"model/fold_{fold}/validation/dataset.json").unlink()
        write_labels(root / f"truth/{case}.nii.gz", 2 * truth)
    (root / "model/dataset.json").write_text(json.dumps(BRATS))
    (root / "model/plans.json").write_text(
        json.dumps({"dataset_name": "Dataset777_Made", "image_reader_writer": "SimpleITKIO"})
    )
    return root / "model"


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_known_rules_are_found(tmp_path, capsys):
    for fold in range(FOLDS):
        model = write_fold(tmp_path, fold)
    fit(model, tmp_path / "rules.json")
    rules = json.loads((tmp_path / "rules.json").read_text())
    assert [region["threshold"] for region in rules["regions"]] == [0.6, 0.5, 0.5]
    (rule,) = rules["components"]
    expected = {"label": 2, "smaller_than": 50, "becomes": 0, "region": "whole_tumor", "mean_probability_below": 0.9}
    assert rule == expected
    found = rules["fitted"]["dice"]["whole_tumor"]
    before = dice(tumour(), tumour(grown=1) | speck())
    assert found["before"] == pytest.approx(before, abs=1e-6)
    assert found["after"] == 1
    assert found["p"] == pytest.approx(stats.wilcoxon(np.full(10, 1 - before)).pvalue, abs=1e-6)
    assert rules["fitted"]["dice"]["enhancing_tumor"] == {"before": 1, "after": 1, "p": 1}
    assert "10 cases; each fold's by rules chosen on the other folds" in capsys.readouterr().out

    arguments = ["postprocess", str(model / "fold_0/validation"), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main([*arguments, "--preset", str(tmp_path / "rules.json")]) == 0
    assert np.array_equal(read_labels(tmp_path / "out/case_00.nii.gz"), 2 * tumour())


def test_a_fold_is_judged_by_rules_that_have_not_seen_it(tmp_path):
    for fold in range(FOLDS):
        model = write_fold(tmp_path, fold, with_true_speck=fold == 4)
    fit(model, tmp_path / "rules.json")
    found = json.loads((tmp_path / "rules.json").read_text())["fitted"]["dice"]["whole_tumor"]
    predicted = tumour(grown=1) | speck()
    before = [dice(tumour(), predicted)] * 8 + [dice(tumour() | speck(), predicted)] * 2
    after = [1.0] * 8 + [dice(tumour() | speck(), tumour())] * 2
    assert found["before"] == pytest.approx(np.mean(before), abs=1e-6)
    assert found["after"] == pytest.approx(np.mean(after), abs=1e-6)


def test_label_maps_suffice_without_regions(tmp_path, capsys):
    for fold in range(3):
        folder = tmp_path / f"model/fold_{fold}/validation"
        write_labels(folder / f"case_{fold}.nii.gz", np.where(tumour(), 1, 2 * speck()))
        write_labels(tmp_path / f"truth/case_{fold}.nii.gz", 1 * tumour())
    (tmp_path / "model/dataset.json").write_text(json.dumps(ORGANS))
    (tmp_path / "model/plans.json").write_text(json.dumps({"dataset_name": "Dataset777_Made"}))
    fit(tmp_path / "model", tmp_path / "rules.json")
    rules = json.loads((tmp_path / "rules.json").read_text())
    assert rules["components"] == [{"label": 2, "smaller_than": 50, "becomes": 0}]
    assert rules["regions"] == []
    assert rules["fitted"]["dice"]["spleen"] == {"before": 0, "after": 1, "p": 0.25}
    assert "too few cases" in capsys.readouterr().out, "three cases allow no significance"


def test_a_case_that_two_folds_predicted_is_refused(tmp_path, capsys):
    for fold in range(2):
        write_labels(tmp_path / f"model/fold_{fold}/validation/case_0.nii.gz", 1 * tumour())
    write_labels(tmp_path / "truth/case_0.nii.gz", 1 * tumour())
    (tmp_path / "model/dataset.json").write_text(json.dumps(ORGANS))
    (tmp_path / "model/plans.json").write_text(json.dumps({"dataset_name": "Dataset777_Made"}))
    fit(tmp_path / "model", tmp_path / "rules.json", code=2)
    assert "folds 0 and 1 both predicted case case_0" in capsys.readouterr().err


def test_nothing_to_gain_changes_nothing(tmp_path, capsys):
    for fold in range(2):
        probabilities = np.full((3, *SHAPE), 0.01)
        probabilities[:, tumour()] = 0.99
        write_prediction(tmp_path / f"model/fold_{fold}/validation", f"case_{fold}", probabilities)
        write_labels(tmp_path / f"truth/case_{fold}.nii.gz", 3 * tumour())
    (tmp_path / "model/dataset.json").write_text(json.dumps(BRATS))
    (tmp_path / "model/plans.json").write_text(json.dumps({"dataset_name": "Dataset777_Made"}))
    fit(tmp_path / "model", tmp_path / "rules.json")
    rules = json.loads((tmp_path / "rules.json").read_text())
    assert {region["threshold"] for region in rules["regions"]} == {0.5}
    assert rules["components"] == []
    assert "No size helps" in capsys.readouterr().out


def test_one_fold_is_not_enough(tmp_path, capsys):
    fit(write_fold(tmp_path, 0), tmp_path / "rules.json", code=2)
    assert "only fold 0 has validation predictions" in capsys.readouterr().err
    assert not (tmp_path / "rules.json").exists()


def test_missing_probabilities_are_named(tmp_path, capsys):
    for fold in range(2):
        model = write_fold(tmp_path, fold)
    (model / "fold_1/validation/case_11.npz").unlink()
    fit(model, tmp_path / "rules.json", code=2)
    message = capsys.readouterr().err
    assert "fold 1: no validation probabilities of case case_11" in message and "--npz" in message


def test_other_shapes_are_named(tmp_path, capsys):
    for fold in range(2):
        model = write_fold(tmp_path, fold)
    write_labels(tmp_path / "truth/case_10.nii.gz", np.zeros((4, 4, 4)))
    fit(model, tmp_path / "rules.json", code=2)
    assert "case_10.nii.gz: has 20×20×16 voxels, not 4×4×4" in capsys.readouterr().err


def test_damaged_files_and_other_grids_are_named(tmp_path, capsys):
    for fold in range(2):
        model = write_fold(tmp_path, fold)
    path = tmp_path / "truth/case_10.nii.gz"
    content = path.read_bytes()
    image = sitk.ReadImage(str(path))
    image.SetSpacing((0.9, 1.1, 2.5))
    sitk.WriteImage(image, str(path))
    fit(model, tmp_path / "rules.json", code=2)
    assert "has spacing [0.9, 1.1, 2.0], not [0.9, 1.1, 2.5]" in capsys.readouterr().err
    strange = read_labels(path)
    strange[0, 0, 0] = 77
    write_labels(path, strange)
    fit(model, tmp_path / "rules.json", code=2)
    assert f"{path}: has labels 77, which belong to no region" in capsys.readouterr().err
    path.write_bytes(content[:-30])
    fit(model, tmp_path / "rules.json", code=1)
    assert f"{path}: cannot be read: " in capsys.readouterr().err
    path.write_bytes(content)
    probabilities = model / "fold_1/validation/case_11.npz"
    probabilities.write_bytes(probabilities.read_bytes()[:-200])
    fit(model, tmp_path / "rules.json", code=1)
    assert f"{probabilities}: damaged" in capsys.readouterr().err
    assert not (tmp_path / "rules.json").exists()


@pytest.mark.parametrize("out", ["rules.txt", "missing/rules.json"])
def test_where_rules_cannot_go(out, tmp_path, capsys):
    fit(tmp_path, tmp_path / out, code=2)
    assert "rules" in capsys.readouterr().err


def test_only_a_file_of_rules_is_replaced(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(json.dumps(BRATS))
    fit(tmp_path, tmp_path / "dataset.json", code=2)
    assert "holds no rules" in capsys.readouterr().err
    assert json.loads((tmp_path / "dataset.json").read_text()) == BRATS
