"""Choose the cases that the page shows slice by slice, and find their images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.records import status_of
from nnunet_glims.nnunet.folders import find_dataset_json
from nnunet_glims.report.board import Board
from nnunet_glims.report.entries import LeaderboardEntry
from nnunet_glims.report.slices import ShownCase
from nnunet_glims.validation import nearest

PREFERRED_CHANNELS = ("FLAIR", "T1ce")
"""Names of channels to show under the labels, the preferred ones first."""


def choose_cases(board: Board, most: int, images: Path | None = None, channel: str | None = None) -> list[ShownCase]:
    """Choose each entry's worst and median case by mean Dice over the regions, then its second worst case, and so on.

    Of an entry with several seeds, Dice is the mean over the seeds, and the label maps are those of the first seed.

    Args:
        board: the leaderboard whose cases to choose from.
        most: largest number of cases.
        images: folder of images named CASE_0000 and so on; None looks in nnUNet_raw.
        channel: name in dataset.json of the channel to show.

    Raises:
        UsageError: the channel is unknown, or the folder does not exist.
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
    lines = {entry.name: {line["case"]: line for line in entry.runs[0].results.cases} for entry in board.entries}
    image_files = _Images(board, images, channel)
    found = []
    for case, why in list(reasons.items())[:most]:
        truth = _existing(lines[board.names[0]][case]["truth"])
        predictions = {name: _existing(by_case[case]["prediction"]) for name, by_case in lines.items()}
        if truth is not None:
            found.append(ShownCase(case, "; ".join(why), truth, predictions, image_files.of(case), image_files.is_ct))
    return found


def _existing(path: str | None) -> Path | None:
    return Path(path) if path is not None and status_of(path) is not None else None


class _Images:
    """Finds the image of a case.

    Attributes:
        folders: folders that are searched for images.
        ending: file ending of the images.
        number: number of the channel that is shown.
        is_ct: whether the channel's values are Hounsfield units.
    """

    def __init__(self, board: Board, folder: Path | None, channel: str | None):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
        described = next((found for entry in board.entries if (found := _dataset_json(entry)) is not None), None)
        self.folders = [folder] if folder is not None else _image_folders(board)
        self.ending = ".nii.gz" if described is None else described["file_ending"]
        names = {} if described is None else {name: int(number) for number, name in described["channel_names"].items()}
        if channel is not None and channel not in names:
            raise UsageError(f"channel {channel!r} is unknown: {nearest(channel, list(names))}")
        shown = next((name for name in (channel, *PREFERRED_CHANNELS, *names) if name in names), None)
        self.number = 0 if shown is None else names[shown]
        self.is_ct = shown == "CT"

    def of(self, case: str) -> Path | None:
        """Return the image of a case; None where there is none."""
        candidates = [folder / f"{case}_{self.number:04d}{self.ending}" for folder in self.folders]
        return next((path for path in candidates if status_of(path) is not None), None)


def _dataset_json(entry: LeaderboardEntry) -> Mapping[str, Any] | None:
    model = entry.runs[0].model
    if model is not None:
        return model.dataset_json
    for line in entry.runs[0].results.cases[:1]:
        truth = Path(line["truth"])
        return find_dataset_json(Path(line["prediction"] or truth).parent, truth.parent.parent)
    return None


def _image_folders(board: Board) -> list[Path]:
    """Return the folders imagesTr and imagesTs of the data set that exist."""
    datasets = dict.fromkeys(folder for entry in board.entries for folder in entry.dataset_folders)
    folders = [dataset / name for dataset in datasets for name in ("imagesTr", "imagesTs")]
    return [folder for folder in folders if status_of(folder) is not None]
