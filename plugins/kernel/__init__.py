"""Parts of the slot `kernel`."""
