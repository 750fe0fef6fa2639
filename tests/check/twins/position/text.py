"""The observer's texts as arrays, how positions count their tokens, and the outputs that are computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llmlab.check.twins.observers.position import SCALE
from llmlab.twins import Given


@dataclass(frozen=True)
class Text:
    """One of the texts, as arrays."""

    name: str
    ids: np.ndarray
    before: int
    seen: np.ndarray
    valid: np.ndarray
    documents: np.ndarray
    positions: np.ndarray | None
    segments: np.ndarray | None
    prefix_len: np.ndarray | None

    @property
    def length(self) -> int:
        return self.ids.shape[1]


def texts(given: Given) -> Iterator[Text]:
    names = sorted({key.split(".")[0] for key in given.inputs if key.endswith(".ids")})
    for name in names:
        found = {key.split(".")[1]: value for key, value in given.inputs.items() if key.startswith(f"{name}.")}
        yield Text(
            name,
            found["ids"],
            int(found["before"]),
            found["seen"],
            found.get("valid", np.ones(found["ids"].shape, bool)),
            found.get("documents", np.zeros_like(found["ids"])),
            found.get("positions"),
            found.get("segments"),
            found.get("prefix_len"),
        )


def documents_of(text: Text, row: int) -> list[list[int]]:
    """The places of each document of a row, in order. A number that occurs again later is another document."""
    out: list[list[int]] = []
    for t in range(text.length):
        if t == 0 or text.documents[row, t] != text.documents[row, t - 1]:
            out.append([])
        out[-1].append(t)
    return out


def counted(text: Text, *, skip_padding: bool, anew: bool) -> np.ndarray:
    """(B, S): the number of tokens before each. skip_padding: without padding. anew: from the beginning of its document."""
    if text.positions is not None:
        return text.positions
    out = np.zeros(text.ids.shape, int)
    for row in range(len(out)):
        documents = documents_of(text, row) if anew else [list(range(text.length))]
        for slots in documents:
            for t in slots:
                earlier = [s for s in slots if s <= t and (text.valid[row, s] or not skip_padding)]
                out[row, t] = max(len(earlier) - 1, 0)
    return out


def spread(k: np.ndarray, n_heads: int) -> np.ndarray:
    """(B, N, S, H): the keys of each query head; neighbouring heads share a group."""
    return np.stack([k[:, n * k.shape[1] // n_heads] for n in range(n_heads)], 1)


Scored = Callable[[Text, np.ndarray, np.ndarray], np.ndarray]


def scores(
    given: Given, scored: Scored, *, size: int = 0, score_width: int = 0, dropped: Scored | None = None
) -> dict[str, np.ndarray]:
    """Scores of each text: scored(text, q (B, N, S, H), k (B, N, S, H)) -> (B, N, S, S), of the queries read last where it
    counts. size: the number of parameters. score_width: of what each distance is scored with. dropped: `scored` where dropout
    leaves nothing."""
    out = {"size": np.array(size), "score_width": np.array(score_width)}
    for text in texts(given):
        q, k = (given.inputs[name][:, :, : text.length] for name in "qk")
        for name, of in ((text.name, scored), ("dropped", dropped or scored)):
            if name == text.name or text.name == "later":
                every = of(text, q, spread(k, q.shape[1]))
                out[f"{name}.scores"] = np.where(text.seen[:, None], every[:, :, text.before :], 0.0)
    return out


def vectors(given: Given, embedded: Callable[[Text], np.ndarray]) -> dict[str, np.ndarray]:
    """Vectors of each text: embedded(text) -> (B, S, E), of the tokens read last."""
    return {f"{text.name}.vectors": embedded(text)[:, text.before :] for text in texts(given)}


def products(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return SCALE * np.einsum("bnth,bnsh->bnts", q, k)


def distances(ids: np.ndarray) -> np.ndarray:
    """(B, S, S): key minus query."""
    return ids[:, None, :] - ids[:, :, None]
