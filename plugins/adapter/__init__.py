"""Parts of the slot `adapter`."""
