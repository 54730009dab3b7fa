"""Make a leaderboard from evaluated folders, and write its page and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.csv_text import csv_text
from nnunet_glims.evaluation.regions import printable
from nnunet_glims.files import check_output_folder, write_text
from nnunet_glims.networks import network_named
from nnunet_glims.report import page, tables
from nnunet_glims.report.board import Board, make_board
from nnunet_glims.report.cases import choose_cases
from nnunet_glims.report.entries import BoardFile, Entries, board_file, read_entries
from nnunet_glims.report.slices import ShownCase

PAGE = "leaderboard.html"


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard that was written.

    Attributes:
        page: the HTML page; the tables are in the same folder.
        board: the data: statistics, tests, ranks and costs.
        shown: the cases that the page shows slice by slice.
    """

    page: Path
    board: Board
    shown: Sequence[ShownCase]


def leaderboard(
    entries: Entries | BoardFile | str | Path,
    out: str | Path,
    *,
    title: str | None = None,
    metrics: Sequence[str] = (),
    intersection: bool = False,
    patients: str | Path | None = None,
    published: Sequence[str] = (),
    images: str | Path | None = None,
    channel: str | None = None,
    cases: int = 8,
    notes: Sequence[str] = (),
) -> Leaderboard:
    """Compare evaluated folders, and write an HTML page and tables in Markdown, LaTeX and CSV.

    Args:
        entries: name -> an evaluated folder, or a list of folders, one for each seed; or a YAML file with these.
        out: folder for the page and the tables, which is made if it does not exist.
        title: heading of the page; None takes that of the YAML file, or "Leaderboard".
        metrics: names of the metrics to show; empty for Dice, HD95, NSD and, where measured, lesion-wise Dice and HD95.
        intersection: compare on the cases that all entries and seeds have, if some lack cases.
        patients: CSV file with the columns case and patient; None looks for the conversion report of the data set.
        published: names of networks whose published figures are shown below the table.
        images: folder of images in nnU-Net's naming; None looks in nnUNet_raw.
        channel: name of the channel that is shown under the labels; None takes FLAIR, T1ce, or the first one.
        cases: how many cases are shown slice by slice, at most.
        notes: further sentences below the heading, such as which entries are not complete.

    Raises:
        UsageError: a folder is not evaluated, the entries cannot be compared, or a name is unknown. Then nothing is written.
    """
    networks = [network_named(name).name for name in published]
    if cases < 0:
        raise UsageError(f"{cases} cases to show: it must be 0 or more")
    out = Path(out)
    heading = None if title is None else printable(title)
    check_output_folder(out)
    given = entries if isinstance(entries, BoardFile) else board_file(entries)
    named_patients = None if patients is None else Path(patients)
    board = make_board(heading or given.title, read_entries(given), metrics, intersection, named_patients)
    shown = choose_cases(board, cases, None if images is None else Path(images), channel)
    html = page.render(board, shown, networks, notes)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PAGE, html)
    write_text(out / "leaderboard.md", tables.markdown(board, notes))
    write_text(out / "leaderboard.tex", tables.latex(board, notes))
    write_text(out / "leaderboard.csv", csv_text(tables.statistics_table(board)))
    write_text(out / "comparisons.csv", csv_text(tables.tests_table(board)))
    return Leaderboard(out / PAGE, board, shown)
