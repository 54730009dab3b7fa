"""`nnunet-glims submit`: predictions as a challenge takes them."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "check predictions against the expected cases and pack them as BraTS and BTCV take them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", help="folder of predicted label maps, CASE.nii.gz")
    parser.add_argument("out", help="zip to write")
    parser.add_argument("--challenge", required=True, help="brats2018, brats2020, brats2021, brats2023 or btcv")
    parser.add_argument(
        "--dataset", help="raw data set (folder DatasetNNN_NAME): its imagesTs are the cases, its images the geometry"
    )
    parser.add_argument("--cases", help="text file with a case on each line, instead of those in imagesTs")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.datasets.submission import challenge_named, expected_cases, write_submission
    from nnunet_glims.errors import UsageError
    from nnunet_glims.files import check_output_file
    from nnunet_glims.nnunet.folders import other_files

    if options.dataset is None and options.cases is None:
        raise UsageError("say which cases are expected: --dataset DatasetNNN_NAME (its imagesTs), or --cases FILE")
    check_output_file(Path(options.out))
    challenge = challenge_named(options.challenge)
    dataset, cases = (None if value is None else Path(value) for value in (options.dataset, options.cases))
    expected = expected_cases(challenge, dataset, cases)
    console = new_console()
    foreground = write_submission(
        Path(options.predictions),
        Path(options.out),
        challenge,
        expected,
        progress_on(console),
    )
    empty = [name for name, voxels in foreground.items() if voxels == 0]
    if empty:
        console.print(f"without any label: {', '.join(empty)}", soft_wrap=True)
    if others := other_files(Path(options.predictions)):
        names = ", ".join(file.name for file in others)
        console.print(f"passed over, since they are no label maps: {names}", soft_wrap=True)
    unchecked = sum(image is None for image in expected.images.values())
    if unchecked:
        text = f"{unchecked} cases without an image at hand: their shape and geometry were not checked (--dataset)"
        console.print(text, soft_wrap=True)
    console.print(f"Wrote {options.out}: {len(foreground)} cases", soft_wrap=True)
