"""`nnunet-glims evaluate`: metrics of predictions by one documented protocol."""

from __future__ import annotations

import argparse

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
        help="distance where one mask is empty: diagonal, brats2021, brats2023, nan (default: the preset's)",
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
    from dataclasses import replace
    from pathlib import Path

    from rich.console import Console
    from rich.progress import track

    from nnunet_glims.errors import UsageError
    from nnunet_glims.evaluation import regions, results
    from nnunet_glims.evaluation.protocol import preset_named
    from nnunet_glims.nnunet import folders
    from nnunet_glims.processes import workers_or_default

    if options.model is not None:
        if options.truth is not None:
            raise UsageError("give either two folders or --model; the label maps' folder goes to --truth")
        evaluated = Path(options.model)
        truth = options.truth_of_model
        cases = folders.of_model(evaluated, None if truth is None else Path(truth), _folds(options.folds))
    else:
        for name, value in (("--truth", options.truth_of_model), ("--folds", options.folds)):
            if value is not None:
                raise UsageError(
                    f"{name} belongs to --model; without it, give the folders of label maps and predictions"
                )
        if options.truth is None or options.predictions is None:
            raise UsageError("give the folders of true and predicted label maps, or --model MODELFOLDER")
        evaluated = Path(options.predictions)
        cases = folders.of_folders(Path(options.truth), evaluated)

    if options.regions is not None:
        chosen = regions.named_or_from_file(options.regions)
    elif cases.dataset_json is not None:
        chosen = regions.of_dataset(cases.dataset_json)
    else:
        raise UsageError(
            f"no dataset.json in {options.predictions}, {options.truth} or above: say with --regions which labels to evaluate"
        )
    changes = {name: getattr(options, name) for name in ("surface", "penalty") if getattr(options, name) is not None}
    protocol = replace(preset_named(options.preset), **changes, **_tolerances(options.tolerance, list(chosen)))
    ignored = None if cases.dataset_json is None else regions.ignored_label(cases.dataset_json)
    settings = results.Settings(chosen, protocol, ignored)

    files = [case for case in cases.files if case.prediction is not None or not options.only_predicted]
    out = Path(options.out) if options.out else evaluated / "evaluation"
    console = Console(markup=False, highlight=False)
    summary = results.evaluate(
        files,
        settings,
        out,
        workers_or_default(options.workers),
        cases.without_truth,
        None if options.model is None else evaluated,
        lambda found, what, count: track(found, what, count, console=console),
    )
    _show(console, summary, settings)
    for case, problem in summary["failed"].items():
        console.print(f"failed {case}: {problem}", soft_wrap=True)
    if summary["missing_predictions"]:
        names = ", ".join(summary["missing_predictions"])
        console.print(f"without a prediction, counted as empty: {names}", soft_wrap=True)
    if summary["predictions_without_truth"]:
        names = ", ".join(Path(file).name for file in summary["predictions_without_truth"])
        console.print(f"left out, since there is no true label map: {names}", soft_wrap=True)
    console.print(f"Wrote {out / results.TABLE} and {out / results.SUMMARY}", soft_wrap=True)
    return 1 if summary["failed"] else 0


def _folds(given):
    """Numbers of the folds; None for all."""
    from nnunet_glims.errors import UsageError

    if given is None:
        return None
    if not all(part.isdigit() for part in given.split(",")):
        raise UsageError(f"--folds {given}: give numbers, as 0,1,2")
    return [int(part) for part in given.split(",")]


def _tolerances(given, regions):
    """Fields of the protocol."""
    from nnunet_glims.errors import UsageError
    from nnunet_glims.validation import nearest

    fields, by_region = {}, {}
    for text in given:
        region, equals, number = text.rpartition("=")
        try:
            tolerance = float(number)
        except ValueError:
            raise UsageError(f"--tolerance {text}: {number!r} is no number of mm") from None
        if not equals:
            fields["tolerance_mm"] = tolerance
        elif region in regions:
            by_region[region] = tolerance
        else:
            raise UsageError(f"--tolerance {text}: region {region!r} is unknown: {nearest(region, regions)}")
    return fields | ({"region_tolerances_mm": by_region} if by_region else {})


def _show(console, summary, settings):
    """The most telling statistics."""
    from rich.table import Table
    from rich.text import Text

    from nnunet_glims.evaluation.regions import short

    shown = ("dice", "hd95", "nsd", "lesion_dice", "lesion_hd95")
    metrics = [metric for metric in settings.protocol.metrics if metric.name in shown]
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
