"""Parts of the slot `head`."""
