"""The kinds of jobs that a comparison consists of, one class each."""
