"""A filter by the length of documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmlab.registry import register


@register("filter", "length")
class Length:
    """Drops short and long documents, in characters or words, as Gopher's first rule (Rae et al. 2021, arXiv:2112.11446).

    The paper keeps documents of 50 to 100,000 words. Words are separated by white space.

    least: a shorter document is dropped; None: no limit
    most: a longer document is dropped; None: no limit
    unit: the unit of both limits: characters (Unicode code points) or words
    """

    telling = (
        {"least": None},
        {"least": 3, "most": 7},
        {"most": 2},
        {"least": 3, "most": 3, "unit": "words"},
        {"most": 4, "unit": "words"},
    )

    def __init__(
        self,
        *,
        least: int | None = 1,
        most: int | None = None,
        unit: Literal["characters", "words"] = "characters",
    ):
        if least is not None and most is not None and least > most:
            raise ValueError(f"least={least} is more than most={most}: none would be kept")
        self.least, self.most, self.unit = least, most, unit

    def measure(self, texts: Sequence[str]) -> list[int]:
        return [len(text) if self.unit == "characters" else len(text.split()) for text in texts]

    def reason(self, value: int) -> str | None:
        if self.least is not None and value < self.least:
            return f"shorter than {self.least:,} {self.unit}"
        if self.most is not None and value > self.most:
            return f"longer than {self.most:,} {self.unit}"
        return None
