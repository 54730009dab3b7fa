"""Seconds of `nnUNetv2_predict` on the CPU, start of Python included, of GLIMS, LATUP-Net and nnU-Net's default network.

    python -m benchmarks.prediction DATASET IMAGES [--weights nnUNetTrainerGLIMS=CHECKPOINT] [--repeats 2] [--json FILE]

nnU-Net's variables are set and the data set is planned (nnUNetPlans). The networks are untrained
(benchmarks/untrained_model.py, into a results folder that is deleted) but for those whose weights are given. Ours compute in
float32 unless NNUNET_GLIMS_PRECISION says otherwise. Without mirroring. Trainers take turns; the median of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cpu import processor
from nnunet_glims.processes import find_program

REFERENCE = "nnUNetTrainer"
TRAINERS = (REFERENCE, "nnUNetTrainerGLIMS", "nnUNetTrainerLATUPNet")


def weights_of(text: str) -> tuple[str, Path]:
    """TRAINER=CHECKPOINT, of a trainer that is measured and a file that is there."""
    trainer, _, checkpoint = text.partition("=")
    if trainer not in TRAINERS or not Path(checkpoint).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r}: give one of {', '.join(TRAINERS)}, =, and a checkpoint that exists"
        )
    return trainer, Path(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("images", type=Path)
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        type=weights_of,
        metavar="TRAINER=CHECKPOINT",
        help="a trained network's",
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all seconds there as well")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "nnUNet_results": folder}
        for trainer in TRAINERS:
            model = [sys.executable, str(Path(__file__).with_name("untrained_model.py")), arguments.dataset, trainer]
            subprocess.run(model, env=environment, check=True, stdout=subprocess.DEVNULL)
        for trainer, checkpoint in arguments.weights:
            (untrained,) = Path(folder).glob(f"*/{trainer}__*/fold_0/checkpoint_final.pth")
            shutil.copyfile(checkpoint, untrained)
        for repeat in range(arguments.repeats):
            for trainer in TRAINERS:
                command = [
                    find_program("nnUNetv2_predict"),
                    "-d",
                    arguments.dataset,
                    "-c",
                    "3d_fullres",
                    "-tr",
                    trainer,
                    "-f",
                    "0",
                ]
                command += ["-i", str(arguments.images), "-o", f"{folder}/{trainer}{repeat}", "-device", "cpu"]
                started = time.perf_counter()
                subprocess.run([*command, "--disable_tta"], env=environment, check=True, stdout=subprocess.DEVNULL)
                seconds[trainer].append(time.perf_counter() - started)
    medians = {trainer: statistics.median(taken) for trainer, taken in seconds.items()}
    print(processor())
    for trainer, median in medians.items():
        print(f"{trainer}: {median:.1f} s, {median / medians[REFERENCE]:.2f} of {REFERENCE}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": processor(), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
