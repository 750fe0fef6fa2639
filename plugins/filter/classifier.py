"""A filter by a classifier that is trained from examples of good and bad documents."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmlab.registry import register
from llmlab_plugins.filter._examples import documents

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@register("filter", "classifier")
class Classifier:
    """Keeps documents like good examples and unlike bad ones, as GPT-3's filter (Brown et al. 2020, arXiv:2005.14165).

    A logistic regression on hashed counts of words in small letters, which white space separates (appendix A). It is trained
    in each process when the first document is judged, always with the same result. Unlike the paper's, the counts of a
    document are scaled to length 1, so that long ones are not more certain, and both classes weigh the same, whatever the
    number of their examples. GPT-3's own threshold is random: a document is kept if a draw from a Pareto distribution is more
    than 1 - its score, which also lets some bad ones pass. The draw is a function of the text, and so the same in each run.

    positive: file of good examples: .jsonl with objects that have a "text", or a text with a document on each line
    negative: file of bad examples, of the same kinds
    acceptance: a document is kept by a least score, or by GPT-3's random threshold
    least: a document with a lower score, between 0 and 1, is dropped (acceptance=least)
    alpha: shape of the Pareto distribution; larger ones let fewer bad documents pass (acceptance=pareto)
    buckets: numbers into which words are hashed
    penalty: half of it times the squared weights is added to the mean loss
    """

    files = ("positive", "negative")
    libraries = ("scipy",)

    def __init__(
        self,
        *,
        positive: str | None = None,
        negative: str | None = None,
        acceptance: Literal["least", "pareto"] = "least",
        least: float = 0.5,
        alpha: float = 9.0,
        buckets: int = 262_144,
        penalty: float = 1e-3,
    ):
        if positive is None or negative is None:
            raise ValueError("give it examples of both kinds, positive=FILE and negative=FILE")
        if not 0 <= least <= 1:
            raise ValueError(f"least must be a score between 0 and 1, but is {least}")
        for name, value in (("alpha", alpha), ("buckets", buckets), ("penalty", penalty)):
            if not value > 0:
                raise ValueError(f"{name} must be more than 0, but is {value}")
        self.examples = documents("positive", positive), documents("negative", negative)
        self.pareto, self.least, self.alpha = acceptance == "pareto", least, alpha
        self.buckets, self.penalty = buckets, penalty
        self._weights: np.ndarray | None = None  # of the buckets, and the intercept

    def measure(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        """The score of each text, and what it must be at least."""
        if self._weights is None:
            good, bad = self.examples
            self._weights = trained(self._counts(good), self._counts(bad), self.penalty)
        scores = 1 / (1 + np.exp(-(self._counts(texts) @ self._weights[:-1] + self._weights[-1])))
        return list(zip(scores.tolist(), (self._threshold(text) for text in texts), strict=True))

    def reason(self, value: tuple[float, float]) -> str | None:
        score, threshold = value
        if score >= threshold:
            return None
        return "a score below GPT-3's random threshold" if self.pareto else f"a score below {self.least:g}"

    def _threshold(self, text: str) -> float:
        if not self.pareto:
            return self.least
        number = int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
        # As np.random.pareto, which begins at 0: kept if 1 - score < draw.
        return 1 - ((1 - number / 2**64) ** (-1 / self.alpha) - 1)

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """(texts, buckets), each row of length 1."""
        from scipy.sparse import csr_matrix  # takes 0.2 s

        known: dict[str, int] = {}
        columns, values, ends = [], [], [0]
        for text in texts:
            # Not hash(), which Python salts in each process.
            buckets = [
                known[word]
                if word in known
                else known.setdefault(word, zlib.crc32(word.encode("utf-8")) % self.buckets)
                for word in text.lower().split()
            ]
            found, counts = np.unique(np.array(buckets, dtype=np.int64), return_counts=True)
            columns.append(found)
            values.append(counts / max(1.0, float(np.sqrt((counts.astype(float) ** 2).sum()))))
            ends.append(ends[-1] + len(found))
        return csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=(len(texts), self.buckets))


def trained(good: csr_matrix, bad: csr_matrix, penalty: float) -> np.ndarray:
    """Weights of the columns, and the intercept, which has no penalty: those of the least mean loss of both classes."""
    from scipy.optimize import minimize
    from scipy.sparse import vstack

    x = vstack([good, bad]).tocsr()
    # Only columns that occur: the others stay 0.
    used = np.unique(x.indices)
    x = x[:, used]
    signs = np.repeat([1.0, -1.0], [good.shape[0], bad.shape[0]])
    share = np.repeat([0.5 / good.shape[0], 0.5 / bad.shape[0]], [good.shape[0], bad.shape[0]])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (x @ weights[:-1] + weights[-1])
        value = share @ np.logaddexp(0, -margins) + penalty / 2 * weights[:-1] @ weights[:-1]
        # d/dm log(1 + exp(-m)), without an overflow for large m.
        slope = -share * signs * np.exp(-np.logaddexp(0, margins))
        return float(value), np.append(x.T @ slope + penalty * weights[:-1], slope.sum())

    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B", options=options).x
    weights = np.zeros(good.shape[1] + 1)
    weights[used], weights[-1] = found[:-1], found[-1]
    return weights
