"""Parts of the slot `reward`."""
