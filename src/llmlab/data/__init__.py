"""Text to packed batches: `prepare` a corpus, cut it into `Windows`, and load them in an order that is f(seed, step).

`llmlab.data.loader` is imported apart: it needs torch, and what stands here does not.
"""

from llmlab.data.corpus import Corpus
from llmlab.data.prepare import prepare
from llmlab.data.windows import Stream, Windows

__all__ = ["Corpus", "Stream", "Windows", "prepare"]
