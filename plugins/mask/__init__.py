"""Parts of the slot `mask`."""
