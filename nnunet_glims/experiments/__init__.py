"""Comparisons of networks on data sets, with seeds and folds: described by a YAML file and run by one command."""
