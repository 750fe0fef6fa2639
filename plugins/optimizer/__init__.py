"""Parts of the slot `optimizer`."""
