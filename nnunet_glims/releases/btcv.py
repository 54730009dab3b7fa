"""BTCV, the abdomen data of "Multi-Atlas Labeling Beyond the Cranial Vault" (Synapse syn3193805)."""

from __future__ import annotations

REFERENCE = "https://doi.org/10.7303/syn3193805"
LICENCE = "terms of the challenge, to which one agrees for the download"

FILE_NAME = r"(?P<kind>img|label)(?P<number>\d{1,4})\.nii(\.gz)?"
"""A file of a case. The case of the letters does not matter, and copies of the release have fewer digits."""

CASE_NAME = "img{number:04d}"
SUBMISSION_NAME = "label{number:04d}.nii.gz"
"""File name of a segmentation in a submission."""

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland",
)  # fmt: skip
"""The names of the organs; the first one has label 1."""

SYNAPSE8 = ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")
"""The eight organs that TransUNet (arXiv 2102.04306) reports, in its order."""

SYNAPSE8_TEST: tuple[int, ...] = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
SYNAPSE8_TRAIN: tuple[int, ...] = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
"""Numbers of the test cases and of the training cases of TransUNet."""

TRAINING = tuple(sorted((*SYNAPSE8_TRAIN, *SYNAPSE8_TEST)))
"""Numbers of the published cases with a segmentation."""

BTCV13_TEST: tuple[int, ...] = (35, 36, 37, 38, 39, 40)
"""Numbers of the validation cases of the split of 24 and 6 cases."""

BTCV13_TRAIN = tuple(number for number in TRAINING if number not in BTCV13_TEST)
"""Numbers of the training cases of the split of 24 and 6 cases."""
