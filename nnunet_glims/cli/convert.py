"""`nnunet-glims convert`: a raw release into nnU-Net's raw layout."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console
from nnunet_glims.errors import listed

_SHOWN = 5
"""Number of names that a line shows."""
HELP = "convert a release of BraTS or BTCV to nnU-Net's raw layout, checked"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="DATASET")
    brats = kinds.add_parser("brats", help="BraTS 2017 to 2021 and 2023 (adult glioma)")
    _add_common(brats)
    brats.add_argument("--release", default="auto", help="2017 to 2021 or 2023 (default: by the names of the cases)")
    brats.add_argument(
        "--channels",
        default="t1,t1ce,t2,flair",
        help="which, in which order (t1,t1ce,t2,flair; LATUP-Net: flair,t1ce,t2)",
    )
    brats.add_argument("--split", help="nnunet (the default), or a file like splits_final.json")
    btcv = kinds.add_parser("btcv", help="BTCV, abdomen CT (Synapse syn3193805)")
    _add_common(btcv)
    btcv.add_argument("--protocol", default="btcv13", help="btcv13: 13 organs; synapse8: 8 organs, 18 and 12 cases")
    btcv.add_argument(
        "--split", help="nnunet (the default of btcv13), 24-6, or a file like splits_final.json; not with synapse8"
    )
    btcv.add_argument(
        "--partial",
        action="store_true",
        help="take a published split although cases of it are missing (not comparable)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder, zip or tar of the release")
    parser.add_argument("-d", "--dataset", type=int, required=True, help="number of the new data set, 1 to 999")
    parser.add_argument("--name", help="name of the new data set, after DatasetNNN_")
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow, at most 8)")
    transfer = parser.add_mutually_exclusive_group()
    transfer.add_argument("--copy", action="store_true", help="copy files that need no change (the default)")
    transfer.add_argument("--link", action="store_true", help="link to files that need no change")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted conversion, as the same command does without it",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases with problems")


def run(options: argparse.Namespace) -> None:
    from functools import partial
    from pathlib import Path

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.datasets import brats, btcv
    from nnunet_glims.datasets.conversion import convert_source
    from nnunet_glims.datasets.destination import Destination
    from nnunet_glims.datasets.splits import OwnSplits
    from nnunet_glims.nnunet.folders import RAW
    from nnunet_glims.processes import workers_or_default

    console = new_console()

    def tell(text: str) -> None:
        console.print(text, soft_wrap=True)

    if options.kind == "brats":
        channels = [name.strip() for name in options.channels.split(",")]
        read = partial(brats.read, release=options.release, channels=channels, where=options.source)
        named, partial_split, default_name = brats.SPLITS, False, "BraTS"
    else:
        btcv.check_options(options.protocol, options.split, options.partial)
        read = partial(btcv.read, protocol=options.protocol, split=options.split, where=options.source)
        named, partial_split, default_name = btcv.SPLITS, options.partial, "BTCV"
    destination = Destination(RAW.path, options.dataset, options.name or default_name)
    report = convert_source(
        Path(options.source),
        read,
        destination,
        link=options.link,
        own_splits=None if options.split in (None, *named) else OwnSplits.read(Path(options.split)),
        partial_split=partial_split,
        workers=workers_or_default(options.workers),
        skip_bad=options.skip_bad,
        tell=tell,
        progress=progress_on(console),
    )
    for entry in report["skipped"]:
        tell("skipped " + ": ".join(part for part in (entry["case"], entry["file"], entry["problem"]) if part))
    for what, names in (
        ("not used, because their names are not those of a case", report["unused_files"]),
        ("test cases, because they have no segmentation", report["test_cases"]),
    ):
        if names:
            tell(f"{what}: {listed(names, _SHOWN)}")
    training, test = len(report["training_cases"]), len(report["test_cases"])
    published = report["published_training_cases"]
    tell(f"Next:\n  nnUNetv2_plan_and_preprocess -d {destination.number} -c 3d_fullres --verify_dataset_integrity")
    tell(f"wrote {destination.folder}: {training} training cases, {test} test cases")
    if training != published:
        tell(
            f"{training} of {published} cases: {report['release']} has {published} published cases with a segmentation"
        )
