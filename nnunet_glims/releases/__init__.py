"""Facts about public releases, as data: labels, regions, names of cases and files, numbers of cases."""
