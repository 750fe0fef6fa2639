"""Twins of the shipped parts, and the program that writes the records with which `llmlab check` compares them.

    python -m twins [SLOT ...]     (in tests/check) writes src/llmlab/check/twins/records/SLOT.json anew

A twin is written from the paper, or from the code that its source names, in NumPy and float64, slow and plain. Some are
compared with transformers and torch themselves, in tests/check/test_twin_references.py and test_twins_reference.py.

The module SLOT has the twins of a slot. It may list more settings than `llmlab.check.twins.settings` has: MORE, at which parts
are recorded too, and REFUSED, at which no part can be built, {part: [(sizes and traits, options), ...]}.
"""
