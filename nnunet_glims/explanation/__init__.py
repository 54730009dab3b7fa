"""Where a trained network looks: Grad-CAM over whole cases, the values of attention gates, and whether to trust them."""
