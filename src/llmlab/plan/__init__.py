"""The cost of a run before there is one: parameters, FLOPs, memory of a device, time."""
