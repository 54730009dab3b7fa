"""From probabilities to label maps by stated rules: thresholds, small components, holes. NumPy and cc3d, no torch."""
