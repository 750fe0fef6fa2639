"""The typed config: its schema, how it is composed, checked, and how problems are told."""
