"""Checks of a composed config that its types leave open: stray keys, choices, ranges, and what must fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.config import (
    data_keys,
    devices,
    heads,
    init_from,
    layout,
    learned,
    limits,
    loggers,
    model_files,
    rollouts,
    strays,
    traits,
)
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.sizes import divisors_shown

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec


def problems_and_spec(
    composed: Composed, strict: bool = True, companion: Mapping[str, str] | None = None
) -> tuple[list[str], ModelSpec | None]:
    """(everything that is wrong, a line each; the model that the config asks for, if it is sound).

    strict: typed traits without effect are wrong too. companion: the heads of another model that the objective works with.
    """
    cfg = composed.cfg
    lines = _walked(cfg)
    if "published" in composed.keys:
        lines.append(
            "published says what a model file stands for; choose one, as in model=llama3_8b (llmlab parts model)"
        )
    # A config with stray keys is looked at no further: the checks below read its keys.
    if lines:
        return lines, None
    lines = [
        *limits.problems(cfg),
        *learned.problems(composed),
        *heads.problems(composed, companion, strict and not cfg.resume),
        *_batch(cfg),
        *_budget(cfg),
        *(_stops(cfg) if companion is None else ()),
        *_run(cfg),
        *loggers.problems(composed),
    ]
    # Lightning starts the ranks by running the command line again, in processes that know no part of a notebook.
    if int(cfg.trainer.num_nodes) > 1 or str(cfg.trainer.devices) not in ("1", "auto", "-1"):
        lines += composed.of_this_process(ranks=True)
    if not cfg.resume:  # whose data, strategy and devices may be those of its run
        lines += [*data_keys.problems(composed), *devices.problems(cfg), *rollouts.problems(cfg)]
    if lines:
        return lines, None
    try:
        spec = layout.resolve(composed, companion=companion)
    except UserError as e:
        return str(e).split("\n"), None
    if strict:
        lines = [*(line for line, typed in traits.unused(composed, spec) if typed), *_source(spec)]
    return lines, spec


def _source(spec: ModelSpec) -> list[str]:
    """The problem of a first stack with cross-attention: it would read another model's states, which no sample has."""
    stack = spec.stacks[0]
    if stack.cross_attention is None:
        return []
    return [
        f"stacks.{stack.name}.cross_attention={stack.cross_attention} reads an encoder's states, but there is no encoder "
        "before it; leave it out"
    ]


def local(cfg: DictConfig) -> list[str]:
    """Problems of single values, whatever else is wrong."""
    return _walked(cfg) or [*limits.problems(cfg), *_run(cfg)]


def published(parsed: Sequence[Override], folders: Sequence[Path]) -> list[str]:
    """A published size leaves no size to choose."""
    by = {o.key_or_group: o.value() for o in parsed if o.key_or_group in ("model", "size") and not o.is_delete()}
    if len(by) < 2 or by["size"] is None:
        return []
    for folder in folders:
        if model_files.published(Path(folder, "model", f"{by['model']}.yaml")):
            return [f"model={by['model']} is a published size: leave out size={by['size']}, or name the family"]
    return []


# ---------------------------------------------------------------- the walk


def _walked(cfg: DictConfig) -> list[str]:
    """Strays, but for values that can't be worked out because what they follow from is too small."""
    low = limits.too_small(cfg)
    return [s for s in strays.problems(cfg) if not (low and "resolving interpolation" in s)] + (low if low else [])


# ---------------------------------------------------------------- ranges, and what must fit together


def _batch(cfg: DictConfig) -> list[str]:
    batch, micro = cfg.train.batch_size, cfg.train.micro_batch_size
    if micro is not None and (micro < 1 or batch % micro):
        fits = divisors_shown(batch)
        return [f"train.micro_batch_size={micro} does not divide train.batch_size={batch}; choose one of {fits}"]
    if cfg.train.learns is not None and not cfg.train.learns:  # which words fit, the built model tells
        return ["train.learns=[]: nothing would learn; name what does, as train.learns=[heads], or leave it out"]
    return []


def _stops(cfg: DictConfig) -> list[str]:
    if cfg.train.stop_kl is None or learned.entry(cfg).attribute("shows_kl"):
        return []
    return [f"train.stop_kl={cfg.train.stop_kl:g}: {learned.typed(cfg)} shows no kl; leave it out"]


def _budget(cfg: DictConfig) -> list[str]:
    given = [k for k, v in cfg.budget.items() if v is not None]
    if len(given) == 1:
        return []
    if not given:
        return ["budget: give one of budget.tokens, budget.steps, budget.flops or budget.minutes"]
    return [f"budget: exactly one can be given, but {' and '.join(f'budget.{k}' for k in given)} are"]


def _run(cfg: DictConfig) -> list[str]:
    lines = []
    longest = cfg.trainer.max_time
    # Lightning's Timer takes this text, a timedelta or a dict, and of a number it asks total_seconds().
    if isinstance(longest, str) and not re.fullmatch(r"\s*\d+:\d\d:\d\d:\d\d\s*", longest):
        lines.append(f"trainer.max_time must be DD:HH:MM:SS, as 00:00:30:00 for half an hour, but is {longest}")
    elif isinstance(longest, int | float):
        lines.append(
            f"trainer.max_time must be DD:HH:MM:SS, but is {longest}; budget.minutes={longest} states a budget"
        )
    if cfg.resume_from is not None and not cfg.resume:
        lines.append(f"resume_from={cfg.resume_from} has no effect without resume=RUN; leave it out")
    steps = cfg.trainer.max_steps
    # -1 is Lightning's word for no end.
    if steps != -1 and steps < 1:
        lines.append(f"trainer.max_steps must be at least 1 (or -1: to the end of the budget), but is {steps}")
    if cfg.init_from is not None and init_from.hf_name(cfg.init_from) is None:
        start = expanded(cfg.init_from)
        if (why := init_from.problem(cfg.init_from)) is not None:
            lines.append(f"init_from={start}: {why.replace('RUN', 'init_from=RUN')}")
    if cfg.init_adapter is not None and cfg.init_from is None and not cfg.resume:
        lines.append(
            f"init_from.adapter={cfg.init_adapter} is beside the weights of a base: name them too, as init_from=hf=FOLDER or "
            "init_from=RUN"
        )
    if cfg.init_embedding is not None:
        said = f"init_from.embedding={cfg.init_embedding}"
        if cfg.init_from is not None:
            lines.append(f"{said}: init_from={cfg.init_from} brings a token table of its own; leave one of them out")
        if (why := init_from.vectors_problem(cfg.init_embedding)) is not None:
            lines.append(f"{said}: {why.replace('RUN', 'init_from.embedding=RUN')}")
    return lines
