"""Parts of the slot `ffn`."""
