"""Raw releases of public data sets into nnU-Net's raw layout: one file a data set, `conversion` for what they share."""
