"""The commands of `hf-refined-schedule`, a module each: `add_parser` declares its options and `run` runs it."""
