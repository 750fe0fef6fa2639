"""Documents packed into one sequence give what each gives alone."""

import pytest
import torch
from families import DECODING, ENCODER_DECODERS, FAMILIES, PREFIXED, QUICK, build, ids, tiny

CASES = [
    pytest.param(f, DECODING[f] if f in PREFIXED else (), marks=() if f in QUICK else pytest.mark.slow)
    for f in FAMILIES
    if f not in ENCODER_DECODERS
]
CASES += [("llama3", (f"position={p}",)) for p in ("none", "learned", "sinusoidal", "alibi", "t5_bias")]
CASES += [("llama3", ("position=dual_chunk", "position.chunk=3", "position.local=2", "kernel=eager"))]
CASES += [("llama3", ("position.log_n=true", "position.original_max=3"))]
CASES += [  # the documents are not longer than that, but the two of them are
    pytest.param(
        "llama3", ("position.scaling=dynamic", "position.factor=4", "position.original_max=8"), marks=pytest.mark.slow
    )
]
CASES += [("gpt2", ("kernel=eager",)), ("qwen_moe", ("kernel=eager",))]


@pytest.mark.parametrize(
    ("family", "overrides"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "own"
)
def test_packed_is_separate(family, overrides):
    model = build(*tiny(family, *overrides))
    lengths = (7, 1, 5)
    texts = [ids(2, n, seed=n) for n in lengths]
    documents = torch.tensor([n for n in lengths for _ in range(n)]).expand(2, -1)
    with torch.no_grad():
        packed = model({"ids": torch.cat(texts, 1), "documents": documents}).hidden
        apart = torch.cat([model({"ids": text}).hidden for text in texts], 1)
        mixed = model({"ids": torch.cat(texts, 1)}).hidden
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=2e-5)
    assert (mixed[:, 7:] - apart[:, 7:]).abs().max() > 0.01


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_positions_given_count_as_they_are(position):
    model = build(*tiny("llama3", f"position={position}"))
    batch = {"ids": ids(1, 6), "documents": torch.tensor([[0, 0, 1, 1, 1, 2]])}
    with torch.no_grad():
        own = model({**batch, "positions": torch.tensor([[0, 1, 0, 1, 2, 0]])}).hidden
        assert torch.equal(own, model(batch).hidden)
        assert not torch.allclose(own, model({**batch, "positions": torch.arange(6)[None]}).hidden)
