"""Text that a model goes on with, for the panel at the end of a run and for loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmlab import attributes

if TYPE_CHECKING:
    from llmlab.model.model import Model
    from llmlab.training.recipe import Recipe

PROMPT_BYTES, SAMPLE_TOKENS = 24, 120
UNMASKING_STEPS = 60  # each reads all of the text: 120 of them would take twice as long for little


def sample(recipe: Recipe, model: Model, tokens: int = SAMPLE_TOKENS) -> tuple[str, str] | None:
    """(prompt from the held-out text, what the model goes on with); None for a model that can't write."""
    from llmlab.data.samples import samples
    from llmlab.decoding.generate import generate, goes_on, limit
    from llmlab.decoding.sampling import Sampling
    from llmlab.decoding.unmasking import Unmasking, unmask_all
    from llmlab.training.written import asked

    corpus, rollout = recipe.corpus, getattr(recipe.objective, "rollout", None)
    unmasks = attributes.get(recipe.objective, "objective", "generates") == "unmasking"
    if recipe.spec.topology == "encoder_decoder" or not (unmasks or goes_on(recipe.spec)):
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
    size = corpus.vocabulary.size
    if unmasks:
        plan = Unmasking(corpus.vocabulary.special["mask"], steps=UNMASKING_STEPS)
        (written,) = unmask_all(
            model,
            [prompt],
            max_new=new,
            how=plan,
            sampling=how,
            seeds=[1],
            stop=[] if stop is None else [stop],
            vocabulary=size,
        )
    else:
        written = list(generate(model, prompt, max_new=new, sampling=how, seed=1, stop=stop, vocabulary=size))
    # Decoded together and cut: a letter may be spread over the last token of the prompt and the first that was written.
    return corpus.tokenizer.decode(prompt), corpus.tokenizer.decode([*prompt, *written])[
        len(corpus.tokenizer.decode(prompt)) :
    ]
