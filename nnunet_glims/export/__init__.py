"""Trained models as files that run without torch and nnU-Net.

`exporting` (with `description`, `conversion` and `parity`) writes them and needs torch, nnU-Net and ONNX; `runner` (with
`resampling` and `exported`) predicts with them and imports neither torch nor nnU-Net.
"""
