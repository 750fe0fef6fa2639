"""Parts of the slot `window`."""
