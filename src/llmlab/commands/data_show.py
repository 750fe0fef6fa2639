"""`llmlab data show`: a batch of a run, as its objective prepares it, with what of it is learnt."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmlab.commands import train
from llmlab.commands.arguments import parse
from llmlab.errors import UserError, near

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.data import shown
    from llmlab.training.recipe import Recipe

USAGE = """\
llmlab data show GROUP=CHOICE KEY=VALUE ...  [rows=4] [step=1] [part=train|validation]

Prints samples of the run that `llmlab train` would start with the same choices, just as its loss is given them: text, what of
it is learnt, special tokens by name, the documents of a window and how much is padding. Of masked tokens and of those that have
a label of another kind the label follows an arrow. A terminal shows this in colours; elsewhere, and with NO_COLOR=1, learnt
text stands in brackets. No weights are built.
  rows=4             how many samples
  step=1             from which optimizer step on, of part=train
  part=validation    the held-out samples

  llmlab data show alignment=sft data.path=TALKS.jsonl
  llmlab data show model=bert part=validation rows=1"""

PARTS = ("train", "validation")


@dataclass
class Arguments:
    rows: int = 4
    step: int = 1
    part: str = "train"


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    own = [w for w in argv if w.partition("=")[0] in Arguments.__annotations__]
    a = parse(own, Arguments, "data show")
    flags, overrides = train.split([w for w in argv if w not in own])
    if other := [f for f in flags[::2] if f not in train.CONFIG_DIR]:
        raise UserError(f"{other[0]} is for llmlab train; llmlab data show shows one run")
    for name in ("rows", "step"):
        if getattr(a, name) < 1:
            raise UserError(f"{name}={getattr(a, name)} must be at least 1")
    if a.part not in PARTS:
        raise UserError(f"part={a.part}: there is no such part; {near(a.part, PARTS)}")
    for line in lines(_composed(overrides, flags[1::2]), a, colour=coloured()):
        print(line)
    return 0


def coloured() -> bool:
    """True on a terminal, unless NO_COLOR says otherwise (no-color.org: whatever its value, if it has one)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _composed(overrides: Sequence[str], folders: Sequence[str]) -> Composed:
    from llmlab.config import data_keys, init_from
    from llmlab.runs.compose import compose

    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    composed = compose([init_from.normalise(o) for o in train.resumed(overrides)], folders)
    if composed.cfg.resume:
        raise UserError("resume: llmlab data show shows a run from its beginning; leave it out")
    data_keys.require_source(composed)
    return composed


def lines(composed: Composed, a: Arguments, *, colour: bool) -> Iterator[str]:
    """The lines that are shown."""
    from llmlab.config import learned
    from llmlab.data import shown
    from llmlab.training import batch_size
    from llmlab.training.devices import find_devices
    from llmlab.training.recipe import Recipe

    cfg = composed.cfg
    recipe = Recipe.from_config(composed)
    world = find_devices(cfg).data_parallel
    composed, notes = batch_size.fitted(composed, recipe.samples, world)
    cfg = composed.cfg
    yield from (f"note: {note}" for note in notes)
    where = "held-out samples" if a.part == "validation" else f"samples from step {a.step:,} on"
    yield f"{learned.typed(cfg)}, {where}: {shown.legend(colour=colour)}"
    yield from (_prompts if learned.reads(cfg) == "prompts" else _samples)(cfg, recipe, a, colour)


def _samples(cfg: DictConfig, recipe: Recipe, a: Arguments, colour: bool) -> Iterator[str]:
    from llmlab.config import learned
    from llmlab.data import shown
    from llmlab.training.recipe import Batches, Cut

    # Of a handful of records, which training would refuse to make a batch of, all can still be looked at.
    few = len(recipe.samples) if len(recipe.samples) < cfg.train.batch_size else None
    cut = Cut.make(few or cfg.train.batch_size, None if few else cfg.train.micro_batch_size, 1)
    # In this process, as workers that are started for a batch or two take longer than it does.
    feed = replace(Batches.from_config(cfg, recipe, cut, a.step + a.rows), num_workers=0)
    batches = feed.validation(0, 1) if a.part == "validation" else feed.train(0, 1, a.step - 1)
    restores = learned.entry(cfg).attribute("restores") is not None
    several = "answer" if learned.reads(cfg) in ("preferences", "rated") else "row"
    tokenizer, told = recipe.corpus.tokenizer, 0
    for batch in batches:
        for i, rows in enumerate(shown.rows(batch, tokenizer, restores=restores, several=several)):
            if told == a.rows:
                return
            told += 1
            also = [f"{name} {value:g}" for name, value in shown.numbers(batch, i).items()]
            yield ""
            yield shown.note(", ".join([f"== sample {told}", *also]), colour=colour)
            for row in rows:
                yield shown.note(_about(row), colour=colour)
                for n, document in enumerate(row.documents):
                    if len(row.documents) > 1:
                        yield shown.note(f"-- document {n + 1}", colour=colour)
                    yield shown.written(document, colour=colour)
                if row.padding:
                    yield shown.note(f"-- {row.padding} of padding", colour=colour)


def _about(row: shown.Row) -> str:
    learnt = f"{row.learnt:,} learnt" if row.learnt else "none learnt by itself"
    return f"-- {f'{row.name}: ' if row.name else ''}{row.tokens:,} tokens, {learnt}"


def _prompts(cfg: DictConfig, recipe: Recipe, a: Arguments, colour: bool) -> Iterator[str]:
    """Prompts, which the model answers as it trains, in their order, and what a reward is given of their records."""
    import numpy as np

    from llmlab.data import samples, shown
    from llmlab.data.order import indices
    from llmlab.slots import Acts

    corpus, how = recipe.corpus, cast(Acts, recipe.objective).rollout
    prompts, numbers = recipe.samples, np.arange(a.rows)
    if a.part == "validation":
        prompts = samples.samples(corpus, corpus.validation, recipe.objective, cfg.data.seq_len)
    else:
        groups = cfg.train.batch_size * how.batches // how.samples
        numbers = indices(cfg.seed, (a.step - 1) // how.steps * groups + numbers, len(prompts))
    yield shown.note(
        f"the model answers each {how.samples} times as it trains, with up to {how.max_new} tokens", colour=colour
    )
    for n, at in enumerate(numbers.tolist()[: len(prompts)]):
        prompt = prompts[at]
        yield ""
        yield shown.note(
            f"== prompt {n + 1}: {len(prompt['prompt']):,} tokens, {json.dumps(prompt['rest'], ensure_ascii=False)}",
            colour=colour,
        )
        yield shown.written(shown.text_of(prompt["prompt"].tolist(), corpus.tokenizer), colour=colour)
