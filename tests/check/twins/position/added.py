"""Twins of positions that are added to the embedding, and of `none`."""

from __future__ import annotations

import numpy as np

from llmlab.twins import Given, twin
from twins.position.text import Text, counted, products, scores, texts, vectors


@twin("position", "none", source="Haviv et al. 2022: no position")
def none(given: Given) -> dict[str, np.ndarray]:
    return scores(given, products)


@twin("position", "learned", source="Gehring et al. 2017, section 3.1; rows as in fairseq's OPT and RoBERTa")
def learned(given: Given) -> dict[str, np.ndarray]:
    table = given.weights["table.weight"]
    return {**scores(given, products, size=table_size(given)), **looked_up(given, table)}


def table_size(given: Given) -> int:
    """Numbers in a table with a row for each of max_positions, and `offset` rows before them."""
    return (given.sizes.max_positions + given.options["offset"]) * given.sizes.embed_dim


def looked_up(given: Given, table: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors of each text, and the number of rows that are trained: those it uses but padding's."""
    out = vectors(given, lambda text: table[rows(given, text)])
    for text in texts(given):
        used = {*rows(given, text)[:, text.before :].flat}
        if given.options["pad_id"] is not None:
            used.discard(given.options["offset"] - 1)
        out[f"{text.name}.trained"] = np.array(len(used))
    return out


def rows(given: Given, text: Text) -> np.ndarray:
    """(B, S): rows of the table. In RoBERTa padding has the row before the first position's, and is not counted."""
    offset, pad_id = given.options["offset"], given.options["pad_id"]
    if text.positions is not None:
        return text.positions + offset  # they count from 0
    if pad_id is None:
        return counted(text, skip_padding=given.options["skip_padding"], anew=True) + offset
    token = text.ids != pad_id
    count = counted(Text(**{**vars(text), "valid": token}), skip_padding=True, anew=True)
    return np.where(token, count + offset, offset - 1)


@twin("position", "sinusoidal", source="Vaswani et al. 2017, section 3.5; halves as in Marian")
def sinusoidal(given: Given) -> dict[str, np.ndarray]:
    width, halves = given.sizes.embed_dim, given.options["layout"] == "halves"

    def embedded(text: Text) -> np.ndarray:
        return sinusoids(counted(text, skip_padding=False, anew=True), width, halves)

    untrained = {f"{text.name}.trained": np.array(0) for text in texts(given)}
    return {**scores(given, products), **vectors(given, embedded), **untrained}


def sinusoids(ids: np.ndarray, width: int, halves: bool) -> np.ndarray:
    """(..., width): PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i + 1) its cosine; or all sines first."""
    out = np.zeros((*ids.shape, width))
    for i in range((width + 1) // 2):
        angle = ids / 10000 ** (2 * i / width)
        at_sine, at_cosine = (i, (width + 1) // 2 + i) if halves else (2 * i, 2 * i + 1)
        out[..., at_sine] = np.sin(angle)
        if at_cosine < width:
            out[..., at_cosine] = np.cos(angle)
    return out


@twin("position", "glm_2d", source="Du et al. 2021, section 2.3")
def glm_2d(given: Given) -> dict[str, np.ndarray]:
    def embedded(text: Text) -> np.ndarray:
        place, block = pairs(text)
        return given.weights["table.weight"][place] + given.weights["blocks.weight"][block]

    size = 2 * (given.sizes.max_positions + 1) * given.sizes.embed_dim
    out = {**scores(given, products, size=size), **vectors(given, embedded)}
    for text in texts(given):
        used = [{*ids[:, text.before :].flat} for ids in pairs(text)]
        out[f"{text.name}.trained"] = np.array(sum(map(len, used)))
    return out


def pairs(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """(B, S) each: the place in the text, and in the block. Behind a prefix stands one block, at the prefix's last token."""
    if text.positions is not None:
        return text.positions[:, 0], text.positions[:, 1]
    place, block = counted(text, skip_padding=False, anew=True), np.zeros(text.ids.shape, int)
    if text.prefix_len is not None:
        for row, n in enumerate(text.prefix_len):
            for t in range(n, text.length):
                place[row, t], block[row, t] = max(n - 1, 0), t - (n - 1)
    return place, block
