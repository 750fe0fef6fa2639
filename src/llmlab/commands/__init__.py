"""The commands of llmlab: one file each, and what their command lines share."""
