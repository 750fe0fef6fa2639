"""Checks of what parts promise, of each with every other and of every family."""
