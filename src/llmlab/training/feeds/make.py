"""The feed of a run, as its objective reads samples or acts."""

from __future__ import annotations

from typing import Any

from llmlab.data.samples import samples
from llmlab.training.cut import Cut
from llmlab.training.feeds import Feed, acting
from llmlab.training.feeds.rollout import Rollouts
from llmlab.training.recipe import Batches, Recipe, reads


def feed(cfg: Any, recipe: Recipe, cut: Cut, steps: int) -> Feed:
    """The micro-batches of so many optimizer steps. UserError where they can't be had: a corpus that is too small, prompts
    that can't be answered or judged."""
    if reads(cfg) != "prompts":
        return Batches.from_config(cfg, recipe, cut, steps)
    corpus, objective = recipe.corpus, recipe.objective
    prompts: Any = recipe.samples
    held_out: Any = samples(corpus, corpus.validation, objective, cfg.data.seq_len)
    for part in (prompts, held_out):
        acting.check(part, recipe.reward, recipe.spec)
    batches = cfg.train.validation_batches
    return Rollouts(
        prompts,
        held_out,
        objective,
        acting.Actor(objective.rollout, recipe.reward, corpus.tokenizer, corpus.vocabulary, cut.micro),
        seed=cfg.seed,
        cut=cut,
        steps=steps,
        seq_len=cfg.data.seq_len,
        limit=None if batches is None else batches * cut.batch_size,
    )
