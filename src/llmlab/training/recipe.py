"""From a config to the things that a run is made of: corpus, model, objective, batches, and how the batch is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from llmlab import measures, registry
from llmlab.config import layout, learned, schema
from llmlab.config import spec as specs
from llmlab.config.companions import judging
from llmlab.config.store import part_factory as part_factory
from llmlab.data import Corpus, Stream, prepare
from llmlab.data.records import Records
from llmlab.data.samples import Samples, samples
from llmlab.errors import UserError
from llmlab.model import build, trainable
from llmlab.training import cost
from llmlab.training.companions import Companion, fitted
from llmlab.training.companions import resolve as resolve_companions
from llmlab.training.cut import Cut as Cut
from llmlab.training.feeds import Feed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.model.model import Model
    from llmlab.slots import Objective, OptimizerPart, Reward, Schedule


T = TypeVar("T", bound="DataclassInstance")


def as_dataclass(node: DictConfig, cls: type[T]) -> T:
    """A config node as an instance of its dataclass."""
    return cls(**{f.name: node[f.name] for f in dataclasses.fields(cls)})


def special(cfg: DictConfig) -> tuple[str, ...]:
    """Names of the special tokens that the objective needs."""
    return learned.entry(cfg).special


def learning(cfg: DictConfig) -> trainable.Filter:
    """What learns: as `train.learns` says, else what the objective learns alone, else everything."""
    alone: tuple[str, ...] = learned.entry(cfg).attribute("learns")
    if cfg.adapter is not None and not alone:
        # A head that gives other scores than the vocabulary's is new: frozen it would stay as it was drawn.
        parts = (
            (role, cfg.heads[role]["_part_"] if role in cfg.heads else name)
            for role, name in learned.heads(cfg).items()
        )
        scores = {role: registry.index()["head", name].attribute("scores") for role, name in parts}
        alone = ("adapter", *(f"heads.{role}" for role, of in scores.items() if of != "vocabulary"))
    return trainable.Filter.from_words(cfg.train.learns if cfg.train.learns is not None else alone or None)


def filters(cfg: DictConfig) -> dict[str, specs.PartSpec]:
    """The filters of documents, by the name that each has below `filter.`, in their order."""
    from omegaconf import OmegaConf

    found = {}
    for label, node in cfg.filter.items():
        options: Any = OmegaConf.to_container(node, resolve=True)
        found[str(label)] = specs.PartSpec("filter", options.pop("_part_"), options)
    return found


@dataclass(frozen=True)
class Batches(Feed):
    """The micro-batches of a run: training in the order of the seed, validation in the order of the text."""

    corpus: Corpus
    objective: Objective
    seed: int
    seq_len: int
    cut: Cut
    steps: int
    num_workers: int = 0
    validation_batches: int | None = None
    separate_documents: bool = False
    token_types: int = 0

    @classmethod
    def from_config(cls, cfg: DictConfig, recipe: Recipe, cut: Cut, steps: int) -> Batches:
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
            token_types=recipe.spec.segments,
        )
        # Counts the windows, and refuses too few of them; no worker starts before the first batch is asked for.
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

    @cached_property
    def tokens_per_sample(self) -> float:
        return self.windows(self.corpus.train).tokens_per_sample

    def windows(self, part: Stream | Records) -> Samples:
        return samples(
            self.corpus,
            part,
            self.objective,
            self.seq_len,
            documents=self.separate_documents,
            token_types=self.token_types,
        )


@dataclass(frozen=True)
class Recipe:
    """All that a run trains, before anything is computed.

    models: the trained one (as `cost.TRAINED`) and its companions by role, on the meta device: sizes and names without memory,
    for all that is counted or checked before the run builds its own.
    """

    corpus: Corpus
    spec: specs.ModelSpec
    objective: Objective
    optimizer: OptimizerPart
    schedule: Schedule
    models: Mapping[str, Model]
    cost: cost.Cost
    learns: trainable.Filter
    summary: str  # of what learns, a line
    samples: Samples
    reward: Reward | None = None  # of an objective that reads prompts
    companions: Mapping[str, Companion] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The trained model, on the meta device."""
        return self.models[cost.TRAINED]

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of a sample by which a run counts what it has seen: data.seq_len, or the mean over records."""
        return max(1, round(self.samples.tokens_per_sample))

    @property
    def held_out(self) -> Samples | None:
        """Held-out records as samples, where the objective compares what the model writes for them, or finds in them."""
        compares = hasattr(self.objective, "writing") or hasattr(self.objective, "best_spans")
        if not self.corpus.is_records or not compares:
            return None
        return self.validation_samples(self.samples.seq_len)

    def validation_samples(self, seq_len: int) -> Samples:
        """The held-out part as samples of at most so many tokens."""
        part, types = self.corpus.validation, self.spec.segments
        return samples(self.corpus, part, self.objective, seq_len, token_types=types)

    @classmethod
    def from_config(
        cls,
        composed: Composed,
        spec: specs.ModelSpec | None = None,
        corpus: Corpus | None = None,
        companions: Mapping[str, Companion] | None = None,
    ) -> Recipe:
        """spec, corpus, companions: those of a run that is resumed; None: as the config says. UserError for what can't be
        built."""
        cfg = composed.cfg
        learns = learning(cfg)
        if corpus is None:
            settings, tokenizer = as_dataclass(cfg.data, schema.Data), as_dataclass(cfg.tokenizer, schema.Tokenizer)
            corpus = prepare(settings, tokenizer, special(cfg), reads=learned.reads(cfg), filters=filters(cfg))
        try:
            classes = None if corpus.labels is None else len(corpus.labels)
            spec = spec or fitted(layout.with_vocabulary(composed, corpus.vocabulary.size, classes), composed)
            objective = part_factory(cfg, learned.slot(cfg))(corpus.vocabulary, cfg.data.seq_len)
            optimizer, schedule = part_factory(cfg, "optimizer")(), part_factory(cfg, "schedule")()
            reward = None if cfg.reward is None else part_factory(cfg, "reward")()
            model = build.assemble(spec)
            read = samples(
                corpus,
                corpus.train,
                objective,
                cfg.data.seq_len,
                documents=cfg.data.separate_documents,
                token_types=spec.segments,
            )
            if corpus.is_records:
                # What cannot be read is said before there is a run folder.
                samples(corpus, corpus.validation, objective, cfg.data.seq_len, token_types=spec.segments)
            learns.apply(model)
        except ValueError as e:
            # A part that refuses what it was given; a UserError is a ValueError too, and keeps its words.
            raise UserError(str(e)) from e
        if companions is None:
            companions = resolve_companions(composed, model, corpus.vocabulary.size, corpus.tokenizer)
        models = {cost.TRAINED: model, **{role: c.assemble(model) for role, c in companions.items()}}
        costs, summary = cost.estimate(models, objective, read, judging(cfg)), trainable.summary(model)
        return cls(
            corpus, spec, objective, optimizer, schedule, models, costs, learns, summary, read, reward, companions
        )


def counts_bytes(corpus: Corpus, objective: Objective) -> bool:
    """True if the objective measures the text's negative log-likelihood, and its bytes are known."""
    return measures.covers_text(objective) and corpus.validation.sizes is not None
