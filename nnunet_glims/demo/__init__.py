"""The embedded demo: a synthetic tumour dataset, and a report page on what was trained with it."""
