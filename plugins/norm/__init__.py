"""Parts of the slot `norm`."""
