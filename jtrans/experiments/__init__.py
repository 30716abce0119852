"""A module is an experiment: its config fields, what it measures, its words and its figures."""
