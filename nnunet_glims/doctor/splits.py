"""The splits: whether nnU-Net can train and validate with every fold of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from nnunet_glims.doctor.findings import Finding, Findings, some

TOPIC = "splits"


def check(folder: Path, cases: set[str] | None) -> Findings[None]:
    """Yield findings about splits_final.json.

    Args:
        folder: the preprocessed data set.
        cases: names of its preprocessed cases; None if they are not known.
    """
    from nnunet_glims.files import read_json
    from nnunet_glims.nnunet.splits import FOLDS

    path = folder / "splits_final.json"
    if not path.exists():
        if cases is not None and len(cases) < FOLDS:
            state = f"{len(cases)} cases and no {path.name}: nnU-Net cannot make five folds of them"
            yield Finding(TOPIC, "fail", state, f"write {path.name} yourself, or train fold all")
        else:
            yield Finding(TOPIC, "ok", "none yet: nnU-Net makes five folds")
        return
    splits = read_json(path)
    again = f"correct {path}, or delete it: nnU-Net makes another one"
    problems = _form(splits)
    if problems:
        yield Finding(TOPIC, "fail", f"{path}: {some(problems)}", again)
        return
    problems = [*_overlaps(splits), *([] if cases is None else _unknown(splits, cases))]
    if problems:
        yield Finding(TOPIC, "fail", f"{path}: {'; '.join(problems)}", again)
        return
    doubts = [*_validated_twice(splits), *([] if cases is None else _left_out(splits, cases))]
    if doubts:
        yield Finding(TOPIC, "warn", f"{path}: {'; '.join(doubts)}", again)
    else:
        yield Finding(TOPIC, "ok", f"{len(splits)} folds")


def _form(splits: Any) -> list[str]:
    """Return where the file is not a list of folds that each have cases for training and for validation."""
    if not isinstance(splits, list):
        return ["this is no list of folds"]
    if not splits:
        return ["there are no folds in it"]
    problems = []
    for number, fold in enumerate(splits):
        for part in ("train", "val"):
            names = fold.get(part) if isinstance(fold, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                problems.append(f"fold {number} has no list {part!r} of cases")
            elif not names:
                problems.append(f"fold {number} has no cases in {part!r}")
            elif repeated := [name for name, times in Counter(names).items() if times > 1]:
                problems.append(f"fold {number} has {repeated[0]} more than once in {part!r}")
    return problems


def _overlaps(splits: list[dict[str, list[str]]]) -> list[str]:
    found = []
    for number, fold in enumerate(splits):
        both = sorted(set(fold["train"]) & set(fold["val"]))
        if both:
            found.append(f"fold {number} validates cases on which it trains: {some(both)}")
    return found[:3]


def _unknown(splits: list[dict[str, list[str]]], cases: set[str]) -> list[str]:
    unknown = sorted({case for fold in splits for part in ("train", "val") for case in fold[part]} - cases)
    if not unknown:
        return []
    hint = ""
    if any(unknown[0].startswith(f"{case}.") or unknown[0].startswith(f"{case}_0") for case in cases):
        hint = " (write names of cases, without endings of files)"
    return [f"it names cases that are not preprocessed: {some(unknown)}{hint}"]


def _validated_twice(splits: list[dict[str, list[str]]]) -> list[str]:
    times = Counter(case for fold in splits for case in fold["val"])
    twice = sorted(case for case, number in times.items() if number > 1)
    return [f"cases are validated in more than one fold: {some(twice)}"] if twice else []


def _left_out(splits: list[dict[str, list[str]]], cases: set[str]) -> list[str]:
    named = {case for fold in splits for part in ("train", "val") for case in fold[part]}
    left = sorted(cases - named)
    return [f"{len(left)} preprocessed cases are in no fold: {some(left)}"] if left else []
