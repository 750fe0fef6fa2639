"""Parts of the slot `filter`."""
