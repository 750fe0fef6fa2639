"""A text is the same alone, in a batch with longer ones, padded on either side, and packed behind others into one row."""

from dataclasses import replace

import pytest
import torch
from families import ids, spec, tiny, woken

from llmlab.config.spec import PartSpec
from llmlab.registry import names

LENGTHS = (15, 5, 9)
STRETCHED = {"factor": 4.0, "original_max": 8}  # one text is longer, the others are not or just so
SCALINGS = {
    "none": {},
    "linear": {"factor": 4.0},
    "llama3": STRETCHED,
    "yarn": STRETCHED,
    "dynamic": STRETCHED,
    "dynamic_steps": STRETCHED,
    "longrope": {**STRETCHED, "short_factor": [1, 1.1, 1.2, 1.3], "long_factor": [2, 2.5, 3, 3.5]},
}
CASES = {f"rope {name}": {"scaling": name, **more} for name, more in SCALINGS.items()}
CASES |= {
    f"rope {name}, partly": {"scaling": name, "fraction": 0.5, **STRETCHED} for name in ("dynamic", "dynamic_steps")
}
CASES |= {
    f"rope {name}, log_n": {"scaling": name, **SCALINGS[name], "log_n": True, "original_max": 6}
    for name in ("none", "yarn", "dynamic_steps")
}
CASES |= {
    f"dual_chunk {name}": {"scaling": name, **SCALINGS[name], "chunk": 4, "local": 3}
    for name in ("none", "linear", "llama3", "yarn")
}
CASES |= {name: {} for name in ("none", "learned", "sinusoidal", "alibi", "t5_bias", "rope_2d", "glm_2d")}
COUNT_PADDING = ("learned", "sinusoidal", "rope_2d", "glm_2d")  # as the models that have them; the caller counts


@pytest.fixture(scope="module")
def llama():
    return spec(*tiny("llama3", "kernel=eager"))


@pytest.fixture(scope="module", params=CASES)
def case(request, llama):
    position = PartSpec.with_defaults("position", request.param.split()[0], **CASES[request.param])
    stack = llama.stacks[0]
    layers = tuple(replace(layer, parts={**layer.parts, "position": position}) for layer in stack.layers)
    model = woken(replace(llama, stacks=(replace(stack, layers=layers),)))
    texts = [ids(1, n, seed=n) for n in LENGTHS]
    with torch.no_grad():
        return request.param, model, texts, [model({"ids": text}).hidden for text in texts]


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def padded(texts, left):
    """ids and valid (B, T)."""
    width, rows = max(LENGTHS), []
    for text in texts:
        rest = torch.zeros(1, width - text.shape[1], dtype=torch.long)
        rows.append(torch.cat([rest, text] if left else [text, rest], 1))
    where, lengths = torch.arange(width), torch.tensor(LENGTHS)[:, None]
    return torch.cat(rows), where >= width - lengths if left else where < lengths


@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_padded(case, left):
    name, model, texts, alone = case
    rows, valid = padded(texts, left)
    batch = {"ids": rows, "valid": valid}
    given = {"positions": (valid.long().cumsum(1) - 1).clamp(min=0)}
    for more in [given] if left and name in COUNT_PADDING else [{}, given]:
        got = model({**batch, **more}).hidden
        for row, keep, want in zip(got, valid, alone, strict=True):
            same(row[keep], want[0])


@torch.no_grad()
def test_packed(case):
    _, model, texts, alone = case
    row = torch.cat([texts[1], texts[2]], 1)
    batch = {
        "ids": torch.cat([torch.cat([row, row[:, :1]], 1), texts[0]]),
        "documents": torch.tensor([[3] * 5 + [7] * 9 + [8], [0] * 15]),
    }
    got = model(batch).hidden
    same(got[0, :5], alone[1][0])
    same(got[0, 5:14], alone[2][0])
    same(got[1], alone[0][0])
    same(model({name: x[:1] for name, x in batch.items()}).hidden, got[:1])


@torch.no_grad()
def test_read_piece_by_piece(case):
    """With a cache, from a first piece of each row that is padded on the left: as with all positions at once."""
    _, model, texts, _ = case
    rows, valid = padded(texts, left=True)
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache(rows.shape[1])
    pieces = [slice(0, 11), slice(11, 12), slice(12, 15)]
    for piece in pieces:
        last = model(
            {"ids": rows[:, piece], "valid": valid[:, piece], "positions": positions[:, piece]}, cache=cache
        ).hidden
    alone = []
    for text, first in zip(texts, (11, 1, 5), strict=True):
        own = model.new_cache(text.shape[1])
        for a, b in ((0, first), (first, first + 1), (first + 1, text.shape[1])):
            end = model({"ids": text[:, a:b]}, cache=own).hidden
        alone.append(end)
    same(last, torch.cat(alone))


def test_every_position_is_here():
    rest = {"disentangled", "xlnet_relative", "learned_t5_bias"}  # of encoders with other inputs: see their own tests
    assert {name.split()[0] for name in CASES} | rest == set(names("position"))
