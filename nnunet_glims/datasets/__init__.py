"""Convert public data sets to nnU-Net's raw layout, and predictions to the form that challenges expect.

Each data set has a module that sorts the files of a release into cases. For all data sets, `archive` opens the release,
`checks` and `conversion` check and convert it, and `submission` packs predictions.
"""
