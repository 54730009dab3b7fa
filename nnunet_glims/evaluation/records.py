"""The files of an evaluation as other commands read them: types, limits, and whether the label maps have changed since."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, field_validator, model_validator

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.regions import printable
from nnunet_glims.files import read_json
from nnunet_glims.validation import validate

CASES, TABLE, SUMMARY = "cases.jsonl", "metrics.csv", "summary.json"

Name = Annotated[str, Field(min_length=1), AfterValidator(printable)]
_PathText = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
_Value = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class Stamp(BaseModel):
    """What a file was when it was evaluated.

    Attributes:
        size: bytes.
        modified_ns, changed_ns: times of the last change of the content, and of the content or the file's properties.
        sha256: digest of the content.
    """

    size: NonNegativeInt
    modified_ns: int
    changed_ns: int
    sha256: str


class CaseRecord(BaseModel):
    """A line of cases.jsonl.

    Attributes:
        key: a text that is the same only for the same files, settings and version of the metrics.
        case: name of the case.
        fold: the fold that predicted the case; None outside of cross-validation.
        truth, prediction: the label maps; no prediction counts as an empty one.
        stamps: what both files were; None in results of earlier versions.
        regions: region -> metric -> value; None where it is not defined.
        confusion: (labels, labels) voxels by true label (row) and predicted label (column).
    """

    key: str
    case: Name
    fold: NonNegativeInt | None
    truth: _PathText
    prediction: _PathText | None
    stamps: tuple[Stamp | None, Stamp | None] | None = None
    regions: dict[Name, dict[Name, _Value | None]] = Field(min_length=1)
    confusion: list[list[_Count]] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _check_confusion(self) -> CaseRecord:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
        return self


class FoldsRecord(BaseModel):
    """The folds of a cross-validation that were evaluated."""

    evaluated: list[NonNegativeInt] = Field(min_length=1)
    count: NonNegativeInt | None = None
    cases: NonNegativeInt | None = None


class Summary(BaseModel):
    """The keys of summary.json that are read.

    Attributes:
        method_version: version of the metrics; the first release wrote none.
        model: the model folder that was evaluated; None for two folders.
        regions, protocol, ignored_label: the settings.
        cases: number of cases.
        records: number of lines of cases.jsonl, which has several for a case that several folds predicted.
        failed: case -> why it could not be evaluated.
        missing_predictions: cases without a prediction, which count as empty.
        left_out: cases without a prediction that were asked to be left out.
        predictions_without_truth, other_files: files that were passed over.
        folders: the folders of the predictions.
        results: the folder that the evaluation was written to.
        folds: the folds of a model.
        remarks: sentences about predictions that do not fit the splits of the data set.
        statistics: region -> metric -> the result of `describe`.
    """

    method_version: NonNegativeInt = 0
    model: _PathText | None = None
    regions: dict[Name, list[Annotated[int, Field(ge=1, le=255)]]] = Field(min_length=1)
    protocol: Protocol
    ignored_label: int | None = None
    cases: NonNegativeInt
    records: NonNegativeInt | None = None
    failed: dict[str, str] = Field(default_factory=dict)
    missing_predictions: list[str] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list)
    predictions_without_truth: list[str] = Field(default_factory=list)
    other_files: list[str] = Field(default_factory=list)
    folders: list[_PathText] = Field(default_factory=list)
    results: _PathText | None = None
    folds: FoldsRecord | None = None
    remarks: list[str] = Field(default_factory=list)
    statistics: dict[str, dict[str, dict[str, Any]]]

    @field_validator("protocol", mode="before")
    @classmethod
    def _check_complete(cls, value: Any) -> Any:
        lacking = [
            setting.name for setting in fields(Protocol) if isinstance(value, dict) and setting.name not in value
        ]
        if lacking:
            raise ValueError(f"the setting {lacking[0]} is not there")
        return value


@dataclass(frozen=True)
class Results:
    """An evaluation, as `read_results` finds it.

    Attributes:
        table: a row for each case and region: case, fold (missing outside of cross-validation), region, and the metrics.
        cases: the lines of cases.jsonl.
        summary: the content of summary.json.
    """

    table: pd.DataFrame
    cases: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def method_version(self) -> int:
        """The version of the metrics that the numbers were computed with; 0 for results of the first release."""
        return self.summary["method_version"]


def is_evaluation(folder: Path) -> bool:
    """Return whether the folder has an evaluation that was completed."""
    summary = folder / SUMMARY
    if not (folder / CASES).is_file() or not summary.is_file():
        return False
    content = read_json(summary, ProcessingError)
    return isinstance(content, dict) and "statistics" in content


def read_results(folder: Path) -> Results:
    """Read an evaluation that was written before.

    Raises:
        UsageError: the folder has no evaluation that was completed.
        ProcessingError: a file is damaged: it has values of other types, or cases.jsonl has not as many lines as the summary
            counts, or other regions or metrics.
    """
    if not is_evaluation(folder):
        raise UsageError(f"{folder}: there is no completed evaluation: make it with nnunet-glims evaluate")
    content = read_json(folder / SUMMARY, ProcessingError)
    summary = validate(Summary, content, str(folder / SUMMARY), error=ProcessingError)
    again = f"run nnunet-glims evaluate again with -o {folder}"
    lines = []
    for line, problem in records(folder / CASES):
        if line is None:
            raise ProcessingError(f"{problem}\nThis line is damaged: {again}, which computes its case anew")
        lines.append(line)
    expected = summary.cases if summary.records is None else summary.records
    if len(lines) != expected:
        raise ProcessingError(
            f"{folder / CASES}: this has {len(lines)} complete lines, and {SUMMARY} counts {expected}: {again}, which computes "
            "the missing cases"
        )
    wanted = {metric.name for metric in summary.protocol.metrics}
    seen = set()
    for number, line in enumerate(lines, 1):
        name = f"{folder / CASES}:{number}: case {line['case']}"
        if line["regions"].keys() != summary.regions.keys():
            raise ProcessingError(f"{name} has other regions than {SUMMARY}: {again}")
        lacking = {metric for values in line["regions"].values() for metric in wanted - values.keys()}
        if lacking:
            raise ProcessingError(f"{name} has no {', '.join(sorted(lacking))}: {again}")
        for metric in summary.protocol.metrics:
            for region, values in line["regions"].items():
                if not metric.allows(values[metric.name]):
                    raise ProcessingError(f"{name}: {region}: {metric.name} cannot be {values[metric.name]:g}: {again}")
        if summary.folds is not None and line["fold"] not in summary.folds.evaluated:
            raise ProcessingError(f"{name}: fold {line['fold']} is not among those that {SUMMARY} lists: {again}")
        if (line["case"], line["fold"]) in seen:
            raise ProcessingError(f"{name} is there twice: {again}")
        seen.add((line["case"], line["fold"]))
    now = _moved_folders(summary, folder)
    for line in lines:
        if line["prediction"] is not None and (parent := str(Path(line["prediction"]).parent)) in now:
            line["prediction"] = str(Path(now[parent]) / Path(line["prediction"]).name)
    found = {**content, **summary.model_dump(), "folders": [now.get(each, each) for each in summary.folders]}
    return Results(table_of(lines), lines, found)


def _moved_folders(summary: Summary, folder: Path) -> dict[str, str]:
    """Return each folder of predictions that was moved or copied together with the results -> where it is now."""
    if summary.results is None or (here := str(folder.resolve())) == summary.results:
        return {}
    beside = {
        each: os.path.normpath(os.path.join(here, os.path.relpath(each, summary.results))) for each in summary.folders
    }
    return {then: now for then, now in beside.items() if os.path.isdir(now)}


def records(path: Path) -> Iterator[tuple[dict[str, Any], None] | tuple[None, str]]:
    """Return each line of cases.jsonl, or, of a line that is cut off or damaged, what is wrong with it."""
    if not path.exists():
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{path}:{number}"
        try:
            found = json.loads(line)
            validate(CaseRecord, found, where, error=ProcessingError)
        except UserError as error:
            yield None, str(error)
        except (ValueError, RecursionError):
            yield None, f"{where}: this line is not complete"
        else:
            yield found, None


def table_of(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table of `Results` for lines of cases.jsonl."""
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


def stamp_of(file: Path) -> dict[str, Any]:
    """Return the `Stamp` of a file as JSON; raise `ProcessingError` if it is no regular file or cannot be read."""
    if not file.is_file():  # reading a pipe might never end
        what = "this is no regular file" if file.exists() else "there is no such file"
        raise ProcessingError(f"{file}: cannot be read: {what}")
    try:
        stat = file.stat()
        content = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ProcessingError(f"{file}: cannot be read: {error.strerror}") from None
    return {"size": stat.st_size, "modified_ns": stat.st_mtime_ns, "changed_ns": stat.st_ctime_ns, "sha256": content}


def status_of(path: str | Path) -> os.stat_result | None:
    """Return the status of a file or folder that an evaluation names; None if it is not there, or not for this user."""
    try:
        return os.stat(path)
    except OSError:
        return None


def unchecked_cases(results: Results) -> list[str]:
    """Return the cases with a label map that is no longer there, so that `changed_file` cannot compare it."""
    return [
        line["case"]
        for line in results.cases
        if any(line[kind] is not None and status_of(line[kind]) is None for kind in ("truth", "prediction"))
    ]


def changed_file(results: Results) -> str | None:
    """Return a sentence about a label map whose content is not the one that was evaluated; None where there is none.

    Label maps that are all gone do not count: the evaluation may have been copied to another machine.
    """
    gone: dict[Path, str] = {}
    there = set()
    for line in results.cases:
        for kind, stamp in zip(("truth", "prediction"), line.get("stamps") or (), strict=False):
            if stamp is None:
                continue
            file = Path(line[kind])
            stat = status_of(file)
            if stat is None:
                gone.setdefault(file.parent, f"{file} of case {line['case']} was evaluated and is no longer there")
                continue
            there.add(file.parent)
            same = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) == (
                stamp["size"], stamp["modified_ns"], stamp["changed_ns"]
            )  # fmt: skip
            if not same and stamp_of(file)["sha256"] != stamp["sha256"]:
                return f"{file} of case {line['case']} has changed since it was evaluated"
    return next((sentence for folder, sentence in gone.items() if folder in there), None)
