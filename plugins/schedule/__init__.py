"""Parts of the slot `schedule`."""
