"""From a config to the things that a run is made of: corpus, model, objective, batches, and how the batch is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from llmlab import measures, registry
from llmlab.config import schema
from llmlab.data import Corpus, Windows, prepare
from llmlab.data.samples import samples
from llmlab.errors import UserError
from llmlab.model import build, layout
from llmlab.sizes import divisors
from llmlab.training import cost
from llmlab.training.feeds import Feed, acting
from llmlab.training.feeds.rollout import Rollouts


def chosen(cfg: Any, slot: str) -> Any:
    """A factory of the part that `cfg` names in a slot of the recipe, with its options."""
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_container(cfg[slot], resolve=True)
    return registry.load(slot, options.pop("_part_"), {k: v for k, v in options.items() if not k.startswith("_")})


def plain(node: Any, cls: type) -> Any:
    """A config node as an instance of its dataclass."""
    return cls(**{f.name: node[f.name] for f in dataclasses.fields(cls) if f.name in node})  # an older run lacks some


def special(cfg: Any) -> tuple[str, ...]:
    """Names of the special tokens that the objective needs."""
    return tuple(registry.index()["objective", cfg.objective["_part_"]].attrs.get("special", ()))


def reads(cfg: Any) -> str:
    """The kind of samples that the objective reads."""
    return str(registry.index()["objective", cfg.objective["_part_"]].attrs.get("reads", "text"))


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut: `micro` sequences a forward, on `world` devices, `accumulate` times a step."""

    batch_size: int
    micro: int
    world: int
    accumulate: int

    @classmethod
    def of(cls, batch_size: int, micro: int | None, world: int) -> Cut:
        if batch_size < 1:
            raise UserError(f"train.batch_size={batch_size} must be at least 1")
        if batch_size % world:
            raise UserError(
                f"train.batch_size={batch_size} can't be shared by trainer.devices={world}; make it a multiple"
            )
        micro = batch_size // world if micro is None else micro
        if micro < 1 or batch_size % (micro * world):
            fits = divisors(batch_size // world)
            raise UserError(
                f"train.micro_batch_size={micro} does not cut train.batch_size={batch_size} on {world} "
                f"device{'s' * (world > 1)}; choose one of {', '.join(map(str, fits[-8:]))}"
            )
        return cls(batch_size, micro, world, batch_size // (micro * world))


@dataclass(frozen=True)
class Batches(Feed):
    """The micro-batches of a run: training in the order of the seed, validation in the order of the text."""

    corpus: Corpus
    objective: Any
    seed: int
    seq_len: int
    cut: Cut
    steps: int
    num_workers: int = 0
    validation_batches: int | None = None
    separate_documents: bool = False

    @classmethod
    def of(cls, cfg: Any, recipe: Recipe, cut: Cut, steps: int) -> Batches:
        """UserError if the corpus has fewer windows than one batch."""
        batches = cls(
            recipe.corpus,
            recipe.objective,
            cfg.seed,
            cfg.data.seq_len,
            cut,
            steps,
            num_workers=cfg.data.num_workers,
            validation_batches=cfg.train.validation_batches,
            separate_documents=cfg.data.separate_documents,
        )
        batches.train(0, cut.world, 0)
        return batches

    def train(self, rank: int, world: int, start: int) -> Iterable[Any]:
        """Micro-batches of a rank from the optimizer step `start` on."""
        from llmlab.data import loader

        return loader.train_loader(
            self.windows(self.corpus.train),
            self.objective,
            seed=self.seed,
            batch_size=self.cut.batch_size,
            micro=self.cut.micro,
            rank=rank,
            world=world,
            accumulate=self.cut.accumulate,
            start_step=start,
            steps=self.steps,
            num_workers=self.num_workers,
        )

    def validation(self, rank: int, world: int) -> Iterable[Any]:
        from llmlab.data import loader

        return loader.validation_loader(
            self.windows(self.corpus.validation),
            self.objective,
            micro=self.cut.micro,
            rank=rank,
            world=world,
            limit=None if self.validation_batches is None else self.validation_batches * self.cut.batch_size,
        )

    def windows(self, stream: Any) -> Windows:
        return Windows(stream, self.seq_len, self.separate_documents)


@dataclass(frozen=True)
class Recipe:
    """All that a run trains, before anything is computed."""

    corpus: Corpus
    spec: layout.ModelSpec
    objective: Any
    optimizer: Any
    schedule: Any
    cost: cost.Cost
    reward: Any = None  # of an objective that reads prompts

    @classmethod
    def of(cls, composed: Any, spec: layout.ModelSpec | None = None, corpus: Corpus | None = None) -> Recipe:
        """spec, corpus: those of a run that is resumed; None: as the config says. UserError for what can't be built."""
        cfg = composed.cfg
        settings = plain(cfg.data, schema.Data), plain(cfg.tokenizer, schema.Tokenizer)
        corpus = corpus or prepare(*settings, special(cfg), reads=reads(cfg))
        try:
            spec = spec or layout.resolve(composed, vocabulary=corpus.vocabulary.size)
            objective = chosen(cfg, "objective")(corpus.vocabulary, cfg.data.seq_len)
            optimizer, schedule = chosen(cfg, "optimizer")(), chosen(cfg, "schedule")()
            reward = None if cfg.reward is None else chosen(cfg, "reward")()
            model = build.assemble(spec)
        except ValueError as e:  # a part that refuses what it was given
            raise UserError(str(e)) from e
        if reads(cfg) == "prompts":
            read: Any = acting.prompts(corpus, corpus.train, objective, cfg.data.seq_len)
        else:
            read = samples(corpus, corpus.train, objective, cfg.data.seq_len, documents=cfg.data.separate_documents)
        of_all = replace(cost.of({cost.TRAINED: model}, objective, read), seq_len=cfg.data.seq_len)
        return cls(corpus, spec, objective, optimizer, schedule, of_all, reward)


def feed(cfg: Any, recipe: Recipe, cut: Cut, steps: int) -> Feed:
    """Where the micro-batches of so many optimizer steps come from. UserError where they can't be had."""
    if reads(cfg) == "prompts":
        return Rollouts.of(cfg, recipe, cut, steps)
    return Batches.of(cfg, recipe, cut, steps)


def counts_bytes(corpus: Corpus, objective: Any) -> bool:
    """True if the objective measures the text's negative log-likelihood, and its bytes are known."""
    return measures.covers_text(objective) and corpus.validation.sizes is not None
