"""Recipes, losses and precision, which trainers use. Nothing here reads or writes files."""
