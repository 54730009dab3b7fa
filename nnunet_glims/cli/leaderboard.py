"""`nnunet-glims leaderboard`: evaluated models and predictions side by side."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "compare evaluated models or predictions: statistics, ranks, costs, pictures, on one HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "entries",
        nargs="+",
        metavar="NAME=FOLDER",
        help="evaluated folders, several of one name for its seeds; or one YAML file that lists them",
    )
    parser.add_argument("-o", "--out", required=True, help="folder for the page and the tables")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--metrics", help="which to show, as in metrics.csv: dice,hd95,nsd (the default), assd, ...")
    parser.add_argument(
        "--intersection",
        action="store_true",
        help="compare on the cases that all entries and seeds have, where some miss cases",
    )
    parser.add_argument(
        "--patients",
        metavar="FILE.csv",
        help="columns case,patient: cases of one patient count once (default: the data set's conversion report)",
    )
    parser.add_argument(
        "--published", default="", help="networks whose published figures are shown below: GLIMS,LATUPNet,SwinUNETR"
    )
    parser.add_argument(
        "--images", help="folder of images in nnU-Net's naming (default: imagesTr or imagesTs in nnUNet_raw)"
    )
    parser.add_argument("--channel", help="name of the channel under the labels (default: FLAIR, T1ce, or the first)")
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="sentence below the heading; may be repeated"
    )
    parser.add_argument("--cases", type=int, default=8, help="most cases shown slice by slice (default: 8)")


def run(options: argparse.Namespace) -> None:

    from nnunet_glims.evaluation.regions import short
    from nnunet_glims.report import tables
    from nnunet_glims.report.entries import board_file_of_arguments
    from nnunet_glims.report.leaderboard import leaderboard
    from nnunet_glims.report.remarks import remarks

    console = new_console()
    with console.status("Comparing and drawing"):
        made = leaderboard(
            board_file_of_arguments(options.entries),
            options.out,
            title=options.title,
            metrics=_listed(options.metrics),
            intersection=options.intersection,
            patients=options.patients,
            published=_listed(options.published),
            images=options.images,
            channel=options.channel,
            cases=options.cases,
            notes=options.note,
        )
    board = made.board
    if options.cases and not made.shown:
        console.print("The label maps are no longer where they were evaluated: no slices are shown.")
    if made.shown and all(case.image is None for case in made.shown):
        console.print("The cases' images were not found: labels are shown on black. --images names their folder.")
    for sentence in remarks(board):
        console.print(sentence, soft_wrap=True)
    for name in board.ordered:
        metric = board.metrics[0]
        values = ", ".join(
            f"{short(region)} {tables.value(board, metric, region, name, interval=False)}" for region in board.regions
        )
        rank = "" if board.ranking is None else f", mean rank {board.ranking.mean[name]:.2f}"
        console.print(f"{name}: {metric.title} {values}{rank}", soft_wrap=True)
    console.print(f"Wrote {made.page}, and tables beside it", soft_wrap=True)


def _listed(names):
    return [name for name in (names or "").replace(" ", "").split(",") if name]
