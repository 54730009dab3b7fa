"""Public data sets into nnU-Net's raw layout, and predictions back into the challenges' form.

Each data set has a module that sorts the files of a release into cases. `archive` opens the release, `checks` and `conversion`
do what all data sets share, and `submission` is the way back.
"""
