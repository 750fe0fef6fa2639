"""Checks of what parts promise, of each with every other and of every family."""

TRACED = "aot_eager"  # layers are traced, forward and backward, and run as they are
