"""Convert the public cases of docs/real-data.md to nnU-Net's raw format.

    python benchmarks/real_cases.py CASES RAW

CASES is a folder, or a zip or tar archive. It has one or both of

- Hippocampus (Medical Segmentation Decathlon, Task04): imagesTr/hippocampus_NNN.nii.gz with labelsTr/hippocampus_NNN.nii.gz,
  as it is published, or images/ and labels/;
- CHAOS, T2 MR: image_N.nii.gz with label_N.nii.gz.

BraTS is converted by nnunet-glims convert brats.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.datasets.archive import opened
from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.files import make_folder, new_folder, write_json
from nnunet_glims.images import read_image, read_label_map


@dataclass(frozen=True)
class RawDataset:
    """A data set to write.

    Attributes:
        name: name of its folder.
        channel, labels: entries of dataset.json.
        image, label: patterns of the last folder and the name of a case's files. The group "case" is the same in both.
    """

    name: str
    channel: str
    labels: dict[str, int]
    image: str
    label: str


DATASETS = (
    RawDataset(
        "Dataset004_Hippocampus",
        "MRI",
        {"background": 0, "anterior": 1, "posterior": 2},
        r"images(Tr)?/(?P<case>hippocampus_\d+)\.nii\.gz",
        r"labels(Tr)?/(?P<case>hippocampus_\d+)\.nii\.gz",
    ),
    RawDataset(
        "Dataset020_CHAOS",
        "MR",
        {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4},
        r".*/image_(?P<case>\d+)\.nii\.gz",
        r".*/label_(?P<case>\d+)\.nii\.gz",
    ),
)


def cases_of(dataset: RawDataset, files: Sequence[Path]) -> dict[str, tuple[Path, Path]]:
    """Return case -> image and label map; raise `ProcessingError` where a case has one of them only, or twice."""
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    for file in files:
        for part, pattern in enumerate((dataset.image, dataset.label)):
            match = re.fullmatch(pattern, f"{file.absolute().parent.name}/{file.name}", re.IGNORECASE)
            if match is not None:
                found.setdefault(match["case"], ([], []))[part].append(file)
    for case, (images, labels) in found.items():
        if len(images) != 1 or len(labels) != 1:
            there = ", ".join(map(str, (*images, *labels)))
            raise ProcessingError(f"{dataset.name}: {case} needs one image and one label map, and has {there}")
    return {case: (images[0], labels[0]) for case, (images, labels) in sorted(found.items())}


def write(dataset: RawDataset, cases: dict[str, tuple[Path, Path]], raw: Path) -> None:
    with new_folder(raw / dataset.name) as folder:
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir()
        for case, (image, label) in cases.items():
            read_image(image)  # raises an error about a damaged file
            read_label_map(label)
            shutil.copyfile(image, folder / f"imagesTr/{case}_0000.nii.gz")
            shutil.copyfile(label, folder / f"labelsTr/{case}.nii.gz")
        content = {
            "channel_names": {"0": dataset.channel},
            "labels": dataset.labels,
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        write_json(folder / "dataset.json", content)
    print(f"wrote {raw / dataset.name}: {len(cases)} cases")


def convert(source: Path, raw: Path) -> None:
    """Write every data set of which there are cases.

    Raises:
        UsageError: there is no case, or a data set exists already.
        ProcessingError: a case is incomplete, or an archive or the disk has a problem.
    """
    make_folder(raw)
    with opened(source, raw / ".cases.unpacked") as found:
        there = [(dataset, cases_of(dataset, found.files)) for dataset in DATASETS]
        if not any(cases for _, cases in there):
            raise UsageError(
                f"{source}: has none of the cases that this script knows: imagesTr/hippocampus_NNN.nii.gz with labelsTr/, "
                "image_N.nii.gz with label_N.nii.gz. nnU-Net converts other tasks of the Decathlon: "
                "nnUNetv2_convert_MSD_dataset"
            )
        for dataset, cases in there:
            number = dataset.name.partition("_")[0]
            taken = sorted(folder.name for folder in raw.glob(f"{number}*"))
            if cases and taken:
                raise UsageError(
                    f"{raw}: number {number.removeprefix('Dataset')} is taken by {taken[0]}: remove it first"
                )
        for dataset, cases in there:
            if cases:
                write(dataset, cases, raw)
            else:
                print(f"no cases of {dataset.name} in {source}")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
