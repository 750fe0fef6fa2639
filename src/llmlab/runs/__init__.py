"""A run on disk: its record, folder, lock, checkpoints and metrics."""
