"""Requests of an evaluation by rewards, and a run that is asked: its model and the prompts in its own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmlab.config import learned, schema
from llmlab.config.companions import judging, requested
from llmlab.config.compose import compose
from llmlab.data import prepare
from llmlab.data.records import RecordSamples
from llmlab.data.samples import samples
from llmlab.decoding.generate import limit
from llmlab.errors import UserError
from llmlab.runs import folder, text
from llmlab.slots import Objective, Rollout
from llmlab.training import companion_tokens
from llmlab.training.feeds import acting
from llmlab.training.recipe import as_dataclass, filters, part_factory
from llmlab.training.recipe import special as needed

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.data import Corpus
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.slots import Reward

PROMPTS = "prompts"
LONGEST = 64  # tokens of an answer, where neither the run nor the command says


@dataclass(frozen=True)
class Request:
    """data: a file of prompts, or a source; None: the run's own held-out ones. fields: keys of a record's fields. prompts: how
    many, the first; None: all. samples: answers to each. best_of: of how many the best is taken; None: not asked."""

    data: str | None = None
    fields: Mapping[str, str] | None = None
    prompts: int | None = None
    samples: int = 8
    best_of: int | None = None
    max_new: int | None = None
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class Judge:
    """A reward with the models that it works with."""

    typed: str
    reward: Reward
    models: Mapping[str, Model]


class Asked:
    """A run that is to answer."""

    def __init__(self, run: str):
        self.run = run
        self.home = folder.home(run)
        self.cfg, _ = folder.load(self.home)
        self.model, self.tokenizer = folder.load_model(run)
        if "tokens" not in self.model.heads:
            raise UserError(
                f"run={run}: {learned.typed(self.cfg)} has no head that writes tokens, so that it gives no answers; name a "
                "language model"
            )

    @property
    def reads_prompts(self) -> bool:
        return learned.reads(self.cfg) == PROMPTS

    @property
    def max_new(self) -> int:
        """The longest answer that it was trained to give, or what half of its window holds."""
        own = self.cfg.alignment.get("max_new") if self.reads_prompts else None
        return int(own) if own is not None else min(LONGEST, max(1, self.cfg.data.seq_len // 2))

    def prompts(self, request: Request, own: Asked | None, max_new: int) -> tuple[acting.Prompts, Corpus, list[str]]:
        """(prompts, their corpus, lines on those that the model has no room for). own: the run whose held-out prompts are
        asked where the request names none."""
        corpus = self._corpus(request, own)
        room = limit(self.model) or max(self.cfg.data.seq_len, self.model.sizes.max_positions)
        if room <= max_new + 1:
            raise UserError(f"max_new={max_new}: the model reads {room} tokens, which leaves no room for a prompt")
        reader = cast(Objective, _Reader(Rollout(1, max_new)))
        part = corpus.train if request.data is not None else corpus.validation
        found = samples(corpus, part, reader, room)
        assert isinstance(found, RecordSamples)
        # One whose beginning is cut away may ask for something else.
        return cast(acting.Prompts, found), corpus, found.told(f"{found.seq_len} tokens")

    def _corpus(self, request: Request, own: Asked | None) -> Corpus:
        file = schema.Tokenizer(kind="file", path=str(self.home))
        if request.data is not None:
            settings = as_dataclass(self.cfg.data, schema.Data)
            known = request.data == "arithmetic"
            settings = replace(
                settings,
                source=request.data if known else "files",
                path=None if known else request.data,
                seq_len=1,
                max_documents=None,
                **(
                    {"fields": schema.Fields(**dict(request.fields))} if request.fields else {"fields": schema.Fields()}
                ),
            )
            return prepare(settings, file, needed(self.cfg), whole=True, reads=PROMPTS)
        if own is None:
            raise UserError(
                f"run={self.run}: it was trained on {_read(self.cfg)} and has no prompts of its own; name them, data=FILE"
            )
        special, made_with = needed(own.cfg), as_dataclass(own.cfg.tokenizer, schema.Tokenizer)
        settings, chosen = as_dataclass(own.cfg.data, schema.Data), filters(own.cfg)
        trained = text.Trained(own.home, settings, made_with, special, text.recorded_fields(own.home), PROMPTS, chosen)
        corpus = text.corpus(trained, "bring it back as it was, or name other prompts with data=FILE")
        if own is self:
            return corpus
        path = (text.recorded_fields(own.home).get("data") or {}).get("path") or settings.path
        rules = corpus.manifest["rules"]
        return prepare(replace(settings, path=path), file, needed(self.cfg), reads=PROMPTS, filters=chosen, rules=rules)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        found: dict[str, int] = self.tokenizer.inner.get_vocab(with_added_tokens=True)
        return found


@dataclass(frozen=True)
class _Reader:
    """An objective as far as prompts are read for it."""

    rollout: Rollout


def _read(cfg: DictConfig) -> str:
    return {"text": "text", "chat": "conversations", "preferences": "ranked answers"}.get(
        learned.reads(cfg), f"records ({learned.reads(cfg)})"
    )


def judge(words: Sequence[str], tokenizer: Tokenizer) -> Judge:
    """The reward that is typed, as a run has it: reward=NAME, its options, and models.ROLE=RUN of one that works with models.
    UserError where it can't be had, or a model of it has other tokens than those it is to read."""
    cfg = compose(["alignment=grpo", *words], strict=False).cfg
    if cfg.reward is None:
        raise UserError("reward is missing; name one: llmlab parts reward")
    sources, models = requested(cfg), {}
    for role, about in judging(cfg).items():
        source = sources[role]
        if not isinstance(source, str):
            raise UserError(f"reward={cfg.reward['_part_']} needs models.{role}=RUN")
        model, _ = folder.load_model(source)
        if missing := [name for name in about.heads if name not in model.heads]:
            raise UserError(
                f"models.{role}={source}: it has no {missing[0]} head, by which reward={cfg.reward['_part_']} judges; name a "
                "run of alignment=reward"
            )
        try:
            companion_tokens.check(model.spec, folder.checkpoint_of(source), tokenizer)
        except UserError as e:
            raise UserError(f"models.{role}={source}: {str(e).split(';')[0]}") from None
        models[role] = model
    try:
        reward = part_factory(cfg, "reward")()
    except ValueError as e:
        raise UserError(str(e)) from e
    return Judge(" ".join(words), reward, models)


def same_prompts(one: acting.Prompts, other: acting.Prompts, reference: Path) -> None:
    """UserError unless both runs are asked the same, whatever tokens they read it in."""
    if len(one) != len(other) or any(one[i]["rest"] != other[i]["rest"] for i in range(len(one))):
        raise UserError(
            f"reference={reference}: it leaves out other prompts than the run, so that they can't be compared"
        )
