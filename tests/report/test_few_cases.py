"""What a leaderboard of few cases or of parts of a cross-validation says, and what it does not claim."""

import csv
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import stats

from nnunet_glims.cli import main
from nnunet_glims.evaluation.ranking import paired_tests, rank, signed_rank, smallest_p
from tests.evaluation.test_ranking import DICE, HD95, table

DATASET = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".mha"}


def write(path, shift):
    labels = np.zeros((8, 20, 20), np.uint8)
    labels[2:6, 4:10, 4 + shift : 10 + shift] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))


@pytest.fixture
def evaluated(tmp_path):
    """A function that evaluates the entries good, fair and poor on so many cases, and returns their folders."""

    def make(cases):
        for number in range(cases):
            write(tmp_path / f"labelsTs/case_{number}.mha", number % 3)
            for entry, shift in (("good", 0), ("fair", 1), ("poor", 3)):
                write(tmp_path / f"{entry}/case_{number}.mha", number % 3 + shift)
        for entry in ("good", "fair", "poor"):
            (tmp_path / entry / "dataset.json").write_text(json.dumps(DATASET))
            assert main(["evaluate", str(tmp_path / "labelsTs"), str(tmp_path / entry), "--workers", "1"]) == 0
        return {entry: tmp_path / entry for entry in ("good", "fair", "poor")}

    return make


def leaderboard(folders, out, *more):
    entries = [f"{name}={folder}" for name, folder in folders.items()]
    assert main(["leaderboard", *entries, "-o", str(out), "--cases", "0", *more]) == 0
    return {name: (out / f"leaderboard.{name}").read_text() for name in ("html", "md", "tex", "csv")}


def text_of(html):
    return " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", html, flags=re.S).split())


def test_four_cases_claim_nothing(evaluated, tmp_path, capsys):
    pages = leaderboard(evaluated(4), tmp_path / "out")
    shown = text_of(pages["html"])
    assert "Friedman" not in shown and 'class="best"' not in pages["html"] and "Nemenyi" not in shown
    assert not re.search(r"\[\d", shown), "no interval"
    assert "**" not in pages["md"] and "textbf" not in pages["tex"] and not re.search(r"\[\d", pages["md"])
    for text in (shown, pages["md"], pages["tex"], " ".join(capsys.readouterr().out.split())):
        assert "No p value of a paired test of 4 cases can be below 0.12, or below 0.38" in text
    assert not re.search(r"p (&lt; )?0\.0", shown)
    with (tmp_path / "out/comparisons.csv").open() as file:
        assert {(row["p"], row["p_holm"]) for row in csv.DictReader(file)} == {("", "")}
    with (tmp_path / "out/leaderboard.csv").open() as file:
        assert {row["ci95_low"] for row in csv.DictReader(file)} == {""}


def test_six_cases_have_intervals_but_no_test_that_no_pair_could_pass(evaluated, tmp_path):
    pages = leaderboard(evaluated(6), tmp_path / "out")
    shown = text_of(pages["html"])
    assert "Friedman" not in shown and "Nemenyi" not in shown
    assert "The smallest p value that 6 cases allow: 0.031 for one test, 0.094 after" in shown
    assert "tests of all entries together are left out" in shown
    assert "**" in pages["md"] and "\\*" not in pages["md"]
    with (tmp_path / "out/comparisons.csv").open() as file:
        assert min(float(row["p_holm"]) for row in csv.DictReader(file)) == pytest.approx(3 / 2**5)


def test_eight_cases_allow_tests_of_all_entries(evaluated, tmp_path):
    shown = text_of(leaderboard(evaluated(8), tmp_path / "out")["html"])
    assert "Friedman’s test over all entries: p" in shown and "Nemenyi" in shown
    assert "0.0078 for one test, 0.023 after" in shown


@pytest.mark.parametrize("patients", [5, 6, 8, 11])
def test_the_smallest_p_is_the_one_of_scipy(patients):
    for differences in (np.arange(1.0, patients + 1), np.full(patients, 0.1)):
        exact = stats.permutation_test(
            (differences,),
            lambda d: stats.rankdata(abs(d)) @ np.sign(d),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert signed_rank(differences)[0] == pytest.approx(smallest_p(patients)) == pytest.approx(exact.pvalue)


def test_equal_differences_have_an_exact_p():
    differences = np.array([1.0, 1, 1, -1, 2, 2, -2, 3])
    exact = stats.permutation_test(
        (differences,), lambda d: stats.rankdata(abs(d)) @ np.sign(d), permutation_type="samples", n_resamples=np.inf
    )
    assert signed_rank(differences)[0] == pytest.approx(exact.pvalue)


@pytest.mark.parametrize(("patients", "tested"), [(2, False), (4, False), (5, False), (7, True)])
def test_friedman_claims_nothing_that_no_pair_could_show(patients, tested):
    entries = {name: [level] * patients for name, level in (("a", 0.9), ("b", 0.8), ("c", 0.7))}
    ranking = rank(table(**entries), [DICE, HD95])
    assert ranking.smallest_p == pytest.approx(min(1, 3 * 2 / 2**patients))
    assert (ranking.friedman_p is not None) == tested == (ranking.critical_difference is not None)
    assert np.isnan(paired_tests(table(**entries), "dice")[0].p) == (patients < 5)


def model_folder(tmp_path, monkeypatch, folds, cases=6):
    """A model with predictions of these folds of three, with two cases each."""
    dataset = "Dataset008_Few"
    preprocessed, folder = (
        tmp_path / "preprocessed" / dataset,
        tmp_path / f"results/{dataset}/nnUNetTrainerX__P__3d_fullres",
    )
    names = [f"case_{number}" for number in range(cases)]
    for name in names:
        write(preprocessed / f"gt_segmentations/{name}.mha", 0)
    for fold in folds:
        for name in names[2 * fold : 2 * fold + 2]:
            write(folder / f"fold_{fold}/validation/{name}.mha", 1)
    splits = [{"train": [], "val": names[2 * fold : 2 * fold + 2]} for fold in range(3)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": dataset, "configurations": {}}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return folder


@pytest.mark.parametrize("folds", [[1], [0, 2], [0, 1, 2]])
def test_part_of_a_cross_validation_is_called_so(folds, tmp_path, monkeypatch, capsys):
    model = model_folder(tmp_path, monkeypatch, folds)
    assert main(["evaluate", "--model", str(model), "--workers", "1"]) == 0
    capsys.readouterr()
    pages = leaderboard({"X": model}, tmp_path / "out", "--note", "Y is <not> done")
    which = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    sentence = f"Partial report, n = {2 * len(folds)} cases: X has {which} of 3, {2 * len(folds)} of 6 cases."
    for text in (text_of(pages["html"]), pages["md"], pages["tex"], " ".join(capsys.readouterr().out.split())):
        assert (sentence in text) == (len(folds) < 3) == ("Partial" in text)
    assert "Y is &lt;not&gt; done" in pages["html"] and "Y is &lt;not&gt; done" in pages["md"]


def test_cases_that_were_left_out_make_a_report_partial(evaluated, tmp_path):
    folder = evaluated(6)["good"]
    (folder / "case_2.mha").unlink()
    arguments = ["evaluate", str(tmp_path / "labelsTs"), str(folder), "--workers", "1"]
    assert main(arguments) == 0
    pages = leaderboard({"good": folder}, tmp_path / "out")
    assert "good: 1 case (case_2) without a prediction, counted as empty." in pages["md"]
    assert main([*arguments, "--only-predicted"]) == 0
    pages = leaderboard({"good": folder}, tmp_path / "out")
    assert "Partial report, n = 5 cases: good has 5 of 6 cases." in pages["md"]
