"""Seeds of an entry are averaged, then the cases of a patient: numbers, tests and what the page says of them."""

import csv
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.report.leaderboard import leaderboard
from tests.report.conftest import copy_without_first_cases

PATIENT = {f"case_{number}": "A" if number < 3 else f"P{number}" for number in range(8)}
SEEDS = ("good", "fair")


def dice(evaluated, name):
    """Case -> Dice of the whole tumour, as the evaluation wrote it."""
    with (evaluated / name / "evaluation/metrics.csv").open() as file:
        return {row["case"]: float(row["dice"]) for row in csv.DictReader(file) if row["region"] == "whole_tumor"}


def by_patient(values):
    """Patient -> mean over the patient's cases."""
    of_patient = {}
    for case, value in values.items():
        of_patient.setdefault(PATIENT[case], []).append(value)
    return np.array([np.mean(found) for found in of_patient.values()])


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    path = tmp_path_factory.mktemp("patients") / "patients.csv"
    path.write_text("case,patient\n" + "".join(f"{case},{patient}\n" for case, patient in PATIENT.items()))
    return path


@pytest.fixture(scope="module")
def board(evaluated, patients, tmp_path_factory):
    """An entry with two seeds and one with one seed, of eight cases of six patients."""
    out = tmp_path_factory.mktemp("seeds")
    entries = [f"ours={evaluated / name}" for name in SEEDS] + [f"poor={evaluated / 'poor'}"]
    assert main(["leaderboard", *entries, "-o", str(out), "--patients", str(patients), "--cases", "2"]) == 0
    return out


def row_of(board, entry):
    with (board / "leaderboard.csv").open() as file:
        return next(
            row
            for row in csv.DictReader(file)
            if (row["entry"], row["region"], row["metric"]) == (entry, "whole_tumor", "dice")
        )


def test_means_are_over_seeds_then_cases_then_patients(board, evaluated):
    seeds = [dice(evaluated, name) for name in SEEDS]
    ours = {case: np.mean([seed[case] for seed in seeds]) for case in PATIENT}
    row = row_of(board, "ours")
    assert (row["n"], row["seeds"]) == ("6", "2")
    assert float(row["mean"]) == pytest.approx(by_patient(ours).mean())
    assert float(row["sd"]) == pytest.approx(by_patient(ours).std(ddof=1))
    assert float(row["mean_over_cases"]) == pytest.approx(np.mean(list(ours.values())))
    assert float(row["mean"]) != pytest.approx(float(row["mean_over_cases"]), abs=1e-6)
    between = np.std([by_patient(seed).mean() for seed in seeds], ddof=1)
    assert float(row["sd_between_seeds"]) == pytest.approx(between)
    assert row_of(board, "poor")["sd_between_seeds"] == ""


def test_intervals_resample_patients(board, evaluated):
    values = by_patient(dice(evaluated, "poor"))
    interval = stats.bootstrap((values,), np.mean, method="percentile", random_state=np.random.default_rng(1))
    row = row_of(board, "poor")
    expected = interval.confidence_interval
    assert float(row["ci95_low"]) == pytest.approx(expected.low, abs=2e-3)
    assert float(row["ci95_high"]) == pytest.approx(expected.high, abs=2e-3)


def test_tests_are_of_patients(board, evaluated):
    seeds = [dice(evaluated, name) for name in SEEDS]
    ours = by_patient({case: np.mean([seed[case] for seed in seeds]) for case in PATIENT})
    with (board / "comparisons.csv").open() as file:
        (pair,) = [
            row for row in csv.DictReader(file) if (row["metric"], row["region"]) == ("dice", "whole_tumor")
        ]  # two seeds are one entry
    assert (pair["first"], pair["second"], pair["patients"]) == ("ours", "poor", "6")
    differences = ours - by_patient(dice(evaluated, "poor"))
    assert float(pair["difference"]) == pytest.approx(differences.mean())
    assert float(pair["p"]) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_the_page_says_which_mean_is_which(board):
    text = " ".join((board / "leaderboard.html").read_text().split())
    assert "2 entries on 8 cases of 6 patients." in text
    assert "The patients of the cases are known from patients.csv." in text
    assert "intervals resample patients" in text and "standard deviation between the means of the seeds" in text
    row = row_of(board, "ours")
    assert f"<small>over cases {float(row['mean_over_cases']):.3f}</small>" in text
    assert f"<small>2 seeds ± {float(row['sd_between_seeds']):.3f}</small>" in text
    markdown = (board / "leaderboard.md").read_text()
    assert f"; over cases {float(row['mean_over_cases']):.3f}; 2 seeds ± " in markdown


def test_seeds_in_a_yaml_file_and_from_python_are_the_same(board, evaluated, patients, tmp_path):
    entries = [{"name": "ours", "paths": list(SEEDS)}, {"name": "poor", "path": "poor"}]
    file = evaluated / "seeds.yaml"
    file.write_text(json.dumps({"entries": entries}))
    leaderboard(file, tmp_path / "yaml", patients=patients, cases=0)
    made = leaderboard(
        {"ours": [evaluated / name for name in SEEDS], "poor": evaluated / "poor"},
        tmp_path / "python",
        patients=patients,
        cases=0,
    )
    assert made.board.ordered == ["ours", "poor"] and made.page == tmp_path / "python/leaderboard.html"
    for folder in ("yaml", "python"):
        assert (tmp_path / folder / "leaderboard.csv").read_text() == (board / "leaderboard.csv").read_text()


@pytest.mark.parametrize("entry", [{"name": "a"}, {"name": "a", "path": "good", "paths": ["fair"]}])
def test_an_entry_has_a_path_or_paths(entry, evaluated, tmp_path, capsys):
    (tmp_path / "board.yaml").write_text(json.dumps({"entries": [entry]}))
    assert main(["leaderboard", str(tmp_path / "board.yaml"), "-o", str(tmp_path / "out")]) == 2
    assert "a: give either path, or paths" in capsys.readouterr().err


def test_an_entry_without_a_folder_is_refused_from_python(tmp_path):
    with pytest.raises(UsageError, match="a: give either path, or paths"):
        leaderboard({"a": []}, tmp_path)


def test_seeds_with_different_cases_are_compared_on_those_that_all_have(evaluated, tmp_path, capsys):
    copy_without_first_cases(evaluated / "good", tmp_path / "fewer", 1)
    command = ["leaderboard", f"a={evaluated / 'fair'}", f"a={tmp_path / 'fewer'}", f"b={evaluated / 'poor'}"]
    command += ["-o", str(tmp_path / "out"), "--cases", "0"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"a ({tmp_path / 'fewer'}) misses 1: case_0" in message
    assert "compare on the 7 that all have with --intersection" in message
    assert main([*command, "--intersection"]) == 0
    first, second = dice(evaluated, "fair"), dice(evaluated, "good")
    mean = float(row_of(tmp_path / "out", "a")["mean"])
    assert mean == pytest.approx(np.mean([(first[case] + second[case]) / 2 for case in first if case != "case_0"]))


def converted(evaluated, folder, patients):
    """A raw data set, whose conversion report names the patients, with evaluated predictions of its test cases."""
    shutil.copytree(evaluated / "labelsTs", folder / "labelsTs")
    report = {"release": "Toys", "label_in_release": {"1": 1}} | ({} if patients is None else {"patients": patients})
    (folder / "conversion_report.json").write_text(json.dumps(report))
    command = ["evaluate", str(folder / "labelsTs"), str(evaluated / "good"), "-o", str(folder / "evaluated")]
    assert main([*command, "--workers", "1"]) == 0
    return leaderboard({"good": folder / "evaluated"}, folder / "board", cases=0).board


def test_patients_are_known_from_the_conversion_report(evaluated, tmp_path):
    board = converted(evaluated, tmp_path / "Dataset001_Toys", {**PATIENT, "another": "B"})
    assert board.patients.of_case == PATIENT and board.unit == "patient"
    assert board.statistics["dice", "whole_tumor"]["good"]["n"] == 6
    assert "known from conversion_report.json" in (tmp_path / "Dataset001_Toys/board/leaderboard.html").read_text()


def test_without_a_report_each_case_is_a_patient(evaluated, tmp_path):
    board = converted(evaluated, tmp_path / "Dataset001_Toys", None)
    assert board.patients.count == 8 and board.unit == "case"
    text = " ".join((tmp_path / "Dataset001_Toys/board/leaderboard.html").read_text().split())
    assert "are not known: each case counts as a patient of its own" in text
    assert "<small>over cases" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case;patient\ncase_0;A\n", "the columns must be case and patient, not case;patient"),
        ("case,patient\ncase_0,A\n", "does not name the patient of case case_1 (7 cases in all)"),
        ("case,patient\ncase_0,A\ncase_0,B\n", ":3: case case_0 has two patients, A and B"),
        ("case,patient\ncase_0,\n", ":2: a row needs a case and its patient"),
    ],
)
def test_a_wrong_list_of_patients(evaluated, tmp_path, capsys, content, message):
    (tmp_path / "patients.csv").write_text(content)
    command = ["leaderboard", f"good={evaluated / 'good'}", "-o", str(tmp_path / "out")]
    assert main([*command, "--patients", str(tmp_path / "patients.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
