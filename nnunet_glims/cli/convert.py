"""`nnunet-glims convert`: a raw release into nnU-Net's raw layout."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "convert a release of BraTS or BTCV to nnU-Net's raw layout, checked"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="DATASET")
    brats = kinds.add_parser("brats", help="BraTS 2018, 2020, 2021, 2023 (adult glioma)")
    _add_common(brats)
    brats.add_argument(
        "--release", default="auto", help="2018, 2020, 2021 or 2023 (default: by the names of the cases)"
    )
    brats.add_argument(
        "--channels",
        default="t1,t1ce,t2,flair",
        help="which, in which order (t1,t1ce,t2,flair; LATUP-Net: flair,t1ce,t2)",
    )
    brats.add_argument("--split", default="nnunet", help="nnunet, or a file like splits_final.json")
    btcv = kinds.add_parser("btcv", help="BTCV, abdomen CT (Synapse syn3193805)")
    _add_common(btcv)
    btcv.add_argument("--protocol", default="btcv13", help="btcv13: 13 organs; synapse8: 8 organs, 18 and 12 cases")
    btcv.add_argument("--split", default="nnunet", help="nnunet, 24-6, or a file like splits_final.json")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder, zip or tar of the release")
    parser.add_argument("-d", "--dataset", type=int, required=True, help="number of the new data set, 1 to 999")
    parser.add_argument("--name", help="name of the new data set, after DatasetNNN_")
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow, at most 8)")
    transfer = parser.add_mutually_exclusive_group()
    transfer.add_argument("--copy", action="store_true", help="copy files that need no change (the default)")
    transfer.add_argument("--link", action="store_true", help="link to files that need no change")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted conversion")
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases with problems")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.datasets import archive, brats, btcv, conversion
    from nnunet_glims.errors import UsageError
    from nnunet_glims.nnunet.folders import RAW
    from nnunet_glims.processes import workers_or_default

    raw = RAW.path
    workers = workers_or_default(options.workers)
    source = Path(options.source)
    default_name = {"brats": "BraTS", "btcv": "BTCV"}[options.kind]
    destination = conversion.Destination(raw, options.dataset, options.name or default_name)
    destination.check()
    packed = archive.is_archive(source)
    if packed and options.link:
        raise UsageError(f"{source}: there is nothing to link to in an archive: unpack it first, or leave out --link")
    console = new_console()
    with archive.opened(source, destination.unpacked) as found:
        own_split = None
        if options.kind == "brats":
            release = brats.read(found.files, options.release, [name.strip() for name in options.channels.split(",")])
            if options.split != "nnunet":
                own_split = Path(options.split)
        else:
            named = options.split in btcv.SPLITS
            release = btcv.read(found.files, options.protocol, options.split if named else "nnunet")
            own_split = None if named else Path(options.split)
        labelled = sum(case.label is not None for case in release.cases)
        console.print(
            f"{release.name}: {len(release.cases)} cases, {labelled} of them with a segmentation, in {source}"
        )
        report = conversion.convert(
            release,
            found,
            destination,
            transfer="move" if packed else "symlink" if options.link else "copy",
            split=own_split,
            workers=workers,
            resume=options.resume,
            skip_bad=options.skip_bad,
            progress=progress_on(console),
        )
    for entry in report["skipped"]:
        console.print(f"skipped {entry['case']}: {entry['problem']}", soft_wrap=True)
    training, test = len(report["training_cases"]), len(report["test_cases"])
    console.print(f"wrote {destination.folder}: {training} training cases, {test} test cases", soft_wrap=True)
    console.print(
        f"Next:\n  nnUNetv2_plan_and_preprocess -d {destination.number} -c 3d_fullres --verify_dataset_integrity",
        soft_wrap=True,
    )
