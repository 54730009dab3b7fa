"""`nnunet-glims evaluate`: metrics of predictions by one documented protocol."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "metrics of predictions, or of a model's cross-validation: overlap, surface distances, lesion by lesion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("truth", nargs="?", help="folder of true label maps")
    parser.add_argument("predictions", nargs="?", help="folder of predicted label maps with the same file names")
    parser.add_argument("--model", help="instead: nnU-Net's model folder, whose folds' validation cases are evaluated")
    parser.add_argument("--truth", dest="truth_of_model", help="with --model: folder of true label maps")
    parser.add_argument("--folds", help="with --model: which, as 0,1,2 (default: all that were validated)")
    parser.add_argument(
        "--only-predicted",
        action="store_true",
        help="leave out cases without a prediction instead of counting them as empty",
    )
    parser.add_argument("-o", "--out", help="folder for the results (default: evaluation in the folder evaluated)")
    parser.add_argument(
        "--regions",
        help="brats, brats-original, or a JSON file {name: [labels]} (default: the regions or labels of dataset.json)",
    )
    parser.add_argument(
        "--preset",
        default="default",
        help="default, brats2021, brats2023-gli, -ssa, -ped, -men or -met: the challenge's penalty and lesion rules",
    )
    parser.add_argument(
        "--surface", help="surfels, voxels or pooled: how surface distances are defined (default: surfels)"
    )
    parser.add_argument(
        "--penalty",
        help="distance that counts where one mask is empty: diagonal, brats2021, brats2023, nan; presets of challenges have "
        "their own and take no other (default: diagonal)",
    )
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="MM|REGION=MM",
        help="of the normalised surface Dice, for all regions or for one; may be repeated (default: 1 mm)",
    )
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow, at most 8)")


def run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.errors import UsageError
    from nnunet_glims.evaluation.records import SUMMARY, TABLE
    from nnunet_glims.nnunet.evaluation import RESULTS_FOLDER, evaluate_folders, evaluate_model

    console = new_console()
    tolerance, region_tolerances = _tolerances(options.tolerance)
    settings = {
        "regions": options.regions,
        "preset": options.preset,
        "surface": options.surface,
        "penalty": options.penalty,
        "tolerance": tolerance,
        "region_tolerances": region_tolerances,
        "only_predicted": options.only_predicted,
        "out": options.out,
        "workers": options.workers,
        "progress": progress_on(console),
    }
    if options.model is not None:
        if options.truth is not None:
            raise UsageError("give either two folders or --model; the label maps' folder goes to --truth")
        evaluated = options.model
        results = evaluate_model(evaluated, truths=options.truth_of_model, folds=_folds(options.folds), **settings)
    else:
        for name, value in (("--truth", options.truth_of_model), ("--folds", options.folds)):
            if value is not None:
                raise UsageError(
                    f"{name} belongs to --model; without it, give the folders of label maps and predictions"
                )
        if options.truth is None or options.predictions is None:
            raise UsageError("give the folders of true and predicted label maps, or --model MODELFOLDER")
        evaluated = options.predictions
        results = evaluate_folders(options.truth, evaluated, **settings)

    summary = results.summary
    _show(console, summary)
    for case, problem in summary["failed"].items():
        console.print(f"failed {case}: {problem}", soft_wrap=True)
    if summary["missing_predictions"]:
        names = ", ".join(summary["missing_predictions"])
        console.print(f"without a prediction, counted as empty: {names}", soft_wrap=True)
    if summary["predictions_without_truth"]:
        names = ", ".join(Path(file).name for file in summary["predictions_without_truth"])
        console.print(f"left out, since there is no true label map: {names}", soft_wrap=True)
    if summary["other_files"]:
        console.print(f"passed over, since they are no label maps: {', '.join(summary['other_files'])}", soft_wrap=True)
    for remark in summary["remarks"]:
        console.print(f"note: {remark}", soft_wrap=True)
    out = Path(options.out) if options.out else Path(evaluated) / RESULTS_FOLDER
    console.print(f"Wrote {out / TABLE} and {out / SUMMARY}", soft_wrap=True)
    return 1 if summary["failed"] else 0


def _folds(given):
    """Return the numbers of the folds; None for all."""
    from nnunet_glims.errors import UsageError

    if given is None:
        return None
    if not all(part.isdigit() for part in given.split(",")):
        raise UsageError(f"--folds {given}: give numbers, as 0,1,2")
    return [int(part) for part in given.split(",")]


def _tolerances(given):
    """Return the tolerance of all regions, None where it is not given, and region -> its own tolerance."""
    from nnunet_glims.errors import UsageError

    of_all, by_region = None, {}
    for text in given:
        region, equals, number = text.rpartition("=")
        try:
            tolerance = float(number)
        except ValueError:
            raise UsageError(f"--tolerance {text}: {number!r} is no number of mm") from None
        if equals:
            by_region[region] = tolerance
        else:
            of_all = tolerance
    return of_all, by_region


def _show(console, summary):
    """Print a table of the most used metrics."""
    from rich.table import Table
    from rich.text import Text

    from nnunet_glims.evaluation.metrics import metric_named
    from nnunet_glims.evaluation.regions import short

    measured = {name for statistics in summary["statistics"].values() for name in statistics}
    shown = ("dice", "hd95", "nsd", "lesion_dice", "lesion_hd95")
    metrics = [metric_named(name) for name in shown if name in measured]
    table = Table("region", *(f"{metric.title}{f', {metric.unit}' if metric.unit else ''}" for metric in metrics))
    for region, statistics in summary["statistics"].items():
        cells = []
        for metric in metrics:
            described = statistics[metric.name]
            mean, sd = described["mean"], described["sd"]
            digits = 1 if metric.unit == "mm" else 3
            cells.append("–" if mean is None else f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}"))
        table.add_row(Text(short(region)), *cells)
    console.print(f"{summary['cases']} case{'s' if summary['cases'] != 1 else ''}: mean ± standard deviation")
    console.print(table)
