"""`nnunet-glims confusion` from evaluated folders."""

import csv
import json

import numpy as np
import pytest

from nnunet_glims.cli import main
from nnunet_glims.evaluation.confusion import over_cases
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.results import Settings


def write_evaluation(folder, matrices, regions):
    """Write an evaluation whose metrics are all 0: only its confusion matrices are looked at."""
    folder.mkdir(parents=True)
    values = dict.fromkeys((metric.name for metric in Protocol().metrics), 0.0)
    lines = [
        {
            "key": str(n),
            "case": f"case_{n}",
            "fold": None,
            "truth": f"case_{n}.nii.gz",
            "prediction": None,
            "regions": dict.fromkeys(regions, values),
            "confusion": np.asarray(m).tolist(),
        }
        for n, m in enumerate(matrices)
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings({name: tuple(labels) for name, labels in regions.items()}, Protocol())
    summary = {**settings.as_json(), "cases": len(lines), "statistics": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


BRATS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
FIRST = [
    [[90, 0, 10, 0], [0, 6, 2, 2], [0, 0, 10, 0], [0, 1, 0, 3]],
    [[100, 0, 0, 0], [0, 2, 8, 0], [0, 0, 5, 5], [0, 0, 0, 0]],
    [[50, 0, 0, 0], [0, 0, 0, 0], [4, 0, 6, 0], [0, 0, 1, 1]],
]
PERFECT = [np.diag([10, 1, 1, 1]), np.diag([10, 2, 2, 0]), np.diag([10, 0, 3])]
"""The last case has no label 3, and its matrix is smaller."""


@pytest.fixture
def evaluations(tmp_path):
    first = write_evaluation(tmp_path / "first", FIRST, BRATS)
    perfect = write_evaluation(tmp_path / "perfect", PERFECT, BRATS)
    return [f"damaged={first}", f"perfect={perfect}"]


def confusion(*arguments, code=0):
    assert main(["confusion", *map(str, arguments)]) == code


def table(folder):
    with (folder / "confusion.csv").open() as file:
        return {(row["entry"], row["true"], row["predicted"]): row for row in csv.DictReader(file)}


def test_means_and_deviations_are_over_cases(evaluations, tmp_path):
    confusion(*evaluations, "-o", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert len(rows) == 2 * 16
    necrosis = rows["damaged", "NCR", "ED"]
    assert float(necrosis["mean"]) == pytest.approx((0.2 + 0.8) / 2)  # the third case has none
    assert float(necrosis["sd"]) == pytest.approx(np.std([0.2, 0.8], ddof=1))
    assert necrosis["cases"] == "2"
    assert float(rows["damaged", "ED", "ED"]["mean"]) == pytest.approx((1 + 0.5 + 0.6) / 3)
    assert float(rows["damaged", "background", "ED"]["mean"]) == pytest.approx(0.1 / 3)
    assert rows["perfect", "ET", "ET"] == {**rows["perfect", "ET", "ET"], "mean": "1.0", "sd": "", "cases": "1"}
    assert (tmp_path / "out/confusion.png").read_bytes()[:4] == b"\x89PNG"
    picture = (tmp_path / "out/confusion.svg").read_text()
    assert all(text in picture for text in ("damaged", "perfect", "NCR", "ED", "ET", "0.50", "±0.42"))


@pytest.mark.parametrize("name", ["ET", "enhancing_tumor"])
def test_cases_without_the_region_are_left_out(name, evaluations, tmp_path):
    confusion(*evaluations, "-o", tmp_path / "out", "--only-with", name)
    rows = table(tmp_path / "out")
    assert float(rows["damaged", "NCR", "ED"]["mean"]) == pytest.approx(0.2)  # the second case has no ET
    assert float(rows["damaged", "ED", "ED"]["mean"]) == pytest.approx((1 + 0.6) / 2)
    assert rows["perfect", "ED", "ED"]["cases"] == "1"


def test_labels_without_any_voxel_have_no_row():
    found = over_cases([{"case": "a", "confusion": [[3, 1], [0, 0]]}], 3)
    np.testing.assert_allclose(found.mean, [[0.75, 0.25, 0], [np.nan] * 3, [np.nan] * 3])
    assert np.isnan(found.sd).all()
    assert found.cases.tolist() == [1, 0, 0]


def test_organs_are_called_by_their_regions(tmp_path):
    folder = write_evaluation(tmp_path / "organs", [np.eye(3, dtype=int)], {"liver": [1], "spleen": [2]})
    confusion(f"organs={folder}", "-o", tmp_path / "out")
    assert ("organs", "liver", "spleen") in table(tmp_path / "out")


@pytest.mark.parametrize(
    ("region", "message"),
    [("EnT", "region 'EnT' was not evaluated"), ("nothing", "known are whole_tumor, tumor_core, enhancing_tumor")],
)
def test_unknown_regions(region, message, evaluations, tmp_path, capsys):
    confusion(*evaluations, "-o", tmp_path / "out", "--only-with", region, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_case_with_the_region(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "none", [np.diag([5, 2, 2, 0])], BRATS)
    confusion(f"none={folder}", "-o", tmp_path / "out", "--only-with", "ET", code=2)
    assert "none of its 1 cases has ET" in capsys.readouterr().err


def test_what_is_not_evaluated(tmp_path, capsys):
    confusion(f"x={tmp_path}", "-o", tmp_path / "out", code=2)
    assert "has no completed evaluation: run nnunet-glims evaluate" in capsys.readouterr().err
