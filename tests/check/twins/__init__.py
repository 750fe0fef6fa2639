"""Twins of the shipped parts, and the program that writes the records with which `llmlab check` compares them.

    python -m twins [SLOT ...]     (in tests/check) writes src/llmlab/check/twins/records/SLOT.json anew

The module of a slot holds a twin of each of its parts: written from the paper in NumPy and float64, slow and plain, or a call
of the reference implementation. It may have two tables of settings, (sizes and traits, options) by part, whose options come
on top of the part's `small` ones; None stands for the part's own defaults:

    MORE       settings at which the part is compared, beside those that its options give (`llmlab.check.twins.settings`)
    REFUSED    settings at which it must be refused

A table LACKING names parts that have no twin yet, and the tests that stand for it. A function `refuses(name, options)` tells
which settings among those that its options give it must refuse.
"""

from typing import Any

Settings = dict[str, list[tuple[dict[str, Any], dict[str, Any] | None]]]
