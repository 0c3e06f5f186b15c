"""The refined schedule and its recording inside transformers: scheduler, arguments, trainers, launcher."""
