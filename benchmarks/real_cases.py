"""Bring public cases into nnU-Net's raw layout, as docs/real-data.md uses them.

    python benchmarks/real_cases.py CASES RAW

CASES has hippocampus/images and labels (Medical Segmentation Decathlon), brats2018/X/X_{flair,t1ce,t1,t2,seg}.nii.gz and
chaos_mr/image_N.nii.gz with label_N.nii.gz. BraTS' label 4 becomes 3 and its regions are declared.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def write(
    folder: Path, channels: list[str], labels: dict, cases: dict[str, tuple[list[Path], Path]], **further
) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case, (images, label) in cases.items():
        for number, image in enumerate(images):
            shutil.copy(image, folder / f"imagesTr/{case}_{number:04d}.nii.gz")
        target = folder / f"labelsTr/{case}.nii.gz"
        if "regions_class_order" in further:
            image = sitk.ReadImage(str(label))
            array = sitk.GetArrayFromImage(image)
            renumbered = sitk.GetImageFromArray(np.where(array == 4, 3, array).astype(np.uint8))
            renumbered.CopyInformation(image)
            sitk.WriteImage(renumbered, str(target))
        else:
            shutil.copy(label, target)
    content = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **further,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4))


def main(cases: Path, raw: Path) -> None:
    images = sorted((cases / "hippocampus/images").glob("*.nii.gz"))
    write(
        raw / "Dataset004_Hippocampus",
        ["MRI"],
        {"background": 0, "anterior": 1, "posterior": 2},
        {path.name[:-7]: ([path], cases / "hippocampus/labels" / path.name) for path in images},
    )
    folders = sorted(path for path in (cases / "brats2018").iterdir() if path.is_dir())
    write(
        raw / "Dataset018_BraTS2018",
        ["FLAIR", "T1ce", "T1", "T2"],
        {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
        {
            path.name: (
                [path / f"{path.name}_{channel}.nii.gz" for channel in ("flair", "t1ce", "t1", "t2")],
                path / f"{path.name}_seg.nii.gz",
            )
            for path in folders
        },
        regions_class_order=[2, 1, 3],
    )
    images = sorted((cases / "chaos_mr").glob("image_*.nii.gz"))
    write(
        raw / "Dataset020_CHAOS",
        ["MR"],
        {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4},
        {path.name[6:-7]: ([path], path.with_name(path.name.replace("image", "label"))) for path in images},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
