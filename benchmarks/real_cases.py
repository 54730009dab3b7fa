"""Convert the public cases of docs/real-data.md to nnU-Net's raw format.

    python benchmarks/real_cases.py CASES RAW

CASES contains hippocampus/images and hippocampus/labels (Medical Segmentation Decathlon), and chaos_mr/image_N.nii.gz
with chaos_mr/label_N.nii.gz. BraTS is converted by nnunet-glims convert brats.
"""

import json
import shutil
import sys
from pathlib import Path


def write(folder: Path, channel: str, labels: dict[str, int], cases: dict[str, tuple[Path, Path]]) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case, (image, label) in cases.items():
        shutil.copy(image, folder / f"imagesTr/{case}_0000.nii.gz")
        shutil.copy(label, folder / f"labelsTr/{case}.nii.gz")
    content = {
        "channel_names": {"0": channel},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4))


def main(cases: Path, raw: Path) -> None:
    images = sorted((cases / "hippocampus/images").glob("*.nii.gz"))
    write(
        raw / "Dataset004_Hippocampus",
        "MRI",
        {"background": 0, "anterior": 1, "posterior": 2},
        {path.name[:-7]: (path, cases / "hippocampus/labels" / path.name) for path in images},
    )
    images = sorted((cases / "chaos_mr").glob("image_*.nii.gz"))
    write(
        raw / "Dataset020_CHAOS",
        "MR",
        {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4},
        {path.name[6:-7]: (path, path.with_name(path.name.replace("image", "label"))) for path in images},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
