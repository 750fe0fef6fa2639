"""A filter of your own."""

from collections.abc import Sequence

from llmlab.registry import register


@register("filter", "my_filter")
class MyFilter:
    """Documents that consist of symbols, as one of Gopher's rules drops them (Rae et al. 2021, arXiv:2112.11446).

    `measure` gives a value for each of a batch of texts, `reason` says of a value why its document goes, or None if it stays.
    """

    def __init__(
        self,
        *,
        most: float = 0.1,  # symbols (# and the ellipsis) per word
    ):
        if most < 0:
            raise ValueError(f"most={most} must be at least 0")
        self.most = most

    def measure(self, texts: Sequence[str]) -> list[float]:
        return [sum(map(text.count, ("#", "...", "…"))) / max(1, len(text.split())) for text in texts]

    def reason(self, value: float) -> str | None:
        return f"with more than {self.most:g} symbols a word" if value > self.most else None
