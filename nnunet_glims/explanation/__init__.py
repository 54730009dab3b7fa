"""Explain where a trained network looks: Grad-CAM of whole cases, values of attention gates, and checks of the maps."""
