"""Checks of a part within a small model, for its test. One that fails raises AssertionError with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmlab.config import learned
from llmlab.sizes import AttentionTraits, FFNTraits, MoETraits, Sizes

if TYPE_CHECKING:
    from llmlab.model.model import Model

VOCABULARY = 192
TINY = ("model.dim=32", "model.n_layers=2", "model.n_heads=4", f"model.vocab_size={VOCABULARY}", "data.seq_len=16")

# What a part is built from where there is no model around it.
SIZES = Sizes(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=None,
    head_dim=8,
    ffn_dim=64,
    vocab_size=VOCABULARY,
    max_positions=16,
    norm_eps=1e-5,
    attention=AttentionTraits(),
    ffn=FFNTraits(),
    moe=MoETraits(n_experts=4, per_token=2, ffn_dim=32),
    rotary_dim=8,
    embed_dim=32,
)


def tiny(*overrides: str) -> Model:
    """A model of two layers, 32 wide, of the parts that are typed ("attention=mine"), in eval mode."""
    from llmlab.api import build

    return build(_typed(overrides)).eval()


def _typed(overrides: tuple[str, ...]) -> list[str]:
    typed = {o.partition("=")[0] for o in overrides}
    return [*(o for o in TINY if o.partition("=")[0] not in typed), *overrides]


def ids(rows: int = 2, length: int = 12) -> Tensor:
    """(rows, length) token ids, always the same."""
    # A generator of its own: torch's global one stays as a test has seeded it.
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def learns(*overrides: str, steps: int = 16) -> None:
    """Such a model's loss on one batch falls, under its own objective and optimizer, and all of it has gradients.

    "All" is every parameter that one can be trained by this objective: a head that it does not read is not built.
    """
    from llmlab.config import layout
    from llmlab.config.compose import compose
    from llmlab.data import stand_in
    from llmlab.model import build, roles
    from llmlab.training.recipe import part_factory

    composed = compose(_typed(overrides))
    cfg = composed.cfg
    names = learned.entry(cfg).special
    vocabulary = stand_in.vocabulary(VOCABULARY, names)
    objective = part_factory(cfg, learned.slot(cfg))(vocabulary, cfg.data.seq_len)
    model = build.build_model(layout.resolve(composed, vocabulary=VOCABULARY), cfg.seed)
    optimizer = part_factory(cfg, "optimizer")().build(roles.parameters(model))

    chance = np.random.default_rng(0)
    # 32 of the ids: the last ones are the special tokens.
    words = chance.integers(32, size=(4, cfg.data.seq_len + 1))
    documents = np.zeros(cfg.data.seq_len + 1, dtype=np.int64)
    batch = stand_in.batch(objective, words, chance, documents)
    losses = []
    for _ in range(steps):
        loss = objective.loss(model, batch)
        mean = loss._replace(aux={}).mean()  # without the losses of experts, which may rise
        losses.append(float(mean.detach()))
        optimizer.zero_grad()
        mean.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient: nothing that is computed uses it"
            assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        optimizer.step()
    # On one batch that is seen again and again: any part that passes gradients on learns it.
    assert losses[-1] < losses[0], f"the loss on one batch went from {losses[0]:.4f} to {losses[-1]:.4f}"


@torch.no_grad()
def looks_back_only(model: Model) -> None:
    """Asserts that what a decoder says of a token does not change with those that come after it."""
    text = ids()
    changed = text.clone()
    # + 1, so that each of the tokens is another.
    changed[:, 8:] = (changed[:, 8:] + 1) % VOCABULARY
    one, other = (model({"ids": t}).hidden for t in (text, changed))
    torch.testing.assert_close(one[:, :8], other[:, :8], msg=lambda m: f"a token sees what comes after it: {m}")


@torch.no_grad()
def cached_is_uncached(model: Model, tolerance: float = 1e-4) -> None:
    """A decoder that reads a text in pieces, over a cache, says what it says of the whole."""
    text = ids()
    whole, cache = model({"ids": text}).hidden, model.new_cache(text.shape[1])
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        piece = model({"ids": text[:, start:end]}, cache=cache).hidden
        torch.testing.assert_close(
            piece,
            whole[:, start:end],
            rtol=tolerance,
            atol=tolerance,
            msg=f"with a cache what the model says of tokens {start} to {end - 1} is another",
        )
