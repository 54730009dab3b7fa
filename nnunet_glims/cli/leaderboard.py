"""`nnunet-glims leaderboard`: evaluated models and predictions side by side."""

from __future__ import annotations

import argparse

HELP = "compare evaluated models or predictions: statistics, ranks, costs, pictures, on one HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "entries", nargs="+", metavar="NAME=FOLDER", help="evaluated folders, or one YAML file that lists them"
    )
    parser.add_argument("-o", "--out", required=True, help="folder for the page and the tables")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--metrics", help="which to show, as in metrics.csv: dice,hd95,nsd (the default), assd, ...")
    parser.add_argument(
        "--intersection", action="store_true", help="compare on the cases that all entries have, where some miss cases"
    )
    parser.add_argument(
        "--published", default="", help="networks whose published figures are shown below: GLIMS,LATUPNet,SwinUNETR"
    )
    parser.add_argument(
        "--images", help="folder of images in nnU-Net's naming (default: imagesTr or imagesTs in nnUNet_raw)"
    )
    parser.add_argument("--channel", help="name of the channel under the labels (default: FLAIR, T1ce, or the first)")
    parser.add_argument("--cases", type=int, default=8, help="most cases shown slice by slice (default: 8)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from nnunet_glims.errors import UsageError
    from nnunet_glims.evaluation.regions import short
    from nnunet_glims.files import write_text
    from nnunet_glims.networks import network_named
    from nnunet_glims.report import page, tables
    from nnunet_glims.report.board import make_board
    from nnunet_glims.report.cases import telling_cases
    from nnunet_glims.report.entries import read_entries

    published = [network_named(name).name for name in options.published.replace(" ", "").split(",") if name]
    if options.cases < 0:
        raise UsageError(f"--cases {options.cases}: it must be 0 or more")
    console = Console(markup=False, highlight=False)
    title, entries = read_entries(options.entries)
    with console.status("Comparing"):
        metrics = [name for name in (options.metrics or "").replace(" ", "").split(",") if name]
        board = make_board(options.title or title, entries, metrics, options.intersection)
    with console.status("Drawing"):
        images = Path(options.images) if options.images else None
        shown = telling_cases(board, options.cases, images, options.channel)
        html = page.render(board, shown, published)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "leaderboard.html", html)
    write_text(out / "leaderboard.md", tables.markdown(board))
    write_text(out / "leaderboard.tex", tables.latex(board))
    write_text(out / "leaderboard.csv", tables.statistics_table(board).to_csv(index=False))
    write_text(out / "comparisons.csv", tables.comparisons_table(board).to_csv(index=False))
    if options.cases and not shown:
        console.print("The label maps are no longer where they were evaluated: no slices are shown.")
    if shown and all(case.image is None for case in shown):
        console.print("The cases' images were not found: labels are shown on black. --images names their folder.")
    for name in board.ordered:
        dice = ", ".join(
            f"{short(region)} {tables.value(board, metric, region, name, interval=False)}"
            for metric in board.metrics[:1]
            for region in board.regions
        )
        rank = "" if board.ranking is None else f", mean rank {board.ranking.mean[name]:.2f}"
        console.print(f"{name}: {board.metrics[0].title} {dice}{rank}", highlight=False, soft_wrap=True)
    console.print(f"Wrote {out / 'leaderboard.html'}, and tables beside it", highlight=False, soft_wrap=True)
