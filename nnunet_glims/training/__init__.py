"""What a trainer composes: recipes, losses and precision. No folders and no files: settings and tensors in, tensors out."""
