"""Parts of the slot `moe`."""
