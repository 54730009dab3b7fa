"""The demo's way through nnU-Net's commands, with next to no training."""

import json
import subprocess
from contextlib import redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_glims.demo import pipeline
from nnunet_glims.demo.phantom import write_raw_dataset
from tests.preprocessed import TINY
from tests.stock import call_entry_point

pytestmark = pytest.mark.slow


@pytest.fixture
def barely_trained(tmp_path, monkeypatch):
    """The demo's overrides cut to two steps of tiny networks; their paths stand in for the names."""
    training = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1, "augmentation": "none"}
    content = {
        "description": "tiny",
        "source": "ours",
        "patch_size": [16, 16, 16],
        "batch_size": 2,
        "training": training,
    }
    overrides = {}
    for network, arguments in TINY.items():
        override = tmp_path / f"{network}_demo.json"
        override.write_text(json.dumps({**content, "network": network, "network_arguments": arguments}))
        overrides[network] = str(override)
    monkeypatch.setattr(pipeline, "OVERRIDES", {name: overrides[name] for name in pipeline.OVERRIDES})
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)


@pytest.fixture
def commands_run_here(monkeypatch):
    """The demo's commands run in this process, which has imported nnU-Net; returns their names as they run."""
    names = []

    def run(command, env, stdout, **_):
        names.append(Path(command[0]).name)
        quick = {"nnUNet_n_proc_DA": "0" if names[-1] == "nnUNetv2_train" else "1", "OMP_NUM_THREADS": "1"}
        text = TextIOWrapper(stdout, encoding="utf-8", write_through=True)
        with redirect_stdout(text):
            code = call_entry_point([names[-1], *command[1:]], {**env, **quick})
        text.detach()
        return subprocess.CompletedProcess(command, code)

    standing_in = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(pipeline, "subprocess", standing_in)
    return names


def test_it_reports_on_a_data_set_of_the_users_and_a_second_run_computes_nothing_again(
    barely_trained, commands_run_here, tmp_path
):
    raw = write_raw_dataset(tmp_path / "mine", "Dataset123_Mine", cases=6, test_cases=0, shape=(32, 36, 30))
    report = pipeline.run_demo(tmp_path / "out", data=raw)
    text = report.read_text()
    validation = json.loads((tmp_path / "out/nnUNet_preprocessed/Dataset123_Mine/splits_final.json").read_text())[0][
        "val"
    ]
    assert commands_run_here == ["nnUNetv2_plan_and_preprocess", *["nnUNetv2_train", "nnUNetv2_predict"] * 2]
    for word in ("GLIMS", "LATUPNet", *validation[:2]):
        assert word in text
    computed = [*(tmp_path / "out").rglob("checkpoint_final.pth"), *(tmp_path / "out/predictions").rglob("*.nii.gz")]
    written = {path: path.stat().st_mtime_ns for path in computed}
    assert len(written) == 2 * (1 + len(validation))
    report.unlink()
    commands_run_here.clear()
    pipeline.run_demo(tmp_path / "out", data=raw)
    assert report.exists() and commands_run_here == []
    assert {path: path.stat().st_mtime_ns for path in computed} == written


def test_a_failing_command_ends_the_demo_with_the_end_of_its_output(barely_trained, tmp_path):
    raw = write_raw_dataset(tmp_path / "mine", "Dataset123_Mine", cases=6, test_cases=0, shape=(32, 36, 30))
    (raw / "labelsTr" / "phantom_000.nii.gz").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)nnUNetv2_plan_and_preprocess ended with exit code 1.*phantom_000"):
        pipeline.run_demo(tmp_path / "out", data=raw)
    assert not (tmp_path / "out/report.html").exists()
