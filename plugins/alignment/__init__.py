"""Parts of the slot `alignment`."""
