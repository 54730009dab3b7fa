"""Which cases are worth looking at, and where their images are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.folders import find_dataset_json
from nnunet_glims.report.board import Board
from nnunet_glims.report.entries import Entry
from nnunet_glims.report.slices import ShownCase
from nnunet_glims.validation import nearest

TELLING_CHANNELS = ("FLAIR", "T1ce")


def telling_cases(board: Board, most: int, images: Path | None = None, channel: str | None = None) -> list[ShownCase]:
    """Each entry's worst case and its median one by mean Dice over the regions, then its second worst, and so on.

    Args:
        board: whose cases to choose from.
        most: how many cases at most.
        images: folder of images named CASE_0000 and so on; None looks in nnUNet_raw.
        channel: the channel to show, by its name in dataset.json.

    Raises:
        UsageError: the channel is unknown, or the folder is not there.
    """
    reasons: dict[str, list[str]] = {}
    sorted_cases = {name: list(board.case_means("dice", name).items()) for name in board.names}
    middle = (len(board.cases) - 1) // 2
    for place in (0, middle, *range(1, len(board.cases))):
        for name, cases in sorted_cases.items():
            case, dice = cases[place]
            kind = "worst" if place == 0 else "median" if place == middle else f"no. {place + 1} from the worst"
            reason = f"{name}: {kind} (mean Dice {dice:.3f})"
            if (case in reasons or len(reasons) < most) and reason not in reasons.get(case, ()):
                reasons.setdefault(case, []).append(reason)
    lines = {entry.name: {line["case"]: line for line in entry.results.cases} for entry in board.entries}
    of_images = _Images(board, images, channel)
    found = []
    for case, why in list(reasons.items())[:most]:
        truth = Path(lines[board.names[0]][case]["truth"])
        predictions = {name: _existing(of[case]["prediction"]) for name, of in lines.items()}
        if truth.exists():
            found.append(ShownCase(case, "; ".join(why), truth, predictions, of_images.of(case), of_images.is_ct))
    return found


def _existing(path: str | None) -> Path | None:
    return Path(path) if path is not None and Path(path).exists() else None


class _Images:
    """Finds the image of a case."""

    def __init__(self, board: Board, folder: Path | None, channel: str | None):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
        described = next((found for entry in board.entries if (found := _dataset_json(entry)) is not None), None)
        self.folders = [folder] if folder is not None else _raw_folders(board)
        self.ending = ".nii.gz" if described is None else described["file_ending"]
        names = {} if described is None else {name: int(number) for number, name in described["channel_names"].items()}
        if channel is not None and channel not in names:
            raise UsageError(f"channel {channel!r} is unknown: {nearest(channel, list(names))}")
        telling = [name for name in (channel, *TELLING_CHANNELS, *names) if name in names]
        self.number = names[telling[0]] if telling else 0
        self.is_ct = bool(telling) and telling[0] == "CT"

    def of(self, case: str) -> Path | None:
        """None where there is none."""
        candidates = [folder / f"{case}_{self.number:04d}{self.ending}" for folder in self.folders]
        return next((path for path in candidates if path.exists()), None)


def _dataset_json(entry: Entry) -> Mapping[str, Any] | None:
    if entry.model is not None:
        return entry.model.dataset_json
    for line in entry.results.cases[:1]:
        truth = Path(line["truth"])
        return find_dataset_json(Path(line["prediction"] or truth).parent, truth.parent.parent)
    return None


def _raw_folders(board: Board) -> list[Path]:
    """imagesTr and imagesTs of the data set, as far as they can be found."""
    found = []
    root = os.environ.get("nnUNet_raw")
    for entry in board.entries:
        if root and entry.model is not None:
            found.append(Path(root, entry.model.dataset))
        found += [Path(line["truth"]).parent.parent for line in entry.results.cases[:1]]
    folders = [data / name for data in dict.fromkeys(found) for name in ("imagesTr", "imagesTs")]
    return [folder for folder in folders if folder.is_dir()]
