"""A filter by the language of documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmlab.errors import near
from llmlab.registry import register

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier  # type: ignore[import-not-found, unused-ignore]

READ = 20_000  # characters of a document that are read: more change no verdict, and a book would take a second


@register("filter", "language")
class Language:
    """Keeps documents in some languages, as py3langid tells them (Lui & Baldwin 2012, P12-3005; Barbaresi, BSD licence).

    Its model of 140 languages, 4.6 MB, comes with the package (pip install 'llmlab[language]'), and nothing is loaded from
    elsewhere. FineWeb keeps English with a score of at least 0.65 by fastText (Penedo et al. 2024, section 3.3); this is
    another model, whose score is the share of the language in a softmax over all, made flatter for long texts.

    keep: languages by their ISO 639-1 codes (en, de, zh), at least one
    least: a document whose language has a lower score is dropped
    """

    telling = ({"keep": ("de", "fr")}, {"least": 0.999})
    libraries = ("py3langid",)

    def __init__(self, *, keep: tuple[str, ...] = ("en",), least: float = 0.65):
        if not keep:
            raise ValueError("keep names no language: give it codes, such as keep=[en,de]")
        if not 0 <= least <= 1:
            raise ValueError(f"least must be a score between 0 and 1, but is {least}")
        self.keep, self.least = tuple(keep), least
        self._model: LanguageIdentifier | None = None

    def measure(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The language of each text, and its score."""
        if self._model is None:
            # Here and not in the constructor: it takes half a second, and runs without texts to judge need none.
            self._model = _model(self.keep)
        return [self._model.classify(text[:READ]) for text in texts]

    def reason(self, value: tuple[str, float]) -> str | None:
        language, score = value
        if language not in self.keep:
            return f"in another language ({language})"
        return f"in no language for certain, with a score below {self.least:g}" if score < self.least else None


def _model(keep: Sequence[str]) -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("it needs py3langid: pip install 'llmlab[language]'") from None
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for code in keep:
        if code not in model.labels:
            raise ValueError(f"keep={code} is no language that py3langid knows; {near(code, model.labels)}")
    return model
