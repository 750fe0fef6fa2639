"""Parts of the slot `objective`."""
