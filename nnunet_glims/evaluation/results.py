"""Many cases to tables on disk, and back.

An evaluation is a folder:

cases.jsonl: a line for each evaluated case, added when it is done. What is in there is not computed again while the
    settings and both files are the same.
metrics.csv: a row for each case and region.
summary.json: settings, counts, and the statistics of each region and metric.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_glims import __version__
from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.case import measure_case
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.evaluation.statistics import describe
from nnunet_glims.files import read_json, write_json, write_text
from nnunet_glims.images import LabelMap, read_label_map
from nnunet_glims.processes import Progress, processes, quietly

CASES, TABLE, SUMMARY = "cases.jsonl", "metrics.csv", "summary.json"


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case; `prediction` is None where there is none. `fold` is None outside of cross-validation."""

    name: str
    truth: Path
    prediction: Path | None
    fold: int | None = None


@dataclass(frozen=True)
class Settings:
    """All that decides about the numbers, besides the files."""

    regions: Regions
    protocol: Protocol
    ignored: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As kept beside results."""
        return {
            "regions": {name: list(labels) for name, labels in self.regions.items()},
            "protocol": self.protocol.as_json(),
            "ignored_label": self.ignored,
        }


@dataclass(frozen=True)
class Results:
    """An evaluation, as `read_results` finds it.

    Attributes:
        table: a row for each case and region: case, fold (NaN outside of cross-validation), region, and the metrics.
        cases: the lines of cases.jsonl.
        summary: the content of summary.json.
    """

    table: pd.DataFrame
    cases: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]


def evaluate(
    files: Sequence[CaseFiles],
    settings: Settings,
    out: Path,
    workers: int = 1,
    without_truth: Sequence[Path] = (),
    model: Path | None = None,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Evaluate cases and write the tables to `out`, which is made if it is not there.

    A case that cannot be evaluated is listed under "failed" of the summary; the others are evaluated all the same.

    Args:
        files: the cases.
        settings: what is measured and how.
        out: folder for the tables.
        workers: processes.
        without_truth: predictions that belong to no label map, for the summary.
        model: nnU-Net's model folder, if the cases are its validation; the leaderboard looks there.
        progress: shows how far it is.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: `out` is a file, or a process was killed.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: this is a file; the results need a folder")
    if (out / SUMMARY).exists() and "nnunet_glims" not in read_json(out / SUMMARY):
        raise UsageError(
            f"{out / SUMMARY}: this is another program's, and would be overwritten: choose another folder with -o"
        )
    out.mkdir(parents=True, exist_ok=True)
    done = {line["key"]: line for line in _lines(out / CASES)}
    keys = {_key(case, settings): case for case in files}
    failed: dict[str, str] = {}
    waiting = [(key, case) for key, case in keys.items() if key not in done]
    if waiting:
        (out / SUMMARY).unlink(missing_ok=True)  # it would not be that of the cases any more
    with (
        processes(min(workers, len(waiting)), ordered=False) as each,
        (out / CASES).open("a", encoding="utf-8") as record,
    ):
        results = each(partial(_evaluated, settings), waiting)
        for key, name, result in progress(results, "Evaluating", len(waiting)):
            if isinstance(result, str):
                failed[name] = result
                continue
            done[key] = result
            record.write(json.dumps(result) + "\n")
            record.flush()
    lines = [done[key] for key in keys if key in done]
    write_text(out / CASES, "".join(json.dumps(line) + "\n" for line in lines))
    table = _table(lines)
    write_text(out / TABLE, table.to_csv(index=False))
    summary = {
        "nnunet_glims": __version__,
        "model": None if model is None else str(model.resolve()),
        **settings.as_json(),
        "cases": len(lines),
        "failed": failed,
        "missing_predictions": [case.name for case in files if case.prediction is None],
        "predictions_without_truth": [str(file) for file in without_truth],
        **_summary(table, settings),
    }
    write_json(out / SUMMARY, summary)
    return summary


def read_results(folder: Path) -> Results:
    """An evaluation that was written before; raises `UsageError` where there is none in the folder."""
    if not is_evaluation(folder):
        raise UsageError(f"{folder}: there is no evaluation that came to its end: make it with nnunet-glims evaluate")
    lines = list(_lines(folder / CASES))
    return Results(_table(lines), lines, read_json(folder / SUMMARY))


def is_evaluation(folder: Path) -> bool:
    """Whether an evaluation was written there to its end."""
    summary = folder / SUMMARY
    return (folder / CASES).exists() and summary.exists() and "statistics" in read_json(summary)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines that were written to their end."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off when the evaluation was stopped
            continue


def _key(case: CaseFiles, settings: Settings) -> str:
    """The same only for the same settings and files that have not changed."""
    stamps = []
    for file in (case.truth, case.prediction):
        stat = file.stat() if file is not None and file.exists() else None
        stamps.append([str(file), stat.st_size, stat.st_mtime_ns] if stat is not None else None)
    return json.dumps([case.name, case.fold, stamps, settings.as_json()], sort_keys=True)


def _evaluated(settings: Settings, waiting: tuple[str, CaseFiles]) -> tuple[str, str, dict[str, Any] | str]:
    """Key, name, and the line of cases.jsonl or what is wrong."""
    key, case = waiting
    try:
        return key, case.name, {"key": key, **_measured(case, settings)}
    except UsageError as error:
        return key, case.name, str(error)
    except Exception as error:  # not enough memory, say: it must not cost the other cases
        return key, case.name, f"{type(error).__name__}: {error}"


def _measured(case: CaseFiles, settings: Settings) -> dict[str, Any]:
    truth = read_label_map(case.truth)
    if case.prediction is None:
        prediction = LabelMap(np.zeros_like(truth.labels), truth.geometry)
    else:
        prediction = read_label_map(case.prediction)
        if difference := prediction.geometry.difference(truth.geometry):
            raise UsageError(f"{case.prediction}: {difference} as {case.truth}")
        _check_labels(case.prediction, prediction, settings)
    _check_labels(case.truth, truth, settings)
    measures = measure_case(
        truth.labels, prediction.labels, truth.spacing, settings.regions, settings.protocol, settings.ignored
    )
    return {
        "case": case.name,
        "fold": case.fold,
        "truth": str(case.truth),
        "prediction": None if case.prediction is None else str(case.prediction),
        "regions": {
            region: {name: None if isnan(value) else value for name, value in values.items()}
            for region, values in measures.regions.items()
        },
        "confusion": measures.confusion.tolist(),
    }


def _check_labels(file: Path, labels: LabelMap, settings: Settings) -> None:
    known = {0, settings.ignored, *(label for region in settings.regions.values() for label in region)}
    unknown = sorted(set(np.flatnonzero(np.bincount(labels.labels.ravel())).tolist()) - known)
    if unknown:
        raise UsageError(f"{file}: has labels {', '.join(map(str, unknown))}, which belong to no region")


def _table(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        {"case": line["case"], "fold": line["fold"], "region": region, **measures}
        for line in lines
        for region, measures in line["regions"].items()
    ]
    if not rows:
        return pd.DataFrame(columns=["case", "fold", "region"])
    table = pd.DataFrame(rows).astype({"fold": "Int64"})
    measured = table.columns.drop(["case", "fold", "region"])
    return table.astype(dict.fromkeys(measured, float))


def _summary(table: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    empty, statistics = {}, {}
    for region in settings.regions:
        rows = table[table["region"] == region].drop(columns=["fold", "region"])
        rows = rows.groupby("case", sort=False).mean()  # a case of two folds counts once
        if rows.empty:
            continue
        no_truth, no_prediction = rows["truth_ml"] == 0, rows["volume_ml"] == 0
        empty[region] = {
            "truth": int(no_truth.sum()),
            "prediction": int(no_prediction.sum()),
            "both": int((no_truth & no_prediction).sum()),
        }
        statistics[region] = {
            metric.name: describe(rows[metric.name].to_numpy(float)) for metric in settings.protocol.metrics
        }
    return {"empty": empty, "statistics": statistics}
