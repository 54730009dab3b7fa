"""Comparison runs: networks × data sets × seeds × folds as data, brought to their end by one command."""
