"""From recorded norms to a schedule: the value, its file, and how far to trust it. Imports neither torch nor transformers."""
