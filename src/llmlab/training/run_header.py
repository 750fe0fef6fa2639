"""The header of a run, before its first step: the fields of its record, and the lines that it begins with."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from llmlab import attributes, files, measures, registry
from llmlab.config import inherit, init_from, learned, stand_ins, traits
from llmlab.data import account
from llmlab.hub import locate
from llmlab.model.table import describe
from llmlab.runs import record, text
from llmlab.training import companion_records, companions, preflight, schedule_notes
from llmlab.training.intervals import Intervals

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.data.corpus import Corpus
    from llmlab.data.records import RecordSamples
    from llmlab.runs.vectors import Rows
    from llmlab.training.cut import Cut
    from llmlab.training.devices import Devices
    from llmlab.training.recipe import Recipe
    from llmlab.training.task import Task


def fields(
    task: Task,
    recipe: Recipe,
    horizon: dict[str, Any],
    last_step: int,
    devices: Devices,
    cut: Cut,
    intervals: Intervals,
) -> dict[str, Any]:
    composed, corpus = task.composed, recipe.corpus
    cfg = composed.cfg
    return {
        "schema": record.SCHEMA,
        "status": "running",
        "reason": None,
        "command": record.command(),
        "overrides": list(composed.overrides),
        "typed": [
            f"{t.group}@{t.package}={t.choice}" if t.package else f"{t.group}={t.choice}" for t in composed.typed
        ],
        "experiment": cfg.experiment_name,
        "seed": cfg.seed,
        "family": cfg.model.family,
        "parts": {
            **objective_parts(recipe.spec),
            **record.parts(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))),
        },
        "layers": describe(recipe.spec),
        # A corpus's own notes are said when it is opened.
        "notes": [*notes(task, recipe, horizon["steps"], last_step, cut), *corpus.manifest["notes"]],
        "plugins": os.environ.get(registry.VARIABLE) or None,
        "versions": record.versions(),
        "hardware": record.hardware(devices.threads, devices.names()),
        "precision": cfg.precision,
        **where(cfg, devices, cut),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget": horizon,
        "intervals": {"validate_every": intervals.validate_every, "checkpoint_every": intervals.checkpoint_every},
        "data": {
            **text.fields(corpus, cfg),
            "tokens": corpus.tokens,
            "train_tokens": len(corpus.train),
            "validation_tokens": len(corpus.validation),
            "vocabulary": corpus.vocabulary.size,
            "read": corpus.manifest["read"],
            **_records(recipe),
        },
        "tokenizer": tokenizer(cfg, corpus),
        **({"init_adapter": adapter(cfg)} if cfg.init_adapter is not None else {}),
        "parameters": {name: getattr(recipe.cost.parameters, name) for name in ("total", "active", "trainable")},
        "flops_per_token": recipe.cost.flops_per_token,
        **({"models": companion_records.fields(recipe.companions, recipe.models)} if recipe.companions else {}),
        "tokens_seen": 0,
        "steps": 0,
        "wall_seconds": 0.0,
        "tokens_per_second": None,
        "mfu": None,
        "peak_memory_bytes": 0,
        "metrics": {},
        "measures": measures.kinds(recipe.objective),
    }


def tokenizer(cfg: DictConfig, corpus: Corpus) -> dict[str, Any]:
    """The origin of the tokenizer: learnt from the text, read from a file, or brought by what the run begins with."""
    if cfg.tokenizer.kind != "file":
        return {"kind": corpus.tokenizer.kind, "from": "text", "path": None}
    path = files.absolute(cfg.tokenizer.path)
    typed_key, start = inherit.source(cfg)
    brought = start is not None and path == _brings(start)
    return {"kind": corpus.tokenizer.kind, "from": typed_key if brought else "file", "path": path}


def adapter(cfg: DictConfig) -> dict[str, str]:
    """Field of a record on the adapter of PEFT's that the model begins with."""
    folder = files.expanded(cfg.init_adapter).absolute()
    return {"path": str(folder), "sha256": companions.adapter_fingerprint(folder)}


def vectors(start: str, rows: Rows, recipe: Recipe) -> dict[str, Any]:
    """Field of a record on the vectors that the token table begins with; a file's sha256 tells which it was."""
    path = files.expanded(start)
    found = len(rows.ids)
    sha256 = files.sha256(path) if path.is_file() else None
    return {"path": files.absolute(start), "sha256": sha256, "found": found, "kept": _rows(recipe) - found}


def vectors_note(start: str, rows: Rows, recipe: Recipe) -> str:
    found = len(rows.ids)
    return (
        f"init_from.embedding={start}: {found:,} of {_rows(recipe):,} rows of the token table are its vectors, "
        f"{_rows(recipe) - found:,} keep their first values"
    )


def _rows(recipe: Recipe) -> int:
    """Rows of the token tables, each of which stands for a token, or for none where the model has more."""
    return recipe.spec.sizes.vocab_size


def _brings(start: str) -> str:
    name = init_from.hf_name(start)
    return files.absolute(inherit.home(start) if name is None else locate.locate(name))


def where(cfg: DictConfig, devices: Devices, cut: Cut) -> dict[str, Any]:
    """Fields that change when a run is resumed elsewhere: on what, and how the batch is then cut."""
    return {
        "strategy": cfg.strategy.name,
        "devices": devices.world,
        "batch": {
            "sequences": cut.batch_size,
            "micro": cut.micro,
            "accumulate": cut.accumulate,
            "seq_len": cfg.data.seq_len,
        },
    }


def objective_parts(spec: ModelSpec) -> dict[str, str]:
    """The masks and heads that the objective brings: the config has them only where they were chosen."""
    lone = len(spec.stacks) == 1
    masks = {"mask" if lone else f"stacks.{s.name}.mask": s.mask.name for s in spec.stacks}
    return {**masks, **{f"heads.{role}": head.name for role, head in spec.heads.items()}}


def notes(task: Task, recipe: Recipe, horizon: int, last_step: int, cut: Cut) -> list[str]:
    """Notes: on what a choice displaced, a part can't honour, has no effect, or the run never comes to."""
    cfg = task.composed.cfg
    stand_in = stand_ins.note(cfg)
    texts = [] if stand_in is None else [stand_in]
    texts += [
        *task.notes,
        *recipe.spec.notes,
        *traits.notes(task.composed, recipe.spec),
        *map(str, recipe.cost.sources),
    ]
    if cfg.init_from is not None and tokenizer(cfg, recipe.corpus)["from"] != "init_from":
        why = "init_from.tokenizer=new" if cfg.init_tokenizer == "new" else f"tokenizer={cfg.tokenizer.kind}"
        texts.append(f"{why}: the weights of init_from know other tokens under these ids")
    if "model.max_positions" in task.composed.keys and not preflight.bounded(recipe.spec):
        texts.append("model.max_positions: no position part here is bounded by it, so nothing changes; leave it out")
    objective = learned.typed(cfg)
    if attributes.get(recipe.objective, "objective", "joint") and cut.accumulate > 1:
        texts.append(
            f"{objective} compares the samples of a micro-batch, {cut.batch_size // cut.accumulate} of "
            f"train.batch_size={cut.batch_size}, over all ranks; train.micro_batch_size={cut.batch_size} would compare all"
        )
    sizes = recipe.spec.sizes
    if attributes.get(recipe.objective, "objective", "needs_dropout") and not (
        sizes.dropout or sizes.attention.dropout or sizes.ffn.dropout
    ):
        texts.append(f"{objective} reads each text twice under other dropout, but there is none; set model.dropout=0.1")
    return texts + schedule_notes.notes(recipe.schedule, cfg.schedule, horizon, last_step)


def lines(
    task: Task, recipe: Recipe, horizon: dict[str, Any], last_step: int, cut: Cut, intervals: Intervals
) -> list[str]:
    spec, corpus, cost = recipe.spec, recipe.corpus, recipe.cost.parameters
    active = f" ({cost.active:,} active)" if cost.active != cost.total else ""
    cfg = task.composed.cfg
    stand_in = stand_ins.stand_in(cfg)
    objective = learned.typed(cfg) + (f", in place of the paper's {stand_in.paper}" if stand_in else "")
    first = f"{spec.family}: {cost.total:,} parameters{active}, vocabulary {spec.sizes.vocab_size:,}, {objective}"
    texts = [first, *describe(spec)]
    if recipe.companions:
        texts += companion_records.lines(recipe.companions, recipe.models)
    if recipe.learns.words is not None:
        texts.append(recipe.summary)
    texts += [f"note: {n}" for n in notes(task, recipe, horizon["steps"], last_step, cut) if n != stand_ins.note(cfg)]
    if (known := tokenizer(cfg, corpus))["from"] not in ("text", "file"):
        texts.append(f"tokenizer: that of {known['from']} ({known['kind']}, {corpus.vocabulary.size:,} tokens)")
    texts += _data(cfg, recipe)
    each = f"{recipe.tokens_per_sample} tokens" + (" on average" if corpus.is_records else "")
    run = f"run: {last_step:,} step{'s' * (last_step != 1)} of {cut.batch_size} x {each}"
    if last_step < horizon["steps"]:
        run += f" (cut short of a budget of {horizon['steps']:,} by trainer.max_steps)"
    # Cut records and packed ones count as they are read.
    total = recipe.tokens_per_sample * len(recipe.samples) if corpus.is_records else len(corpus.train)
    passes = last_step * cut.batch_size * recipe.tokens_per_sample / max(1, total)
    shown = f"{passes:,.0f}" if passes >= 10 else f"{passes:.2g}"
    texts.append(f"{run}, {shown} times the text, in {record.relative_path(task.folder)}")
    once = intervals.validation_tokens and intervals.validate_every >= horizon["steps"]
    if once and cfg.train.validate_every is None and horizon["steps"] > 1:
        texts.append(
            "validation: at the end only, as two would take more than a tenth of the training's time "
            "(train.validate_every=STEPS for more, train.validation_batches=N for smaller ones)"
        )
    return texts


def _records(recipe: Recipe) -> dict[str, Any]:
    """Fields of a record on what kind of records were read, their classes, and how many were cut at data.seq_len."""
    corpus = recipe.corpus
    if not corpus.is_records:
        return {}
    return {"reads": corpus.manifest["kind"], "labels": corpus.labels, "cut": cast("RecordSamples", recipe.samples).cut}


def _data(cfg: DictConfig, recipe: Recipe) -> list[str]:
    """Lines on the data."""
    corpus, path = recipe.corpus, cfg.data.path
    noun = "record" if corpus.is_records else "document"
    source = f"; read {account.line(path, corpus.manifest['read'], noun)}" if path else ""
    if not corpus.is_records:
        return [f"data: {len(corpus.train):,} training and {len(corpus.validation):,} validation tokens{source}"]
    n = corpus.manifest["documents"]
    texts = [f"data: {n['train']:,} training and {n['validation']:,} validation records{source}"]
    if corpus.labels is not None:
        named = ", ".join(map(account.printable, corpus.labels[:12])) + (" ..." if len(corpus.labels) > 12 else "")
        texts.append(f"classes: {len(corpus.labels)} ({named})")
    parts = {"training": recipe.samples, "validation": recipe.validation_samples(cfg.data.seq_len)}
    for name, part in parts.items():
        told = cast("RecordSamples", part).told(f"data.seq_len={cfg.data.seq_len}")
        texts += [f"{name} records: {line}" for line in told]
    return texts
