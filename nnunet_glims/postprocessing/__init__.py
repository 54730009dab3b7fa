"""Turn probabilities into label maps by rules for thresholds, small components and holes. NumPy and cc3d, no torch."""
