"""Sizes of what ZeRO moves at once, which DeepSpeed is told and plans count with. No torch."""

from __future__ import annotations

# Elements that are reduced or gathered at once; DeepSpeed's own 500 million would be a buffer of 2 GB in float32.
BUCKET = 50_000_000
# DeepSpeed's default; zero3 on GPUs: tensors of at most so many elements are not sharded for the forward.
KEPT_WHOLE = 100_000
