"""nnU-Net plans for the networks of this package: completed, changed by overrides, or sized for a GPU."""
