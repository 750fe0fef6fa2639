"""Text that a model goes on with, for the panel at the end of a run and for loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmlab.model.model import Model
    from llmlab.training.recipe import Recipe

PROMPT_BYTES, SAMPLE_TOKENS = 24, 120


def sample(recipe: Recipe, model: Model, tokens: int = SAMPLE_TOKENS) -> tuple[str, str] | None:
    """(prompt from the held-out text, what the model goes on with); None for a model that can't write."""
    from llmlab.data.samples import samples
    from llmlab.decoding.generate import generate, limit
    from llmlab.decoding.sampling import Sampling
    from llmlab.training.written import asked

    corpus, rollout = recipe.corpus, getattr(recipe.objective, "rollout", None)
    if recipe.spec.topology != "decoder" or "tokens" not in recipe.spec.heads:
        return None
    first = corpus.validation.tokens[:64].tolist()
    sizes = corpus.validation.sizes
    enough = (
        [len(first)] if sizes is None else np.flatnonzero(np.cumsum(sizes[:64], dtype=np.int64) >= PROMPT_BYTES) + 1
    )
    prompt = first[: next(iter(enough), len(first))]
    if rollout is not None:
        held_out = samples(corpus, corpus.validation, recipe.objective, recipe.samples.seq_len + rollout.max_new)
        prompt, tokens = held_out[0]["prompt"].tolist(), rollout.max_new
    for each in asked(recipe.objective, recipe.held_out, 1) if recipe.held_out is not None else ():
        prompt = each.prompt
    room = limit(model)
    new = tokens if room is None else min(tokens, room - len(prompt))
    if new < 1:
        return None
    # One seed for all samples: those of two runs, or of two steps, differ by their models alone.
    how = Sampling(temperature=0.8, top_p=0.95)
    stop = corpus.vocabulary.special.get("eos")
    written = list(
        generate(model, prompt, max_new=new, sampling=how, seed=1, stop=stop, vocabulary=corpus.vocabulary.size)
    )
    # Decoded together and cut: a letter may be spread over the last token of the prompt and the first that was written.
    return corpus.tokenizer.decode(prompt), corpus.tokenizer.decode([*prompt, *written])[
        len(corpus.tokenizer.decode(prompt)) :
    ]
