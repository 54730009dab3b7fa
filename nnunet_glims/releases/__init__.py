"""Facts about public releases: labels, regions, names of cases and files, numbers of cases. Data only."""
