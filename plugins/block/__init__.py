"""Parts of the slot `block`."""
