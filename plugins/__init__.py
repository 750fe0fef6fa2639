"""The parts: one folder a slot, one file a part or a few kin."""
