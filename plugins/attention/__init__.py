"""Parts of the slot `attention`."""
