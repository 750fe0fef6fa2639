"""Commands that a run prints, to be typed again."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser

from llmlab.training.task import typed


def test_the_way_to_resume_can_be_typed():
    """A shell and Hydra's grammar read the same folder out of it, also with spaces, quotes' neighbours and =."""
    for folder in ("runs/2026-01-01/a", "my runs/lr=3,x", "a [b] {c}", "/tmp/it's"):
        (word,) = shlex.split(typed("resume", folder))
        assert OverridesParser.create().parse_override(word).value() == folder
