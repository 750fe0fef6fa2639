"""Parts of the slot `position`."""
