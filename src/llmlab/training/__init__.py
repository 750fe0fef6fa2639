"""A training run: the LightningModule, its callbacks, checkpoints, and the function that puts them together."""
