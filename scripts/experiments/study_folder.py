"""The files in the folder of a study. The report is made from them alone."""

RESULTS_FILE = "results.jsonl"
"""A row for each finished cell."""

PROVENANCE_FILE = "grid.json"
"""How the results were made."""

SCHEDULES_FILE = "schedules.json"
"""Multipliers at even progress from 0 to 1, by regime and schedule."""

BASELINE_FILE = "baseline.jsonl"
"""The norms of the run that the refined schedules are made from."""

FORECASTS_FILE = "forecasts.json"
"""What `check` and the bound said about each baseline before the test seeds ran."""

SETTING_FILE = "setting.json"
"""The model, the data and the optimizer of a study, for its report."""
