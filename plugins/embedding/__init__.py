"""Parts of the slot `embedding`."""
