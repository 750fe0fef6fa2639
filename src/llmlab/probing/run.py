"""A probe of one model or several: the same splits of the same texts for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmlab.data.progress import Bar
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.probing import features, finetune, frozen, texts
from llmlab.probing.scores import Interval, Split, interval, split
from llmlab.runs import checkpoint, folder, metrics, probes, record
from llmlab.runs.files import EXPORT

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model

Mode = Literal["frozen", "finetune"]
SEGMENTS = 2  # of the frame of two texts


@dataclass(frozen=True)
class Protocol:
    """seeds: splits, each with a seed of its own; test: share of each class that is held out; seq_len: tokens of a text at
    most, None: as many as every model was trained with."""

    mode: Mode = "frozen"
    seeds: int = 5
    test: float = 0.25
    seq_len: int | None = None
    batch_size: int = 32
    recipe: finetune.Recipe = field(default_factory=finetune.Recipe)


@dataclass(frozen=True)
class Subject:
    """A model to be probed. run: the folder in which results are kept, None of a Hugging Face checkpoint and of a run's earlier
    one; flops: that its pretraining spent. note: what is to be known of it."""

    name: str
    model: Model
    tokenizer: Tokenizer
    run: Path | None
    seq_len: int
    flops: float | None
    note: str | None = None


@dataclass(frozen=True)
class Result:
    """accuracies: {pool: one a split}; baselines: {"majority", "bag_of_tokens": one a split}; cut: texts that are longer."""

    subject: Subject
    accuracies: Mapping[str, Sequence[float]]
    baselines: Mapping[str, Sequence[float]]
    cut: int


@dataclass(frozen=True)
class Probed:
    labelled: texts.Labelled
    protocol: Protocol
    seq_len: int
    splits: Sequence[Split]
    results: Sequence[Result]

    def interval(self, values: Sequence[float]) -> Interval:
        return interval(values, self.splits[0])


def runs_of(given: str) -> list[str]:
    """The run that a path names, or the complete ones below a folder that is none, in the order of their names."""
    top = Path(given)
    own = (record.NAME, checkpoint.MANIFEST, EXPORT)
    if not top.is_dir() or any((top / name).exists() for name in own):
        return [given]
    below = sorted(str(here) for here, files in record.walk(top) if record.NAME in files)
    complete = [run for run in below if record.read(run).get("status") == "completed"]
    if below and not complete:
        raise UserError(f"run={given}: none of the {len(below)} runs below it is complete")
    return complete or [given]


def of_run(run: str) -> Subject:
    """A run, or one of its checkpoints. UserError for one whose model can't be loaded."""
    home, path = folder.home(run), folder.checkpoint_of(run)
    cfg, _ = folder.load(home)
    model, tokenizer = folder.load_model(path)
    subject = Subject(run, model, tokenizer, home, cfg.data.seq_len, None)
    if checkpoint.is_export(path):  # which has no record of what was spent
        return _ready(subject)
    fields, step = record.read(home), checkpoint.step_of(path)
    kept, status, note = checkpoint.all_of(home / checkpoint.FOLDER), fields.get("status"), None
    if kept and path.resolve() != kept[-1].resolve():
        note = f"{run} is of step {step:,}, not the run's last: the result is not kept in its folder"
        subject = dataclasses.replace(subject, run=None)
    elif status != "completed":
        note = f"{run} has not been completed ({status}): it is probed as it was at step {step:,}"
    return _ready(dataclasses.replace(subject, flops=_spent(home, fields, step), note=note))


def _spent(home: Path, fields: Mapping[str, Any], step: int) -> float | None:
    """FLOPs up to a step; None where the record does not tell."""
    each, steps, seen = (fields.get(name) for name in ("flops_per_token", "steps", "tokens_seen"))
    if not steps or not seen:  # one that was killed: its metrics go on as long as it did
        rows = [row for row in metrics.read(home / metrics.METRICS) if row.get("tokens") and row.get("step")]
        steps, seen = (rows[-1]["step"], rows[-1]["tokens"]) if rows else (None, None)
    return each * seen / steps * step if each and steps and seen else None


def of_checkpoint(hf: str) -> Subject:
    """A Hugging Face checkpoint, read in windows of at most 512 tokens."""
    model, tokenizer = folder.load_given(None, hf)
    tokenizer.lead = tokenizer.opening()
    # BERT's own length, which MTEB's models are mostly measured with too.
    return _ready(Subject(hf, model, tokenizer, None, min(512, model.sizes.max_positions), None))


def _ready(subject: Subject) -> Subject:
    """The same with a mask that a text alone decides, on a GPU where there is one."""
    import torch

    model = subject.model
    if (spec := features.seeing(model.spec)) != model.spec:
        other = build.assemble(spec)
        # The new model is on the meta device, into which nothing can be copied: its parameters become those of the old one.
        other.load_state_dict(model.state_dict(), assign=True)
        model = other.eval()
    return dataclasses.replace(subject, model=model.to("cuda" if torch.cuda.is_available() else "cpu"))


def probe(subjects: Sequence[Subject], labelled: texts.Labelled, protocol: Protocol, bar: Bar) -> Probed:
    """Every model on every split. UserError where a model can't be probed so."""
    _check(subjects, protocol)
    seq_len = protocol.seq_len or min(s.seq_len for s in subjects)
    splits = [split(labelled.numbers, protocol.test, seed) for seed in range(1, protocol.seeds + 1)]
    if not len(splits[0].test):
        raise UserError(
            f"test={protocol.test:g} of {len(labelled.records)} texts leaves none to score; choose a larger share"
        )
    results: list[Result] = []
    for i, subject in enumerate(subjects):
        where = f"{i + 1} of {len(subjects)}: " if len(subjects) > 1 else ""
        results.append(_result(subject, labelled, protocol, seq_len, splits, _in_front(where, bar)))
    return Probed(labelled, protocol, seq_len, splits, results)


def _in_front(words: str, bar: Bar) -> Bar:
    def shown(what: str, done: int | None, total: int | None) -> None:
        bar(words + what, done, total)

    return shown


def _of(what: str, bar: Bar) -> Callable[[int, int], None]:
    def tick(done: int, total: int) -> None:
        bar(what, done, total)

    return tick


def _check(subjects: Sequence[Subject], protocol: Protocol) -> None:
    from llmlab.decoding.generate import limit

    if protocol.mode == "frozen":
        frozen.check_installed()
    for s in subjects:
        known = limit(s.model, 0)
        if protocol.seq_len is not None and known is not None and protocol.seq_len > known:
            raise UserError(f"seq_len={protocol.seq_len} is more than the {known} positions that {s.name} knows")
        if protocol.mode == "finetune" and s.model.spec.topology == "encoder_decoder":
            raise UserError(f"{s.name} is an encoder-decoder, which mode=finetune has no head for; choose mode=frozen")


def _result(
    subject: Subject, labelled: texts.Labelled, protocol: Protocol, seq_len: int, splits: Sequence[Split], bar: Bar
) -> Result:
    model = subject.model
    read = texts.read(labelled, subject.tokenizer, subject.tokenizer.lead, seq_len)
    if (most := max(int(ids.max()) for ids in read.ids)) >= model.sizes.vocab_size:
        raise UserError(
            f"{subject.name}: its tokenizer has the id {most}, but it knows {model.sizes.vocab_size} tokens"
        )
    classes = labelled.numbers
    found = {"majority": [frozen.majority(classes, part) for part in splits]}
    # A table of one segment tells nothing apart.
    segments = model.sizes.token_types if model.sizes.token_types >= SEGMENTS else 0
    if protocol.mode == "finetune":
        task = finetune.Task(read, classes, len(labelled.classes), segments)
        scores = []
        for seed, part in enumerate(splits, start=1):
            tick = _of(f"fine-tuning {seed} of {len(splits)}", bar)
            scores.append(finetune.accuracy(model, task, part, seed, protocol.recipe, tick))
        return Result(subject, {finetune.pool_of(model.spec, read): scores}, found, read.cut)
    pools = features.pools_of(model, read)
    special = subject.tokenizer.special
    vectors = features.features(
        model,
        read,
        pools,
        segments=segments,
        start=special.get("pad", special.get("eos", 0)),
        batch_size=protocol.batch_size,
        tick=_of("hidden states", bar),
    )
    if bad := [pool for pool, v in vectors.items() if not np.isfinite(v).all()]:
        raise UserError(f"{subject.name}: its hidden states ({bad[0]}) are not finite; it has diverged")
    steps, done = len(splits) * (len(pools) + 1), 0
    scored: dict[str, list[float]] = {pool: [] for pool in pools}
    found["bag_of_tokens"] = []
    for part in splits:
        for pool in pools:
            bar("logistic regression", done, steps)
            scored[pool].append(frozen.accuracy(vectors[pool], classes, part))
            done += 1
        bar("logistic regression", done, steps)
        found["bag_of_tokens"].append(frozen.accuracy(frozen.bag_of_tokens(read.ids, part), classes, part))
        done += 1
    return Result(subject, scored, found, read.cut)


def keep(probed: Probed) -> None:
    """Write what was measured into the folder of each run."""
    for result in probed.results:
        if result.subject.run is None:
            continue
        made: list[probes.Probe] = []
        bag = result.baselines.get("bag_of_tokens")
        for pool, values in result.accuracies.items():
            mean, half = probed.interval(values)
            made.append(
                {
                    "data": probed.labelled.name,
                    "fingerprint": probed.labelled.fingerprint,
                    "mode": probed.protocol.mode,
                    "pool": pool,
                    "seq_len": probed.seq_len,
                    "test": probed.protocol.test,
                    "accuracies": list(values),
                    "accuracy": mean,
                    "half": half,
                    "majority": probed.interval(result.baselines["majority"]).mean,
                    "bag_of_tokens": None if bag is None else probed.interval(bag).mean,
                }
            )
        probes.add(result.subject.run, made)
