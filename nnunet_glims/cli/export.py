"""`nnunet-glims export`: write a trained model to files that run without torch and nnU-Net."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.trust import add_trust

HELP = "export a trained model to ONNX or TorchScript, checked against PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="nnU-Net's model folder: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--format", default="onnx", help="onnx or torchscript (onnx)")
    parser.add_argument("--folds", help="folds such as 0,1,2 or all (default: every numbered fold that is trained)")
    parser.add_argument(
        "--checkpoint", default="checkpoint_final.pth", help="name of the file in each fold (checkpoint_final.pth)"
    )
    parser.add_argument("--precision", default="fp32", help="how weights are stored: fp32, fp16 or int8 (fp32)")
    parser.add_argument("--opset", type=int, default=18, help="ONNX operator set: 18, 19 or 20 (18)")
    add_trust(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an export")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.errors import UsageError

    try:
        from nnunet_glims.export.exporting import ExportRequest, export
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'nnunet-glims[onnx]' to export models") from None

    folds = () if options.folds is None else tuple(part.strip() for part in options.folds.split(","))
    if "" in folds:
        raise UsageError(f"--folds {options.folds!r}: give numbers with commas between, such as 0,1,2, or all")
    request = ExportRequest(folds, options.format, options.precision, options.opset, options.checkpoint, options.trust)
    out = Path(options.out)
    exported = export(Path(options.model), out, request, options.overwrite)
    print(f"Wrote {out}: {exported.licence}")
    if exported.format == "onnx":
        print(f"Next: nnunet-glims predict-onnx {out} IMAGES -o PREDICTIONS")
