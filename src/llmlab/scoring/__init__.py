"""Runs by a reward that they were not trained by: what their answers to held-out prompts are worth."""
