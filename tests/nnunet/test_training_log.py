"""nnU-Net's training logs, whole and damaged."""

import pytest

from nnunet_glims.nnunet.training_log import read_training_log

LINES = """\
2026-01-02 03:04:05.000006: Epoch 0
2026-01-02 03:04:05.000006: train_loss 0.5
2026-01-02 03:04:05.000006: val_loss nan
2026-01-02 03:04:05.000006: Pseudo dice [np.float32(0.25), np.float32(0.75)]
2026-01-02 03:04:05.000006: Epoch time: 36.0 s
"""


@pytest.mark.parametrize("debug", ['{"device": "cpu", "_best_ema": NaN}', '{"device": "cp', "[]", ""])
def test_debug_json_with_nan_or_cut_off_does_not_end_a_report(tmp_path, debug):
    (tmp_path / "debug.json").write_text(debug)
    (tmp_path / "training_log_2026_1_2_03_04_05.txt").write_text(LINES)
    log = read_training_log(tmp_path)
    assert log.device == ("cpu" if "NaN" in debug else None)
    assert log.curves["pseudo Dice"] == [0.5]
    assert log.hours == pytest.approx(0.01)


@pytest.mark.parametrize("line", ["train_loss", "train_loss 0.x", "Epoch time:", "Epoch time: one s"])
def test_damaged_lines_are_left_out(tmp_path, line):
    damaged = f"2026-01-02 03:04:05.000006: {line}\n2026-99-02 03:04:05.000006: train_loss 9\n"
    (tmp_path / "training_log_2026_1_2_03_04_05.txt").write_text(LINES + damaged)
    assert read_training_log(tmp_path).curves["training loss"] == [0.5]
