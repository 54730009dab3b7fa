"""Evaluate many cases, write the results to disk, and read them.

An evaluation is a folder with three files:

cases.jsonl: a line for each evaluated case, appended when the case is done. A case that has a line is not computed again
    while the settings, both files and the version of the metrics are the same.
metrics.csv: a row for each case and region.
summary.json: settings, counts, and the statistics of each region and metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_glims import __version__
from nnunet_glims.errors import UsageError, UserError
from nnunet_glims.evaluation.case import measure_case
from nnunet_glims.evaluation.csv_text import csv_text
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.records import CASES, SUMMARY, TABLE, records, stamp_of, table_of
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.evaluation.statistics import describe
from nnunet_glims.files import check_output_folder, read_json, write_json, write_text
from nnunet_glims.images import LabelMap, read_label_map
from nnunet_glims.locks import lock
from nnunet_glims.processes import Progress, processes, quietly

LOCK = ".evaluating.lock"

METHOD_VERSION = 1
"""Version of the metrics. It is raised whenever a number changes for the same files and settings. Evaluations without a
version, of the first release, are read as version 0."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        name: name of the case.
        truth: true label map.
        prediction: predicted label map; None if there is none, which counts as an empty prediction.
        fold: the fold of a cross-validation that predicted the case; None outside of cross-validation.
    """

    name: str
    truth: Path
    prediction: Path | None
    fold: int | None = None


@dataclass(frozen=True)
class Settings:
    """All settings that the numbers depend on besides the files.

    Attributes:
        regions: name -> labels.
        protocol: what is measured and how.
        ignored: a label of the truth whose voxels do not count; None for none.
    """

    regions: Regions
    protocol: Protocol
    ignored: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON, as summary.json has them."""
        return {
            "regions": {name: list(labels) for name, labels in self.regions.items()},
            "protocol": self.protocol.as_json(),
            "ignored_label": self.ignored,
        }


def evaluate_cases(
    files: Sequence[CaseFiles],
    settings: Settings,
    out: Path,
    workers: int = 1,
    without_truth: Sequence[Path] = (),
    origin: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Evaluate cases and write the tables to `out`, which is made if it does not exist.

    A case that cannot be evaluated is listed under "failed" in the summary; all other cases are evaluated.

    Args:
        files: the cases.
        settings: what is measured and how.
        out: folder for the tables.
        workers: number of processes.
        without_truth: predictions without a true label map, which the summary lists.
        origin: further keys of the summary, which say where the predictions come from.
        progress: shows how many cases are done.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: `out` is a file, or has a summary.json of another program.
        ProcessingError: a process was killed, or another process evaluates into the same folder.
    """
    check_output_folder(out)
    if (out / SUMMARY).exists():
        content = read_json(out / SUMMARY, nan_allowed=True)
        if not isinstance(content, dict) or "nnunet_glims" not in content:
            raise UsageError(
                f"{out / SUMMARY}: this is another program's, and would be overwritten: choose another folder with -o"
            )
    with lock(out / LOCK, f"evaluating into {out}"):
        return _evaluate(files, settings, out, workers, without_truth, origin or {}, progress)


def _evaluate(
    files: Sequence[CaseFiles],
    settings: Settings,
    out: Path,
    workers: int,
    without_truth: Sequence[Path],
    origin: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    done = {line["key"]: line for line, _ in records(out / CASES) if line is not None}
    _end_last_line(out / CASES)
    keys = {_key(case, settings): case for case in files}
    failed: dict[str, str] = {}
    waiting = [(key, case) for key, case in keys.items() if key not in done]
    if waiting:
        (out / SUMMARY).unlink(missing_ok=True)  # it does not describe the new results
    with (
        processes(min(workers, len(waiting)), ordered=False) as parallel_map,
        (out / CASES).open("a", encoding="utf-8") as record,
    ):
        results = parallel_map(partial(_evaluated, settings), waiting)
        for key, name, result in progress(results, "Evaluating", len(waiting)):
            if isinstance(result, str):
                failed[name] = result
                continue
            done[key] = result
            record.write(json.dumps(result) + "\n")
            record.flush()
    lines = [done[key] for key in keys if key in done]
    write_text(out / CASES, "".join(json.dumps(line) + "\n" for line in lines))
    table = table_of(lines)
    write_text(out / TABLE, csv_text(table))
    summary = {
        "nnunet_glims": __version__,
        "method_version": METHOD_VERSION,
        **origin,
        **settings.as_json(),
        "cases": len({line["case"] for line in lines}),
        "records": len(lines),
        "failed": failed,
        "missing_predictions": [case.name for case in files if case.prediction is None],
        "predictions_without_truth": [str(file) for file in without_truth],
        **_summary(table, settings),
    }
    write_json(out / SUMMARY, summary)
    return summary


def _end_last_line(path: Path) -> None:
    """End a last line that was cut off, so that the next one is not appended to it."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _key(case: CaseFiles, settings: Settings) -> str:
    """Return a text that is the same only for the same settings, version of the metrics, and unchanged files."""
    files = [None if file is None else _stamp(file) for file in (case.truth, case.prediction)]
    content = {
        "method_version": METHOD_VERSION,
        "case": case.name,
        "fold": case.fold,
        "files": files,
        "settings": settings.as_json(),
    }
    return json.dumps(content, sort_keys=True)


def _stamp(file: Path) -> list[Any] | None:
    """Return path, size in bytes and times of change of a file; None if it does not exist."""
    if not file.exists():
        return None
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _evaluated(settings: Settings, waiting: tuple[str, CaseFiles]) -> tuple[str, str, dict[str, Any] | str]:
    """Return the case's key, its name, and its line of cases.jsonl or what is wrong with it."""
    key, case = waiting
    try:
        return key, case.name, {"key": key, **_measured(case, settings)}
    except UserError as error:
        return key, case.name, str(error)
    except Exception as error:  # for example too little memory: the other cases are evaluated all the same
        return key, case.name, f"{type(error).__name__}: {error}"


def _measured(case: CaseFiles, settings: Settings) -> dict[str, Any]:
    stamps = [None if file is None else stamp_of(file) for file in (case.truth, case.prediction)]
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
        "stamps": stamps,
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


def _summary(table: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    empty, statistics = {}, {}
    for region in settings.regions:
        rows = table[table["region"] == region].drop(columns=["fold", "region"])
        rows = rows.groupby("case", sort=False).mean()  # a case that two folds predicted counts once
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
