"""`nnunet-glims evaluate` as its users run it: folders, model folders, wrong input, interruption."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_glims.cli import main
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.evaluation import results
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.records import read_results
from nnunet_glims.locks import lock
from nnunet_glims.nnunet.cases import cases_of_folders
from nnunet_glims.nnunet.evaluation import evaluate_folders
from tests.test_files import largest_file

DATASET = {
    "channel_names": {"0": "T2"},
    "labels": {"background": 0, "organ": 1, "vessel": 2},
    "file_ending": ".nii.gz",
    "numTraining": 4,
}


def write(path, labels, spacing=(1.0, 1.0, 2.0), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def labels(shift=0, empty=False):
    found = np.zeros((12, 16, 20), np.uint8)
    if not empty:
        found[3:8, 4 + shift : 10 + shift, 5:12] = 1
        found[4:6, 5 + shift : 8 + shift, 6:9] = 2
    return found


@pytest.fixture
def folders(tmp_path):
    """Four cases; predictions shifted by 0, 1, 2 voxels, and one empty."""
    for number in range(4):
        write(tmp_path / f"labelsTs/case_{number}.nii.gz", labels())
        write(tmp_path / f"predicted/case_{number}.nii.gz", labels(number, empty=number == 3))
    (tmp_path / "predicted/dataset.json").write_text(json.dumps(DATASET))
    return tmp_path / "labelsTs", tmp_path / "predicted"


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments), "--workers", "1"])


def rows(folder, out="evaluation"):
    with (folder / out / "metrics.csv").open() as file:
        return {(row["case"], row["region"]): row for row in csv.DictReader(file)}


def summary(folder):
    return json.loads((folder / "evaluation/summary.json").read_text())


def test_folders(folders, capsys):
    truth, predicted = folders
    assert evaluate(truth, predicted) == 0
    table = rows(predicted)
    assert len(table) == 8
    assert float(table["case_0", "organ"]["dice"]) == 1
    # 4 of 6 rows of the organ and its hole stay in place
    moved = labels(2) == 1
    assert float(table["case_2", "organ"]["dice"]) == pytest.approx(
        2 * (moved & (labels() == 1)).sum() / (2 * moved.sum())
    )
    assert float(table["case_2", "organ"]["hd100"]) == 2
    assert float(table["case_0", "organ"]["truth_ml"]) == pytest.approx((5 * 6 * 7 - 2 * 3 * 3) * 2 / 1000)
    written = summary(predicted)
    assert written["cases"] == 4
    assert written["empty"]["vessel"] == {"truth": 0, "prediction": 1, "both": 0}
    dice = [float(table[f"case_{number}", "vessel"]["dice"]) for number in range(4)]
    assert written["statistics"]["vessel"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    assert "4 cases" in capsys.readouterr().out


def test_spawned_workers_find_the_same(folders):
    truth, predicted = folders
    assert evaluate(truth, predicted, "-o", predicted / "one/evaluation") == 0
    assert (
        main(["evaluate", str(truth), str(predicted), "-o", str(predicted / "two/evaluation"), "--workers", "2"]) == 0
    )
    assert rows(predicted / "one") == rows(predicted / "two")


def test_a_missing_prediction_is_an_empty_one(folders, capsys):
    truth, predicted = folders
    (predicted / "case_1.nii.gz").unlink()
    write(predicted / "stranger.nii.gz", labels())
    assert evaluate(truth, predicted) == 0
    missing, empty = rows(predicted)["case_1", "organ"], rows(predicted)["case_3", "organ"]
    assert {**missing, "case": ""} == {**empty, "case": ""}
    assert summary(predicted)["missing_predictions"] == ["case_1"]
    out = capsys.readouterr().out
    assert "without a prediction, counted as empty: case_1" in out
    assert "stranger.nii.gz" in out


def test_bad_cases_are_named_and_the_others_evaluated(folders, capsys):
    truth, predicted = folders
    write(predicted / "case_0.nii.gz", labels(), origin=(0, 0, 5))
    write(predicted / "case_1.nii.gz", labels() * 3)
    content = (predicted / "case_2.nii.gz").read_bytes()
    (predicted / "case_2.nii.gz").write_bytes(content[: len(content) // 2])
    assert evaluate(truth, predicted) == 1
    out = capsys.readouterr().out
    assert "failed case_0" in out and "origin" in out
    assert "failed case_1" in out and "labels 3, 6" in out
    assert "failed case_2" in out
    assert {case for case, _ in rows(predicted)} == {"case_3"}
    # mended, they are evaluated the next time
    for number in range(3):
        write(predicted / f"case_{number}.nii.gz", labels(number))
    assert evaluate(truth, predicted) == 0
    assert len(rows(predicted)) == 8 and not summary(predicted)["failed"]


def test_nnunets_own_summary_is_not_overwritten(folders, capsys):
    truth, predicted = folders
    (predicted / "summary.json").write_text('{"foreground_mean": {}}')
    assert evaluate(truth, predicted, "-o", predicted) == 2
    assert "another program's" in capsys.readouterr().err
    assert (predicted / "summary.json").read_text() == '{"foreground_mean": {}}'


def test_label_maps_of_another_ending_are_not_passed_over(folders, capsys):
    truth, predicted = folders
    write(truth / "case_9.nii", labels())
    assert evaluate(truth, predicted) == 2
    assert "case_9.nii: this does not end in .nii.gz" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"labels": {"0": "background", "1": "organ"}}', "[1]", "{}"])
def test_a_dataset_json_that_is_none_of_nnunets_is_named(folders, capsys, content):
    truth, predicted = folders
    (predicted / "dataset.json").write_text(content)
    assert evaluate(truth, predicted) == 2
    assert "dataset.json" in capsys.readouterr().err


def test_a_case_that_breaks_costs_no_other_case(folders, monkeypatch, capsys):
    truth, predicted = folders

    def measure(truth, *others):
        if not counted:
            counted.append(1)
            raise MemoryError("too large")
        return original(truth, *others)

    counted, original = [], results.measure_case
    monkeypatch.setattr(results, "measure_case", measure)
    assert evaluate(truth, predicted) == 1
    assert "failed case_0: MemoryError: too large" in capsys.readouterr().out
    assert len(rows(predicted)) == 6


def test_regions_and_settings_by_command_line(folders, tmp_path):
    truth, predicted = folders
    (tmp_path / "regions.json").write_text(json.dumps({"all": [1, 2], "vessel": [2]}))
    command = [truth, predicted, "--regions", tmp_path / "regions.json"]
    assert evaluate(*command, "--penalty", "nan", "--tolerance", "2", "--tolerance", "vessel=0") == 0
    table = rows(predicted)
    assert float(table["case_2", "all"]["nsd"]) == 1
    assert float(table["case_2", "vessel"]["nsd"]) < 1
    assert table["case_3", "all"]["hd95"] == ""
    described = summary(predicted)["statistics"]["all"]["hd95"]
    assert (described["n"], described["undefined"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "predicted"], "there is no such folder"),
        (["labelsTs", "predicted", "--regions", "brat"], "did you mean 'brats'"),
        (["labelsTs", "predicted", "--preset", "brats2023-gly"], "did you mean 'brats2023-gli'"),
        (["labelsTs", "predicted", "--surface", "voxel"], "did you mean 'voxels'"),
        (["labelsTs", "predicted", "--tolerance", "organs=2"], "did you mean 'organ'"),
        (["labelsTs", "predicted", "--tolerance", "-1"], "0 or more"),
        (["labelsTs", "predicted", "--workers", "0"], "at least one process"),
        (["labelsTs"], "give the folders"),
        (["labelsTs", "predicted", "--model", "model"], "either"),
        (["--model", "predicted"], "no model folder"),
    ],
)
def test_wrong_use_is_explained_and_writes_nothing(folders, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folders[0].parent)
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folders[1] / "evaluation").exists()


def test_without_dataset_json_regions_must_be_given(folders, capsys):
    truth, predicted = folders
    (predicted / "dataset.json").unlink()
    assert evaluate(truth, predicted) == 2
    assert "--regions" in capsys.readouterr().err


def test_interrupted_it_goes_on(folders, monkeypatch):
    truth, predicted = folders
    whole = predicted / "whole"
    assert evaluate(truth, predicted, "-o", whole / "evaluation") == 0

    def stop(found, what, count):
        for number, result in enumerate(found):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    cases = cases_of_folders(truth, predicted)
    settings = results.Settings({"organ": (1,), "vessel": (2,)}, Protocol())
    with pytest.raises(KeyboardInterrupt):
        results.evaluate_cases(cases.files, settings, predicted / "evaluation", progress=stop)
    record = predicted / "evaluation/cases.jsonl"
    assert len(record.read_text().splitlines()) == 2
    assert not (predicted / "evaluation/summary.json").exists()
    with record.open("a") as file:
        file.write('{"case": "case_2", "fo')  # killed in the middle of a line
    counted = []
    monkeypatch.setattr(results, "measure_case", counting(results.measure_case, counted))
    assert evaluate(truth, predicted) == 0
    assert len(counted) == 2
    for name in ("metrics.csv", "summary.json", "cases.jsonl"):
        of_whole = (whole / "evaluation" / name).read_text().replace(str(whole), str(predicted))
        assert (predicted / "evaluation" / name).read_text() == of_whole


def counting(function, counted):
    def wrapped(*arguments):
        counted.append(1)
        return function(*arguments)

    return wrapped


def test_a_torn_last_line_costs_no_other_line(folders, monkeypatch):
    """Killed in the middle of a line, continued, and killed again after one more case."""
    truth, predicted = folders
    assert evaluate(truth, predicted) == 0
    record = predicted / "evaluation/cases.jsonl"
    first, second, *_ = record.read_text().splitlines()
    record.write_text(first + "\n" + second[: len(second) // 2])

    def stop_after_one(found, what, count):
        yield next(iter(found))
        raise KeyboardInterrupt

    settings = results.Settings({"organ": (1,), "vessel": (2,)}, Protocol())
    with pytest.raises(KeyboardInterrupt):
        results.evaluate_cases(
            cases_of_folders(truth, predicted).files, settings, predicted / "evaluation", progress=stop_after_one
        )
    counted = []
    monkeypatch.setattr(results, "measure_case", counting(results.measure_case, counted))
    assert evaluate(truth, predicted) == 0
    assert len(counted) == 2, "the first case and the one that followed the torn line are kept"
    assert len(rows(predicted)) == 8


@pytest.mark.parametrize("line", [b"{}", b"null", b"3", b'{"key": [], "case": "case_1"}', b'{"case": "\xff"}'])
def test_a_line_that_is_no_case_is_computed_again(folders, monkeypatch, capsys, line):
    truth, predicted = folders
    assert evaluate(truth, predicted) == 0
    record = predicted / "evaluation/cases.jsonl"
    lines = record.read_bytes().splitlines()
    record.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
    with pytest.raises(ProcessingError, match=r"cases\.jsonl:2: [^$]* run nnunet-glims evaluate again"):
        read_results(predicted / "evaluation")
    counted = []
    monkeypatch.setattr(results, "measure_case", counting(results.measure_case, counted))
    assert evaluate(truth, predicted) == 0, capsys.readouterr().err
    assert len(counted) == 1
    assert record.read_bytes().splitlines() == lines
    assert len(read_results(predicted / "evaluation").cases) == 4


def a_prediction(folders):
    write(folders[1] / "case_1.nii.gz", labels())


def a_truth(folders):
    write(folders[0] / "case_1.nii.gz", labels(1))


@pytest.mark.parametrize(
    ("change", "more", "again"),
    [
        (None, [], 0),
        (a_prediction, [], 1),
        (a_truth, [], 1),
        (None, ["--tolerance", "3"], 4),
        (None, ["--surface", "voxels"], 4),
        (None, ["--penalty", "nan"], 4),
        (None, ["--preset", "brats2021"], 4),
        (None, ["--regions", "organ.json"], 4),
        ("version", [], 4),
    ],
)
def test_only_what_changed_is_computed_again(folders, monkeypatch, change, more, again):
    truth, predicted = folders
    monkeypatch.chdir(truth.parent)
    (truth.parent / "organ.json").write_text('{"all": [1, 2]}')
    assert evaluate(truth, predicted) == 0
    counted = []
    monkeypatch.setattr(results, "measure_case", counting(results.measure_case, counted))
    if change == "version":
        monkeypatch.setattr(results, "METHOD_VERSION", results.METHOD_VERSION + 1)
    elif change is not None:
        change(folders)
    assert evaluate(truth, predicted, *more) == 0
    assert len(counted) == again
    assert summary(predicted)["method_version"] == results.METHOD_VERSION
    if change is a_prediction:
        assert float(rows(predicted)["case_1", "organ"]["dice"]) == 1


def test_a_penalty_beside_a_challenges_preset_is_refused(folders, capsys):
    assert evaluate(*folders, "--preset", "brats2023-gli", "--penalty", "diagonal") == 2
    message = capsys.readouterr().err
    assert "brats2023-gli has the penalty of its challenge, brats2023 (374.0 mm)" in message


def test_from_python(folders, tmp_path):
    truth, predicted = folders
    assert evaluate(truth, predicted, "--surface", "voxels", "--tolerance", "vessel=0.5") == 0
    found = evaluate_folders(
        str(truth), predicted, surface="voxels", region_tolerances={"vessel": 0.5}, out=tmp_path / "out"
    )
    assert (tmp_path / "out/metrics.csv").read_text() == (predicted / "evaluation/metrics.csv").read_text()
    assert found.summary["cases"] == 4 and found.method_version == results.METHOD_VERSION
    organs = evaluate_folders(truth, predicted, regions={"organ": [1, 2]}, out=tmp_path / "organs", only_predicted=True)
    assert organs.table["region"].unique().tolist() == ["organ"]
    with pytest.raises(UsageError, match="did you mean 'vessel'"):
        evaluate_folders(truth, predicted, region_tolerances={"vesel": 1})


def test_label_maps_may_have_different_endings_without_dataset_json(folders):
    truth, predicted = folders
    (predicted / "dataset.json").unlink()
    for file in sorted(predicted.iterdir()):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(predicted / f"{file.name.split('.')[0]}.nrrd"))
        file.unlink()
    assert (
        evaluate_folders(truth, predicted, regions={"organ": [1], "vessel": [2]}).summary["missing_predictions"] == []
    )


@pytest.fixture
def model(folders, tmp_path, monkeypatch):
    """A model folder with two folds of two validation cases."""
    truth, predicted = folders
    folder = tmp_path / "results/Dataset007_Toy/nnUNetTrainerX__nnUNetPlans__3d_fullres"
    preprocessed = tmp_path / "preprocessed/Dataset007_Toy"
    shutil.copytree(truth, preprocessed / "gt_segmentations")
    folds = [["case_0", "case_1"], ["case_2", "case_3"]]
    splits = [{"train": folds[1 - fold], "val": folds[fold]} for fold in range(2)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for fold, cases in enumerate(folds):
        for case in cases:
            (folder / f"fold_{fold}/validation").mkdir(parents=True, exist_ok=True)
            shutil.copy(predicted / f"{case}.nii.gz", folder / f"fold_{fold}/validation")
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset007_Toy", "configurations": {}}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return folder


def test_a_model_gives_every_fold(model, folders):
    assert evaluate("--model", model) == 0
    table = rows(model)
    assert {(case, row["fold"]) for (case, _), row in table.items()} == {
        ("case_0", "0"), ("case_1", "0"), ("case_2", "1"), ("case_3", "1")
    }  # fmt: skip
    assert evaluate(*folders) == 0
    for key, row in rows(folders[1]).items():
        assert {**table[key], "fold": ""} == row


def test_a_case_the_fold_should_have_validated_counts_as_empty(model):
    (model / "fold_1/validation/case_2.nii.gz").unlink()
    assert evaluate("--model", model) == 0
    assert summary(model)["missing_predictions"] == ["case_2"]


def test_label_maps_of_a_model_may_be_elsewhere(model, folders, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert evaluate("--model", model) == 2
    assert "--truth" in capsys.readouterr().err
    assert evaluate("--model", model, "--truth", folders[0]) == 0
    assert len(rows(model)) == 8


def remake_splits(model, folds):
    splits = [{"train": [], "val": cases} for cases in folds]
    path = next((model.parents[2] / "preprocessed").glob("*/splits_final.json"))
    path.write_text(json.dumps(splits))


@pytest.mark.parametrize(
    "folds",
    [
        [["case_0", "case_2"], ["case_1", "case_3"]],
        [["case_3", "case_2"], ["case_1", "case_0"]],
        [["case_0", "case_1", "case_2", "case_3"]],
        [["case_0", "case_9"], ["case_2", "case_3"], ["case_1"]],
    ],
)
def test_splits_made_after_the_training_change_no_number(model, folders, folds, capsys):
    assert evaluate("--model", model, "-o", model / "before") == 0
    expected = json.loads((model / "before/summary.json").read_text())
    remake_splits(model, folds)
    capsys.readouterr()
    assert evaluate("--model", model) == 0
    assert rows(model) == rows(model, "before")
    found = summary(model)
    assert (found["cases"], found["statistics"]) == (4, expected["statistics"])
    assert found["missing_predictions"] == []
    shown = capsys.readouterr().out
    assert "4 cases" in shown and "the splits were made anew after the training" in shown
    assert ("no fold predicted 1 case (case_9)" in shown) == (folds[0][-1] == "case_9")


def test_a_case_that_two_folds_validated_counts_once(model, folders, capsys):
    shutil.copy(folders[0] / "case_0.nii.gz", model / "fold_1/validation")
    remake_splits(model, [["case_0", "case_1"], ["case_0", "case_2", "case_3"]])
    assert evaluate("--model", model) == 0
    found = summary(model)
    assert (found["cases"], found["records"]) == (4, 5)
    assert "several folds (0, 1) predicted 1 case (case_0): each counts once" in capsys.readouterr().out
    values = {}
    for line in read_results(model / "evaluation").cases:
        values.setdefault(line["case"], []).append(line["regions"]["organ"]["dice"])
    assert len(values["case_0"]) == 2 and values["case_0"][1] == 1
    assert found["statistics"]["organ"]["dice"]["mean"] == pytest.approx(
        np.mean([np.mean(of_case) for of_case in values.values()])
    )


@pytest.mark.parametrize(
    "content", ["{}", "3", "null", '[{"val": ["case_0"]}]', '[{"train": [], "val": "case_0"}]', "["]
)
def test_splits_that_are_none_are_named(model, content, capsys):
    next((model.parents[2] / "preprocessed").glob("*/splits_final.json")).write_text(content)
    assert evaluate("--model", model) == 2
    assert "splits_final.json:" in capsys.readouterr().err


def test_one_process_at_a_time_evaluates_into_a_folder(folders, capsys):
    with lock(folders[1] / "evaluation" / results.LOCK, "this test"):
        assert evaluate(*folders) == 1
    assert "evaluating into" in capsys.readouterr().err and not (folders[1] / "evaluation/summary.json").exists()
    assert evaluate(*folders) == 0


def nnunets_summary(model, fold, cases):
    """Write the summary that nnU-Net writes when a validation is complete."""
    measured = {"prediction_file": "x", "metrics": {"1": {"Dice": float("nan")}}}
    listed = [{"reference_file": f"/gt/{case}.nii.gz", **measured} for case in cases]
    (model / f"fold_{fold}/validation/summary.json").write_text(json.dumps({"metric_per_case": listed}))


def test_cases_that_came_to_the_splits_later_are_not_missing(model, folders, capsys):
    truths = next((model.parents[2] / "preprocessed").glob("*/gt_segmentations"))
    for number in range(4, 6):
        write(truths / f"case_{number}.nii.gz", labels())
    remake_splits(model, [["case_0", "case_1", "case_4"], ["case_2", "case_3", "case_5"]])
    nnunets_summary(model, 0, ["case_0", "case_1"])
    assert evaluate("--model", model) == 0
    assert summary(model)["missing_predictions"] == ["case_5"], "the validation of fold 1 was stopped"
    assert "has fold 0 validate 1 case (case_4) more than it did" in capsys.readouterr().out
    (model / "fold_0/validation/case_1.nii.gz").unlink()
    assert evaluate("--model", model) == 0
    assert summary(model)["missing_predictions"] == ["case_1", "case_5"]


def test_a_damaged_summary_of_nnunet_is_named(model, capsys):
    (model / "fold_0/validation/summary.json").write_text('{"metric_per_case": 3}')
    assert evaluate("--model", model) == 1
    assert "fold_0/validation/summary.json:1: metric_per_case" in capsys.readouterr().err


def test_a_full_disk_is_named_and_the_evaluation_goes_on(folders, tmp_path, monkeypatch, capsys):
    assert evaluate(*folders, "-o", tmp_path / "whole") == 0
    with largest_file(
        (tmp_path / "whole/cases.jsonl").stat().st_size * 5 // 8
    ):  # two of four lines, whatever the paths
        assert evaluate(*folders) == 1
    message = capsys.readouterr().err
    assert "evaluation/cases.jsonl: cannot be written: File too large" in message and "free" in message
    assert not (folders[1] / "evaluation/summary.json").exists()
    counted = []
    monkeypatch.setattr(results, "measure_case", counting(results.measure_case, counted))
    assert evaluate(*folders) == 0
    assert 0 < len(counted) < 4 and len(rows(folders[1])) == 8


def test_what_is_no_regular_file_fails_its_own_case(folders, capsys):
    truth, predicted = folders
    for number in range(3):
        (predicted / f"case_{number}.nii.gz").unlink()
    os.mkfifo(predicted / "case_0.nii.gz")
    (predicted / "case_1.nii.gz").mkdir()
    (predicted / "case_2.nii.gz").symlink_to("nowhere")
    assert evaluate(truth, predicted) == 1
    out = capsys.readouterr().out
    assert out.count("this is no regular file") == 2 and "there is no such file" in out and "Errno" not in out


def test_a_region_without_a_name_is_refused_first(folders, tmp_path, capsys):
    (tmp_path / "regions.json").write_text('{"": [1, 2]}')
    assert evaluate(*folders, "--regions", tmp_path / "regions.json") == 2
    assert "regions.json: a region has an empty name" in capsys.readouterr().err


def test_values_that_no_metric_can_have_are_not_ranked(folders, tmp_path, capsys):
    assert evaluate(*folders) == 0
    file = folders[1] / "evaluation/cases.jsonl"
    first, *others = map(json.loads, file.read_text().splitlines())
    first["regions"]["organ"]["dice"] = 2.0
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, *others)))
    assert main(["leaderboard", f"a={folders[1]}", "-o", str(tmp_path / "board")]) == 1
    assert "cases.jsonl:1: case case_0: organ: dice cannot be 2" in capsys.readouterr().err
