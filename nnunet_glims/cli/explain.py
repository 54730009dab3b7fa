"""`nnunet-glims explain`: show where a trained network looks."""

from __future__ import annotations

import argparse
from typing import Any

from nnunet_glims.cli.output import new_console
from nnunet_glims.cli.trust import add_trust

HELP = "Grad-CAM of whole cases, values of attention gates, and checks of whether to trust them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="nnU-Net's model folder: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="folder of CASE_0000.nii.gz, …, or the files of cases' channels"
    )
    parser.add_argument("-o", "--out", help="folder to write")
    parser.add_argument("--target", help="regions or labels of dataset.json, such as WT,TC,ET (default: all)")
    parser.add_argument("--layer", help="names from --layers with commas between, or all (default: one coarse layer)")
    parser.add_argument("--layers", action="store_true", help="only list the layers")
    parser.add_argument("--method", default="gradcam", help="gradcam or guided-gradcam (gradcam)")
    parser.add_argument("--fold", default="0", help="name of the fold: a number, or all (0)")
    parser.add_argument(
        "--checkpoint", default="checkpoint_final.pth", help="name of the file in the fold (checkpoint_final.pth)"
    )
    parser.add_argument("--truth", help="folder of true label maps, to show beside the predicted ones")
    parser.add_argument("--sanity", action="store_true", help="check the maps: random weights, salient voxels masked")
    add_trust(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an explanation")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="where to compute (cuda where there is a GPU)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.table import Table

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.errors import UsageError
    from nnunet_glims.explanation.explainer import Explainer, ExplanationRequest, default_layer
    from nnunet_glims.explanation.explaining import explain
    from nnunet_glims.geometry import times

    def parts(given: str | None) -> tuple[str, ...]:
        return tuple(part.strip() for part in given.split(",")) if given is not None else ()

    request = ExplanationRequest(
        parts(options.target),
        parts(options.layer),
        options.method,
        options.fold,
        options.checkpoint,
        options.sanity,
        options.trust,
        options.device,
    )
    console = new_console()
    model = Path(options.model)
    if options.layers:
        layers = Explainer(model, request).layers
        table = Table("layer", "channels", "voxels", box=None)
        for layer in layers:
            table.add_row(layer.name, str(layer.channels), times(layer.size))
        console.print(table)
        console.print(f"Without --layer: {default_layer(layers).name}")
        return
    if not options.cases or options.out is None:
        raise UsageError("give a folder of images or their files, and with -o the folder to write; or --layers")
    out = Path(options.out)
    summary = explain(
        model,
        [Path(path) for path in options.cases],
        out,
        request,
        None if options.truth is None else Path(options.truth),
        options.overwrite,
        progress_on(console),
    )
    for case, found in summary["cases"].items():
        voxels = ", ".join(f"{target} {count} voxels" for target, count in found["predicted_voxels"].items())
        console.print(f"{case}: predicted {voxels}", soft_wrap=True)
        for layer, targets in found.get("sanity", {}).items():
            for target, checks in targets.items():
                console.print(f"  {layer}, {target}: {_describe_checks(checks)}", soft_wrap=True)
    console.print(f"Wrote {out / 'index.html'}", soft_wrap=True)


def _describe_checks(checks: dict[str, Any] | None) -> str:
    if checks is None:
        return "not predicted, so nothing to check"
    correlation, deletion = checks["random_weights"]["rank_correlation"], checks["deletion"]
    alike = "no map" if correlation is None else f"rank correlation {correlation:.2f}"
    return (
        f"with random weights: {alike}; mean logit {deletion['logit']:.2f}, most salient voxels masked "
        f"{deletion['most_salient_masked']:.2f}, as many others {deletion['random_masked']:.2f}"
    )
