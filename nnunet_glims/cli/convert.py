"""`nnunet-glims convert`: a raw release into nnU-Net's raw layout."""

from __future__ import annotations

import argparse

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
    from pathlib import Path

    from rich.console import Console

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.datasets import archive, brats, btcv, conversion, splits
    from nnunet_glims.datasets.cases import readable
    from nnunet_glims.datasets.destination import Destination
    from nnunet_glims.datasets.unpacking import is_archive
    from nnunet_glims.errors import UsageError
    from nnunet_glims.nnunet.folders import RAW
    from nnunet_glims.processes import workers_or_default

    raw = RAW.path
    workers = workers_or_default(options.workers)
    source = Path(options.source)
    default_name = {"brats": "BraTS", "btcv": "BTCV"}[options.kind]
    destination = Destination(raw, options.dataset, options.name or default_name)
    packed = is_archive(source)
    if packed and options.link:
        raise UsageError(f"{source}: there is nothing to link to in an archive: unpack it first, or leave out --link")
    named = ("nnunet",) if options.kind == "brats" else btcv.SPLITS
    own_splits = None if options.split in (None, *named) else splits.OwnSplits.read(Path(options.split))
    partial_split = options.kind == "btcv" and options.partial
    if partial_split and options.protocol != "synapse8" and options.split != "24-6":
        raise UsageError("--partial: this is for a published split: --split 24-6, or the protocol synapse8")
    console = Console(markup=False)
    with destination.held(), archive.opened(source, destination.unpacked) as found:
        if options.kind == "brats":
            channels = [name.strip() for name in options.channels.split(",")]
            release = brats.read(found.files, options.release, channels, where=str(source))
        else:
            release = btcv.read(found.files, options.protocol, options.split, where=str(source))
        labelled = sum(case.label is not None for case in release.cases)
        console.print(
            f"{release.name}: {len(release.cases)} cases, {labelled} of them with a segmentation, in {readable(str(source))}",
            soft_wrap=True,
        )
        links = options.link and conversion.links_work(destination)
        if options.link and not links:
            console.print(
                f"{readable(str(destination.raw))}: this disk has no symbolic links: files are copied", soft_wrap=True
            )
        report = conversion.convert(
            release,
            found,
            destination,
            transfer="move" if packed else "symlink" if links else "copy",
            own_splits=own_splits,
            partial_split=partial_split,
            workers=workers,
            skip_bad=options.skip_bad,
            progress=progress_on(console),
        )
    for entry in report["skipped"]:
        problem = ": ".join(part for part in (entry["case"], entry["file"], entry["problem"]) if part)
        console.print(f"skipped {readable(problem)}", soft_wrap=True)
    for what, names in (
        ("not used, because their names are not those of a case", report["unused_files"]),
        ("test cases, because they have no segmentation", report["test_cases"]),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            console.print(f"{what}: {', '.join(names[:_SHOWN])}{more}", soft_wrap=True)
    training, test = len(report["training_cases"]), len(report["test_cases"])
    console.print(
        f"Next:\n  nnUNetv2_plan_and_preprocess -d {destination.number} -c 3d_fullres --verify_dataset_integrity",
        soft_wrap=True,
    )
    console.print(
        f"wrote {readable(str(destination.folder))}: {training} training cases, {test} test cases", soft_wrap=True
    )
    if training != release.training_cases:
        console.print(
            f"{training} of {release.training_cases} cases: {release.name} has {release.training_cases} published cases with "
            "a segmentation",
            soft_wrap=True,
        )
