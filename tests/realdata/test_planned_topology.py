"""Our strides against those that nnU-Net plans for real data sets."""

import json
import shutil

import pytest

from nnunet_glims.architectures import GLIMS, LATUPNet
from nnunet_glims.topology import stage_strides
from tests.stock import call

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


def hippocampus(source):
    for image in sorted((source / "hippocampus/images").glob("*.nii.gz"))[:20]:
        yield [image], source / "hippocampus/labels" / image.name


def chaos(source):
    for image in sorted((source / "chaos_mr").glob("image_*.nii.gz")):
        yield [image], image.with_name(image.name.replace("image", "label"))


LABELS = {hippocampus: 2, chaos: 4}


@pytest.fixture(scope="module", params=[hippocampus, chaos], ids=lambda cases: cases.__name__)
def planned(request, real_cases, tmp_path_factory):
    """The 3d_fullres configuration that nnU-Net plans for some real cases."""
    root = tmp_path_factory.mktemp(request.param.__name__)
    raw = root / "raw/Dataset001_Real"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    for number, (channels, label) in enumerate(request.param(real_cases)):
        for channel, image in enumerate(channels):
            shutil.copy(image, raw / f"imagesTr/case_{number:03d}_{channel:04d}.nii.gz")
        shutil.copy(label, raw / f"labelsTr/case_{number:03d}.nii.gz")
    labels = {"background": 0, **{f"label_{n}": n for n in range(1, LABELS[request.param] + 1)}}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": number + 1, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    folders = {f"nnUNet_{part}": root / part for part in ("raw", "preprocessed", "results")}
    call("nnUNetv2_plan_and_preprocess", "-d", "1", "--no_pp", "-npfp", "2", **folders, nnUNet_n_proc_DA=1)
    plans = json.loads((root / "preprocessed/Dataset001_Real/nnUNetPlans.json").read_text())
    return plans["configurations"]["3d_fullres"]


def test_strides_are_those_nnunet_plans(planned):
    strides = planned["architecture"]["arch_kwargs"]["strides"]
    assert stage_strides(planned["patch_size"], planned["spacing"], len(strides)) == strides


@pytest.mark.parametrize("network", [GLIMS, LATUPNet])
def test_both_networks_build_for_the_planned_patch(planned, network):
    stages = 6 if network is GLIMS else 4
    strides = stage_strides(planned["patch_size"], planned["spacing"], stages)
    assert network(1, 3, planned["patch_size"], strides).strides[0] == (1, 1, 1)
