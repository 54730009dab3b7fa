"""The benchmarks' tables, from stand-in numbers and a tiny network."""

import argparse
import json
import os
import sys

import pytest
import torch

from benchmarks import gpu
from nnunet_glims.architectures import GLIMS
from nnunet_glims.errors import UsageError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    gpu.main()


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="no CUDA device"):
        run(monkeypatch)


def test_the_gpu_table_is_markdown_with_ratios_and_json_has_every_second(monkeypatch, tmp_path, capsys):
    """Stand-ins: the reference takes 2 s, GLIMS 1 s or, compiled, 0.5 s; one network is not there, one has no memory."""
    standing_in = {gpu.REFERENCE: 2.0, "GLIMS": 1.0, "GLIMS, compiled": 0.5, "GLIMS, straightforward": 8.0}
    settings = {}

    def measure(build, options, device):
        name = next(name for name, (given, _) in contestants.items() if given is build)
        settings[name] = os.environ["NNUNET_GLIMS_KERNELS"]
        if name == "Swin UNETR":
            raise UsageError("install monai")
        if name.startswith("LATUP-Net"):
            return {gpu.FORWARD: [1.0, 1.0, 1.0]}
        second = standing_in[name]
        return {gpu.TRAINING: [second * 9, second, second / 9], gpu.TRAINING_MEMORY: 3 * second, gpu.FORWARD: [second]}

    contestants = gpu.contestants(128)
    monkeypatch.setattr(gpu, "contestants", lambda _: contestants)
    monkeypatch.setattr(gpu, "measure", measure)
    run(monkeypatch, "--device", "cpu", "--json", tmp_path / "table.json")
    printed = capsys.readouterr()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in printed.out.splitlines() if line.startswith("|")
    ]
    assert rows[0][1::2] == [gpu.TRAINING, gpu.TRAINING_MEMORY, gpu.FORWARD]
    assert set(rows[1][0]) == {"-"}
    table = {row[0]: row[1:] for row in rows[2:]}
    assert table["GLIMS, compiled"] == ["0.5", "0.25", "1.5", "0.25", "0.5", "0.25"]
    assert table["LATUP-Net"] == ["—", "—", "—", "—", "1", "0.50"]
    assert "Swin UNETR" not in table and "install monai" in printed.err
    assert settings["GLIMS, straightforward"] == "eager" and settings["GLIMS"] == "auto"
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept["measured"]["GLIMS"][gpu.TRAINING] == [9.0, 1.0, 1 / 9] and kept["patch"] == 128


def test_steps_passes_and_whole_cases_run():
    options = argparse.Namespace(patch=16, batch=2, repeats=1, case=(16, 20, 16))
    found = gpu.measure(
        lambda: GLIMS(4, 3, (16, 16, 16), feature_size=6, num_heads=(3,) * 5), options, torch.device("cpu")
    )
    assert set(found) == {gpu.TRAINING, gpu.FORWARD, gpu.CASE}
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.values())
