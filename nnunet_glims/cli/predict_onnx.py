"""`nnunet-glims predict-onnx`: predict cases with an exported model, without torch and nnU-Net."""

from __future__ import annotations

import argparse

HELP = "predict with an exported model; needs neither torch nor nnU-Net"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder that nnunet-glims export wrote")
    parser.add_argument("input", nargs="+", help="folder of CASE_0000.nii.gz, …, or the files of cases' channels")
    parser.add_argument("-o", "--output", required=True, help="folder for the label maps")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--continue_prediction", action="store_true", help="skip cases that have a label map already")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto is cuda where onnxruntime has it (auto)"
    )
    parser.add_argument("--threads", type=int, help="number of threads on the CPU (default: chosen by onnxruntime)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.export.runner import predict

    predict(
        Path(options.model),
        [Path(path) for path in options.input],
        Path(options.output),
        not options.disable_tta,
        options.device,
        options.threads,
        options.continue_prediction,
    )
