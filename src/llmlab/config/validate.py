"""What types leave open, checked on a composed config: stray keys, choices, ranges, and what must fit together."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import data_keys, devices, guess, heads, init_from, layout, model_files, rollouts, traits
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.sizes import MOST_LAYERS, divisors_shown
from llmlab.slot_names import Part

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec

CHOICES = {
    "precision": ("32-true", "bf16-mixed", "bf16-true", "16-mixed"),
    "strategy.name": devices.STRATEGIES,
    "data.source": ("python_docs", "python_code", "files"),
    "data.split": ("document", "position"),
    "tokenizer.kind": ("bpe", "char", "file"),
    "model.attention.qk_norm": ("head", "each_head", "full"),
    "logger.wandb.mode": ("auto", "online", "offline"),
    "resume_from": ("start",),
    "init_tokenizer": ("own", "new"),
}
AT_LEAST = {
    "seed": 0,
    **{f"model.{k}": 1 for k in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size")},
    **{f"model.{k}": 1 for k in ("max_positions", "moe.n_experts", "moe.per_token", "moe.ffn_dim", "moe.shared_dim")},
    **{f"model.{k}": 0 for k in ("token_types", "moe.n_shared", "moe.balance", "moe.z")},
    **{f"train.{k}": 1 for k in ("batch_size", "micro_batch_size", "checkpoint_every", "validate_every", "log_every")},
    "train.validation_batches": 1,
    "train.keep": 2,
    "data.seq_len": 2,
    "data.max_documents": 1,
    "data.num_workers": 0,
    "tokenizer.vocab_size": 257,
    "budget.steps": 1,
    "logger.samples": 0,
    "logger.tensorboard.flush_seconds": 1,
    "strategy.tensor_parallel": 1,
}
POSITIVE: tuple[str, ...] = (
    "model.norm_eps",
    "model.attention.scale",
    "model.attention.softcap",
    "model.attention.clip_qkv",
)
POSITIVE += ("model.logit_softcap", "train.clip", "budget.tokens", "budget.flops", "budget.minutes", "optimizer.lr")
POSITIVE += ("data.validation",)
MOST, MOST_FLOAT, MOST_SEED = 10**15, 10**30, 2**63 - 1
SHARES = ("model.dropout", "model.attention.dropout", "model.ffn.dropout")


def problems_and_spec(
    composed: Composed, strict: bool = True, companion: Mapping[str, str] | None = None
) -> tuple[list[str], ModelSpec | None]:
    """(everything that is wrong, a line each; the model that the config asks for, if it is sound).

    strict: typed traits without effect are wrong too. companion: the heads of another model that the objective works with.
    """
    cfg = composed.cfg
    found = _walked(cfg)
    if "published" in composed.keys:
        found.append(
            "published says what a model file stands for; choose one, as in model=llama3_8b (llmlab parts model)"
        )
    if found:
        return found, None
    found = [*_values(cfg), *_heads(composed, companion), *_batch(cfg), *_budget(cfg), *_run(cfg), *_loggers(composed)]
    if int(cfg.trainer.num_nodes) > 1 or str(cfg.trainer.devices) not in ("1", "auto", "-1"):
        found += composed.of_this_process(ranks=True)
    if not cfg.resume:  # whose data, strategy and devices may be those of its run
        found += [*data_keys.problems(composed), *devices.problems(cfg), *rollouts.problems(cfg)]
    if found:
        return found, None
    try:
        spec = layout.resolve(composed, companion=companion)
    except UserError as e:
        return str(e).split("\n"), None
    if strict:
        found = [*(line for line, typed in traits.unused(composed, spec) if typed), *_source(spec)]
    return found, spec


def _source(spec: ModelSpec) -> list[str]:
    """What a first stack's cross-attention would read is another model's, which no sample has."""
    stack = spec.stacks[0]
    if stack.cross_attention is None:
        return []
    return [
        f"stacks.{stack.name}.cross_attention={stack.cross_attention} reads an encoder's states, but there is no encoder "
        "before it; leave it out"
    ]


def local(cfg: DictConfig) -> list[str]:
    """What is wrong with single values, whatever else is."""
    return _walked(cfg) or [*_values(cfg), *_run(cfg)]


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
    low = _too_small(cfg)
    return [s for s in strays(cfg) if not (low and "resolving interpolation" in s)] + (low if low else [])


def strays(cfg: DictConfig, path: str = "", root: DictConfig | None = None) -> list[str]:
    """Keys that no schema knows, keys that were removed, parts that aren't, values outside a Literal."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    found: list[str] = []
    root = cfg if root is None else root
    kind = OmegaConf.get_type(cfg)
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    options: Any = {}
    if isinstance(kind, type) and issubclass(kind, Part):
        if problem := _wrong_part(cfg, kind, path):
            return [problem]
        options = registry.index()[_slot(path), cfg._get_node("_part_")._value()].options  # type: ignore[union-attr]
    for key in sorted(fields - {str(k) for k in cfg}) if fields is not None else ():
        found.append(f"~{path + '.' if path else ''}{key}: it can't be removed; give it another value")
    for key in map(str, cfg):
        where = f"{path}.{key}" if path else key
        if fields is not None and key not in fields:
            names = [f for f in fields if not f.startswith("_")]
            hint = guess.below(path, key, names, root) if path else guess.at_root(key, names, root, registry.names)
            found.append(f"{where}: there is no such key{' in ' + path if path else ''}; {hint}")
            continue
        if OmegaConf.is_missing(cfg, key):
            found.append(f"{where} must be given: it has no default")
            continue
        try:
            value = cfg[key]
        except Exception as e:
            if not any(" must be at most " in line for line in found):  # what it follows from has a line already
                found.append(f"{where}: {str(e).splitlines()[0]}")
            continue
        if key in options and options[key].choices and value is not None and value not in options[key].choices:
            found.append(_not_among(where, value, options[key].choices))
        if isinstance(value, float) and not math.isfinite(value):
            found.append(f"{where} must be a finite number, but is {value}")
        elif (most := _largest(where, value)) is not None:
            found.append(f"{where} must be at most {most:,}, but is {_short(value)}")
        elif isinstance(value, DictConfig):
            found += strays(value, where, root)
        elif isinstance(value, ListConfig) and any(OmegaConf.is_missing(value, i) for i in range(len(value))):
            found.append(f"{where} must be given in full")
    return found


def _largest(where: str, value: Any) -> int | None:
    """The limit that a number, or one in a list, goes beyond, or None. Tensors count in 64 bits, Python without end."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((most for v in value if (most := _largest(where, v)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    most = MOST_LAYERS if where.endswith(".n_layers") else MOST_SEED if where.endswith("seed") else MOST
    most = MOST_FLOAT if isinstance(value, float) else most
    return most if abs(value) > most else None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:20]}... ({len(text)} characters)"


def _slot(path: str) -> str:
    parent, _, last = path.rpartition(".")
    return "head" if parent == "heads" else "attention" if last == "cross_attention" else last


def _wrong_part(cfg: DictConfig, kind: type, path: str) -> str | None:
    slot, name = _slot(path), cfg._get_node("_part_")._value()  # type: ignore[union-attr]
    if kind is Part or "/" not in kind.__name__:
        return f"{path}: a part is chosen by its name, {slot}=NAME, or in a defaults list"
    its_slot, _, its_name = kind.__name__.partition("/")
    if its_slot != slot:
        return f"{path}: {its_name} is a part of {its_slot}, not of {slot}; {near(its_name, registry.names(slot))}"
    if name != its_name:
        return (
            f"{path}._part_ is {name!r}, but what was chosen is {its_name!r}; a part is chosen by its name, {slot}=NAME"
        )
    return None


def _not_among(where: str, value: Any, valid: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(v) for v in valid], 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{where} must be one of {', '.join(map(str, valid))}, but is {value}{hint}"


# ---------------------------------------------------------------- ranges, and what must fit together


def _values(cfg: DictConfig) -> list[str]:
    from omegaconf import OmegaConf

    found = []

    def value(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    typed_as = {"init_tokenizer": "init_from.tokenizer"}
    chosen = [(k, value(k), valid) for k, valid in CHOICES.items() if value(k) is not None]
    found += [_not_among(typed_as.get(k, k), v, valid) for k, v, valid in chosen if v not in valid]
    found += [f"{k} must be more than 0, but is {value(k)}" for k in POSITIVE if value(k) is not None and value(k) <= 0]
    if cfg.data.validation >= 1:
        found.append(f"data.validation must be less than 1, but is {cfg.data.validation}")
    found += [f"{k} must be at least 0 and less than 1, but is {value(k)}" for k in SHARES if not 0 <= value(k) < 1]
    found += [
        f"{slot}: one is needed; choose {slot}=NAME ({', '.join(registry.names(slot))})"
        for slot in registry.SLOTS_NEEDED
        if cfg.get(slot) is None
    ]
    return found


def _too_small(cfg: DictConfig) -> list[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    found = []
    for key, least in AT_LEAST.items():
        if key == "tokenizer.vocab_size" and cfg.tokenizer.kind != "bpe":
            continue
        try:
            value = OmegaConf.select(cfg, key)
        except InterpolationResolutionError:
            continue
        if value is not None and value < least:
            found.append(f"{key} must be at least {least}, but is {value}")
    return found


def _heads(composed: Composed, companion: Mapping[str, str] | None) -> list[str]:
    """A head is built and trained where the objective has its role; typed for another it would do nothing.

    What the family's file names for other objectives may be typed as well: it changes nothing.
    """
    objective = composed.cfg.objective
    if objective is None:
        return []
    mine = heads.roles(objective) if companion is None else list(companion)
    typed = [o.lstrip("+").partition("=")[0] for o in composed.overrides]
    return [
        f"head@{t.package}={t.choice}: objective={objective._part_} trains no such head; "
        f"it has {', '.join(f'heads.{role}=NAME' for role in mine) or 'none'}"
        for t in composed.typed
        if t.group == "head"
        and t.package.removeprefix("heads.") not in mine
        and not t.kept
        and (f"head@{t.package}" in typed or t.package in typed)
    ]


def _batch(cfg: DictConfig) -> list[str]:
    batch, micro = cfg.train.batch_size, cfg.train.micro_batch_size
    if micro is not None and (micro < 1 or batch % micro):
        fits = divisors_shown(batch)
        return [f"train.micro_batch_size={micro} does not divide train.batch_size={batch}; choose one of {fits}"]
    if cfg.train.learns is not None and not cfg.train.learns:  # which words fit, the built model tells
        return ["train.learns=[]: nothing would learn; name what does, as train.learns=[heads], or leave it out"]
    return []


def _budget(cfg: DictConfig) -> list[str]:
    given = [k for k, v in cfg.budget.items() if v is not None]
    if len(given) == 1:
        return []
    if not given:
        return ["budget: give one of budget.tokens, budget.steps, budget.flops or budget.minutes"]
    return [f"budget: exactly one can be given, but {' and '.join(f'budget.{k}' for k in given)} are"]


def _run(cfg: DictConfig) -> list[str]:
    found = []
    longest = cfg.trainer.max_time
    if isinstance(longest, str) and not re.fullmatch(r"\s*\d+:\d\d:\d\d:\d\d\s*", longest):
        found.append(f"trainer.max_time must be DD:HH:MM:SS, as 00:00:30:00 for half an hour, but is {longest}")
    elif isinstance(longest, int | float):
        found.append(
            f"trainer.max_time must be DD:HH:MM:SS, but is {longest}; budget.minutes={longest} states a budget"
        )
    if cfg.resume_from is not None and not cfg.resume:
        found.append(f"resume_from={cfg.resume_from} has no effect without resume=RUN; leave it out")
    steps = cfg.trainer.max_steps
    if steps != -1 and steps < 1:
        found.append(f"trainer.max_steps must be at least 1 (or -1: to the end of the budget), but is {steps}")
    if cfg.init_from is not None and init_from.hf_name(cfg.init_from) is None:
        start = Path(cfg.init_from).expanduser()
        if (why := init_from.problem(cfg.init_from)) is not None:
            found.append(f"init_from={start}: {why.replace('RUN', 'init_from=RUN')}")
    return found


def _loggers(composed: Composed) -> list[str]:
    chosen = [name for name in ("wandb", "tensorboard") if composed.cfg.logger[name] is not None]
    found = [
        f"logger={n}: the package {n} is not installed; pip install {n}, or leave logger={n} out"
        for n in chosen
        if not is_installed(n)
    ]
    if not chosen and "logger.samples" in composed.keys:
        found.append("logger.samples: there is no logger; add logger=wandb or logger=tensorboard")
    return found


def is_installed(package: str) -> bool:
    """True if a package can be imported. A folder of that name in the working directory, as W&B leaves one, is a namespace
    package to Python, which has no origin."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
