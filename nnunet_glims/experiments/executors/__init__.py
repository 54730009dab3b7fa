"""Where the jobs of a comparison run."""
