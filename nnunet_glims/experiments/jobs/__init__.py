"""The kinds of jobs of a comparison, one class each."""
