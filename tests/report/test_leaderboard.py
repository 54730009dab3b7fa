"""`nnunet-glims leaderboard` on predictions whose order is known."""

import csv
import json
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nnunet_glims.cli import main
from nnunet_glims.evaluation import results
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.nnunet.training_log import read_training_log
from nnunet_glims.report.figures import _cliques
from tests.report.conftest import copy_without_first_cases

ENTRIES = ("poor", "good", "fair")


def leaderboard(folder, out, *more, entries=ENTRIES):
    return main(["leaderboard", *(f"{name}={folder / name}" for name in entries), "-o", str(out), *map(str, more)])


@pytest.fixture(scope="session")
def board(evaluated, tmp_path_factory):
    """The folder that the command writes for the three entries."""
    out = tmp_path_factory.mktemp("out")
    assert leaderboard(evaluated, out, "--published", "GLIMS,LATUPNet", "--title", "Toys <& more>", "--cases", "3") == 0
    return out


def test_statistics_are_those_of_the_evaluations(board, evaluated):
    with (board / "leaderboard.csv").open() as file:
        rows = {(row["entry"], row["region"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 3 * 2 * 3
    for entry in ENTRIES:
        summary = json.loads((evaluated / entry / "evaluation/summary.json").read_text())
        for region, metrics in summary["statistics"].items():
            for metric in ("dice", "hd95", "nsd"):
                row = rows[entry, region, metric]
                assert float(row["mean"]) == pytest.approx(metrics[metric]["mean"])
                assert float(row["ci95_low"]) == pytest.approx(metrics[metric]["ci95"][0])


def test_comparisons_have_every_pair(board):
    with (board / "comparisons.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 3
    pair = next(row for row in rows if (row["metric"], row["first"], row["second"]) == ("dice", "poor", "good"))
    assert float(pair["difference"]) < 0 and float(pair["effect"]) == -1
    assert float(pair["p"]) == pytest.approx(2 / 2**8)


def test_markdown_is_sorted_and_marks_the_best(board):
    lines = (board / "leaderboard.md").read_text().splitlines()
    assert lines[0] == "# Toys &lt;&amp; more&gt;"
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[2:5]] == ["| good", "| fair", "| poor"]
    assert all("**" in cell for cell in table[2].split(" | ")[1:5])
    assert table[3].count("**") == 0 and "*" in table[3]
    widths = {line.count(" | ") for line in table[:5]}
    assert len(widths) == 1


def test_latex_has_as_many_cells_in_every_row(board):
    text = (board / "leaderboard.tex").read_text()
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    spans = [
        sum(
            int(re.match(r"\s*\\multicolumn\{(\d+)\}", cell)[1]) if "multicolumn" in cell else 1
            for cell in row.split("&")
        )
        for row in rows
    ]
    assert spans == [columns] * 5
    assert "\\textbf{" in text and "WT" in text


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.links, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[name] for name in ("src", "srcset", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "link", "img", "source", "input", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(board):
    text = (board / "leaderboard.html").read_text()
    page = Page(text)
    assert page.opened == []
    outside = [link for link in page.links if not link.startswith("data:")]
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside) and len(outside) == 2
    assert "Toys &lt;&amp; more&gt;" in text
    assert "BraTS 2021: Dice WT 0.9029" in text
    assert len(page.ids) == len(set(page.ids))


def stacks(out):
    text = (out / "leaderboard.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="stacks">(.*?)</script>', text, re.S)[1])


def test_shown_cases_are_the_worst_and_the_median(board, evaluated):
    shown = stacks(board)
    assert len(shown) == 3
    summary = {}
    for line in (evaluated / "poor/evaluation/cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        summary[case["case"]] = sum(region["dice"] for region in case["regions"].values())
    worst = min(summary, key=lambda case: summary[case])
    assert shown[0]["case"] == worst and "poor: worst" in shown[0]["why"]
    assert [entry["name"] for entry in shown[0]["entries"]] == list(ENTRIES)
    assert shown[0]["slices"] == list(range(3, 9))
    assert shown[0]["image"].startswith("data:image/jpeg;base64,")


def test_without_images_labels_are_on_black(evaluated, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(evaluated, folder)
    shutil.rmtree(folder / "imagesTs")
    for entry in ("good", "fair"):  # the evaluation remembers where its files lay
        record = folder / entry / "evaluation/cases.jsonl"
        record.write_text(record.read_text().replace(str(evaluated), str(folder)))
    assert leaderboard(folder, tmp_path / "out", entries=("good", "fair")) == 0
    assert "images were not found" in capsys.readouterr().out


def test_one_entry_has_no_ranks(evaluated, tmp_path):
    assert leaderboard(evaluated, tmp_path, "--cases", "0", entries=("good",)) == 0
    text = (tmp_path / "leaderboard.html").read_text()
    assert "Mean rank" not in text and "1 entry on" in text


def test_entries_from_yaml(evaluated, tmp_path, capsys):
    board = {"title": "From a file", "entries": [{"name": name, "path": name} for name in ENTRIES]}
    board["entries"][0]["seconds_a_case"] = 12.5
    (evaluated / "board.yaml").write_text(json.dumps(board))  # JSON is YAML
    assert main(["leaderboard", str(evaluated / "board.yaml"), "-o", str(tmp_path)]) == 0
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.startswith("# From a file") and "12.5" in text
    board["entries"][0]["pathh"] = "x"
    (evaluated / "board.yaml").write_text(json.dumps(board))
    assert main(["leaderboard", str(evaluated / "board.yaml"), "-o", str(tmp_path / "new")]) == 2
    assert "did you mean 'path'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_cases_need_intersection(evaluated, tmp_path, capsys):
    folder = tmp_path / "fewer"
    copy_without_first_cases(evaluated / "good", folder, 2)
    command = [
        "leaderboard",
        f"all={evaluated / 'fair'}",
        f"fewer={folder}",
        "-o",
        str(tmp_path / "out"),
        "--cases",
        "0",
    ]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "fewer misses 2: case_0, case_1" in message and "--intersection" in message
    assert main([*command, "--intersection"]) == 0
    text = (tmp_path / "out/leaderboard.html").read_text()
    assert "6 cases" in text and "all 2" in text


def test_an_evaluation_that_was_interrupted_is_refused(evaluated, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "again"
    shutil.copytree(evaluated / "good", folder)
    monkeypatch.setattr(results, "measure_case", lambda *arguments: stop())
    assert main(["evaluate", str(evaluated / "labelsTs"), str(folder), "--tolerance", "5", "--workers", "1"]) == 130
    assert main(["leaderboard", f"a={evaluated / 'fair'}", f"b={folder}", "-o", str(tmp_path / "out")]) == 2
    assert "has no completed evaluation" in capsys.readouterr().err


def test_a_prediction_that_changed_after_the_evaluation_is_refused(evaluated, tmp_path, capsys):
    shutil.copytree(evaluated / "good", tmp_path / "good")
    shutil.rmtree(tmp_path / "good/evaluation")
    assert main(["evaluate", str(evaluated / "labelsTs"), str(tmp_path / "good"), "--workers", "1"]) == 0
    shutil.copyfile(evaluated / "poor/case_3.nii.gz", tmp_path / "good/case_3.nii.gz")
    command = ["leaderboard", f"a={evaluated / 'fair'}", f"b={tmp_path / 'good'}", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "case_3.nii.gz of case case_3 has changed since it was evaluated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


FIRST_RELEASE = Path(__file__).parents[1] / "golden/evaluation_0.1.0"
"""An evaluation of three cases that the first release wrote."""


def test_an_evaluation_of_the_first_release_is_read(tmp_path):
    command = ["leaderboard", f"old={FIRST_RELEASE}", f"again={shutil.copytree(FIRST_RELEASE, tmp_path / 'again')}"]
    assert main([*command, "-o", str(tmp_path / "out"), "--cases", "0"]) == 0
    summary = json.loads((FIRST_RELEASE / "summary.json").read_text())
    with (tmp_path / "out/leaderboard.csv").open() as file:
        for row in csv.DictReader(file):
            described = summary["statistics"][row["region"]][row["metric"]]
            assert float(row["mean"]) == pytest.approx(described["mean"])
            assert row["ci95_low"] == row["ci95_high"] == "", "three cases are too few for an interval"
    assert main(["confusion", f"old={FIRST_RELEASE}", "-o", str(tmp_path / "matrices")]) == 0


def test_versions_of_the_metrics_are_not_mixed(evaluated, tmp_path, capsys):
    command = ["leaderboard", f"new={evaluated / 'fair'}", f"old={FIRST_RELEASE}", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"new was evaluated with version {results.METHOD_VERSION} of the metrics, old with version 0" in message
    assert "Run nnunet-glims evaluate again for old" in message


def model_folder(evaluated, folder, trainer, fold):
    """The evaluated predictions of "good" as those of a model of a trainer that this machine may not have."""
    model = folder / f"{trainer}__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    plans = {"dataset_name": "Dataset001_Toy", "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text((evaluated / "good/dataset.json").read_text())
    (model / "fold_0/training_log_2026_1_9_10_00_00.txt").write_text(fold)
    shutil.copytree(evaluated / "good/evaluation", model / "evaluation")
    summary = json.loads((model / "evaluation/summary.json").read_text())
    (model / "evaluation/summary.json").write_text(json.dumps({**summary, "model": str(model)}))
    return model


@pytest.mark.parametrize(
    "error", [TypeError("unexpected keyword"), KeyError("architecture"), RuntimeError("no memory")]
)
def test_a_model_that_no_longer_builds_does_not_end_the_leaderboard(evaluated, tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(ModelFolder, "network", fail)
    model = model_folder(evaluated, tmp_path, "nnUNetTrainerGone", LOG)
    assert (
        main(
            ["leaderboard", f"fair={evaluated / 'fair'}", f"gone={model}", "-o", str(tmp_path / "out"), "--cases", "0"]
        )
        == 0
    )
    text = (tmp_path / "out/leaderboard.html").read_text()
    assert f"gone: the model could not be read or built: {type(error).__name__}: " in text
    assert "Learning curves" in text and "0.50</td>" in text, "what its log tells is shown all the same"


def test_a_damaged_model_folder_does_not_end_the_leaderboard(evaluated, tmp_path):
    model = model_folder(evaluated, tmp_path, "nnUNetTrainerGone", LOG)
    (model / "plans.json").write_text('{"cut off')
    assert (
        main(
            ["leaderboard", f"fair={evaluated / 'fair'}", f"gone={model}", "-o", str(tmp_path / "out"), "--cases", "0"]
        )
        == 0
    )
    assert "plans.json:1: this is not JSON" in (tmp_path / "out/leaderboard.html").read_text()


def stop():
    raise KeyboardInterrupt


def test_other_label_maps_cannot_be_compared(evaluated, tmp_path, capsys):
    truths = tmp_path / "labelsTs"
    shutil.copytree(evaluated / "labelsTs", truths)
    shutil.copy(truths / "case_1.nii.gz", truths / "case_0.nii.gz")
    assert (
        main(["evaluate", str(truths), str(evaluated / "good"), "-o", str(tmp_path / "other"), "--workers", "1"]) == 0
    )
    command = ["leaderboard", f"a={evaluated / 'fair'}", f"b={tmp_path / 'other'}", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "case case_0: the entries were evaluated against different label maps" in capsys.readouterr().err


def test_folders_may_be_given_relative_to_any_place(evaluated, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(evaluated, folder)
    shutil.rmtree(folder / "good/evaluation")
    monkeypatch.chdir(folder)
    assert main(["evaluate", "labelsTs", "good", "--workers", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "good=data/good", "-o", "out", "--cases", "2"]) == 0
    assert len(stacks(tmp_path / "out")) == 2


def test_any_name_is_shown_as_it_is(evaluated, tmp_path, capsys):
    names = ["$\\foo$", "x[/b]y [red]", "_hidden", "nothing", "</script><b>", 'a"b & c']
    entries = [f"{name}={evaluated / 'good'}" for name in names]
    assert main(["leaderboard", *entries, "-o", str(tmp_path), "--cases", "1"]) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "leaderboard.html").read_text()
    for name in names:
        assert f"{name}: Dice" in out
        assert escape(name, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")
    assert [entry["name"] for entry in stacks(tmp_path)[0]["entries"]] == names


def test_other_settings_cannot_be_compared(evaluated, tmp_path, capsys):
    folder = tmp_path / "voxels"
    shutil.copytree(evaluated / "good", folder)
    assert main(["evaluate", str(evaluated / "labelsTs"), str(folder), "--surface", "voxels", "--workers", "1"]) == 0
    assert main(["leaderboard", f"a={evaluated / 'fair'}", f"b={folder}", "-o", str(tmp_path / "out")]) == 2
    assert "evaluated with different settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "give NAME=FOLDER"),
        (["a=good", "a=good"], "is given twice: each seed has a folder of its own"),
        (["a=nowhere"], "there is no such folder"),
        (["a=labelsTs"], "has no completed evaluation: run nnunet-glims evaluate"),
        (["a=good", "--metrics", "dise"], "did you mean 'dice'"),
        (["a=good", "--metrics", "lesion_dice"], "was not measured"),
        (["a=good", "--published", "GLIM"], "did you mean 'GLIMS'"),
        (["a=good", "--channel", "T1c"], "did you mean 'T1'"),
        (["a=good", "--images", "nowhere"], "there is no such folder"),
        (["board.yml"], "there is no such file"),
        (["a=good", "--patients", "nowhere.csv"], "nowhere.csv: there is no such file"),
    ],
)
def test_wrong_use_is_explained_and_writes_nothing(evaluated, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(evaluated)
    assert main(["leaderboard", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cliques_join_neighbours_within_the_critical_difference():
    assert _cliques([1.0, 1.4, 2.1, 3.5], 0.8) == [(0, 1), (1, 2)]
    assert _cliques([1.0, 2.0, 3.0], 0.5) == []
    assert _cliques([1.0, 1.1, 1.2], 0.5) == [(0, 2)]


LOG = """
2026-01-01 10:00:00.000000: Epoch 0
2026-01-01 10:30:00.000000: train_loss 0.5
2026-01-01 10:30:00.000000: val_loss 0.4
2026-01-01 10:30:00.000000: Pseudo dice [np.float32(0.25), np.float32(0.75)]
2026-01-01 10:30:00.000000: Epoch time: 1800.0 s
2026-01-01 10:30:00.000000: Epoch 1
2026-01-01 11:00:00.000000: train_loss 0.3
"""
RESUMED = """
2026-01-02 10:00:00.000000: Epoch 1
2026-01-02 10:15:00.000000: train_loss 0.2
2026-01-02 10:15:00.000000: val_loss 0.1
2026-01-02 10:15:00.000000: Pseudo dice [0.8, nan]
2026-01-02 10:15:00.000000: Epoch time: 900.0 s
2026-01-02 10:15:01.000000: Peak memory: 7.25 GiB
2026-01-02 10:15:02.000000: predicting a
2026-01-02 10:15:03.000000: a, shape torch.Size([1, 3, 3, 3]), rank 0
2026-01-02 10:15:06.000000: predicting b
2026-01-02 10:15:12.000000: predicting c
2026-01-02 10:15:14.000000: Validation complete
"""


def test_training_logs_of_an_interrupted_training(tmp_path):
    (tmp_path / "training_log_2026_1_9_10_00_00.txt").write_text(LOG)
    (tmp_path / "training_log_2026_1_10_10_00_00.txt").write_text(RESUMED)
    (tmp_path / "debug.json").write_text('{"device": "cuda:0"}')
    log = read_training_log(tmp_path)
    assert log.curves["training loss"] == [0.5, 0.2]
    assert log.curves["validation loss"] == [0.4, 0.1]
    assert log.curves["pseudo Dice"] == [0.5, 0.8]  # a class without a value is left out of the mean
    assert log.hours == 0.75
    assert log.case_seconds == 5
    assert log.peak_gib == 7.25
    assert log.device == "cuda:0"


def test_confusion_refuses_changed_predictions_and_failed_cases(evaluated, tmp_path, capsys):
    predictions = tmp_path / "good"
    shutil.copytree(evaluated / "good", predictions, ignore=shutil.ignore_patterns("evaluation"))
    evaluate = ["evaluate", str(evaluated / "labelsTs"), str(predictions), "--workers", "1"]
    command = ["confusion", f"a={predictions}", "-o", str(tmp_path / "out")]
    assert main(evaluate) == 0
    shutil.copyfile(evaluated / "poor/case_3.nii.gz", predictions / "case_3.nii.gz")
    assert main(command) == 2
    assert "case_3 has changed since it was evaluated" in capsys.readouterr().err
    (predictions / "case_3.nii.gz").write_bytes((predictions / "case_3.nii.gz").read_bytes()[:-20])
    assert main(evaluate) == 1
    assert main(command) == 2
    assert "1 cases could not be evaluated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predictions_that_changed_after_they_were_moved_are_refused(evaluated, tmp_path, capsys):
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(evaluated / "good", first, ignore=shutil.ignore_patterns("evaluation"))
    assert main(["evaluate", str(evaluated / "labelsTs"), str(first), "--workers", "1"]) == 0
    shutil.copytree(first, moved)
    shutil.copyfile(evaluated / "poor/case_3.nii.gz", moved / "case_3.nii.gz")
    command = ["leaderboard", f"a={moved}", "--cases", "0", "-o", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 2
        assert "case case_3 has changed since it was evaluated" in capsys.readouterr().err
        shutil.rmtree(first, ignore_errors=True)
    for file in moved.glob("*.nii.gz"):
        file.unlink()
    shutil.move(moved / "evaluation", tmp_path / "alone")
    assert main([*command[:1], f"a={tmp_path / 'alone'}", *command[2:]]) == 0
    assert "could not be checked" in capsys.readouterr().out
    assert "could not be checked" in (tmp_path / "out/leaderboard.html").read_text()
