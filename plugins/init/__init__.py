"""Parts of the slot `init`."""
