"""Checks of what parts promise, of each with every other and of every family."""

TRACED = "aot_eager"  # torch.compile backend: traces forward and backward, and runs the traced graph in eager mode
