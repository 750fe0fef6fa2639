"""A filter of your own."""

from collections.abc import Sequence

import numpy as np

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("filter", "my_filter")
class MyFilter:
    """Documents that consist of symbols, as one of Gopher's rules drops them (Rae et al. 2021, arXiv:2112.11446).

    `measure` gives a value for each of a batch of texts, `reason` says of a value why its document goes, or None if it stays.
    """

    telling = ({"most": 0.4},)

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


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.filter.
@twin("filter", "my_filter", source="Rae et al. 2021, appendix A.1.1")
def definition(given: Given) -> dict[str, np.ndarray]:
    def share(text: str) -> float:
        symbols = sum(text[i] in "#…" or text[i : i + 3] == "..." for i in range(len(text)))
        return symbols / max(1, len(text.split()))

    dropped = np.array([share(str(text)) > given.options["most"] for text in given.inputs["texts"]], np.float64)
    return {"first": dropped, "second": dropped}
