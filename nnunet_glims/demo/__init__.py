"""The demo: a synthetic tumour data set, two short trainings on it, and a report page."""
