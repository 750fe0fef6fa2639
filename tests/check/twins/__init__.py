"""Implementations that are not ours, and the records that `llmlab check` compares our parts with.

    python -m twins [SLOT ...]     (in tests/check) writes src/llmlab/check/twins/records/SLOT.json anew

A twin is written from the paper in NumPy and float64, slow and plain, or calls the reference implementation.
"""
