"""The feed of a run, as its objective reads samples or acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llmlab.config import learned
from llmlab.data.samples import samples
from llmlab.slots import Acts
from llmlab.training.cut import Cut
from llmlab.training.feeds import Feed, acting
from llmlab.training.feeds.acting import Prompts
from llmlab.training.feeds.rollout import Rollouts
from llmlab.training.recipe import Batches, Recipe

if TYPE_CHECKING:
    from omegaconf import DictConfig


def feed(cfg: DictConfig, recipe: Recipe, cut: Cut, steps: int) -> Feed:
    """The micro-batches of so many optimizer steps. UserError where they can't be had: a corpus that is too small, prompts
    that can't be answered or judged."""
    if learned.reads(cfg) != "prompts":
        return Batches.from_config(cfg, recipe, cut, steps)
    corpus, objective, reward = recipe.corpus, cast(Acts, recipe.objective), recipe.reward
    prompts: Prompts = recipe.samples
    held_out: Prompts = samples(corpus, corpus.validation, recipe.objective, cfg.data.seq_len)
    for part in (prompts, held_out):
        acting.check(part, reward, recipe.model)
    batches = cfg.train.validation_batches
    return Rollouts(
        prompts,
        held_out,
        objective,
        acting.Actor(objective.rollout, reward, corpus.tokenizer, corpus.vocabulary, cut.micro),
        seed=cfg.seed,
        cut=cut,
        steps=steps,
        seq_len=cfg.data.seq_len,
        limit=None if batches is None else batches * cut.batch_size,
    )
