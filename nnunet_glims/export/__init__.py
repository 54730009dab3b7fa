"""Trained models as files that run without torch and nnU-Net.

`exporting` writes them, with the help of `description`, `conversion` and `parity`, and needs torch, nnU-Net and ONNX.
`runner` predicts with them, with the help of `cases`, `preprocessing`, `sliding_window`, `resampling` and `label_maps`,
and imports neither torch nor nnU-Net. `exported` is what both share: the content of model.json.
"""
