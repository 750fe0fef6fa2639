"""From what was typed to a config that is known to be sound.

A typed choice that names the part which the family has anyway at that place changes nothing: the family's
options for it stay (`model=llama3 position=rope` keeps LLaMA's theta).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import (
    companions,
    experiments,
    explain,
    heads,
    hydra_config,
    inherit,
    init_from,
    spelling,
    stages,
    store,
    typed_choices,
    validate,
)
from llmlab.config.choices import groups, known_choices
from llmlab.config.composed import Checkpoint, Composed, Typed
from llmlab.config.model_files import conf_dir as conf_dir
from llmlab.config.model_files import families as families
from llmlab.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec


def compose(
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    *,
    strict: bool = True,
    reader: Callable[[str], Checkpoint] | None = None,
    adapter: Callable[[str, ModelSpec, Sequence[Override]], list[str]] | None = None,
) -> Composed:
    """Compose and check. UserError with one line for each problem; nothing is built and torch is not imported.

    strict: a trait among the overrides that no chosen part can honour is a problem. reader: the checkpoint that
    init_from=hf=NAME names, without which it can't be composed (`llmlab.runs.compose` hands it in). adapter: likewise the
    overrides that init_from.adapter=FOLDER stands for, from the folder, the model without them and what was typed.
    """
    composed, whole = _whole(overrides, config_dirs, strict, reader)
    if (folder := composed.cfg.init_adapter) is not None and not composed.cfg.resume and adapter is not None:
        assert composed.spec is not None
        own = adapter(folder, composed.spec, explain.parse(whole, known_choices(config_dirs))[0])
        named = {word.partition("=")[0] for word in own}
        kept = [o for o in overrides if o.lstrip("+~").partition("=")[0] not in named]
        brought, whole = _whole([*kept, *own], config_dirs, strict, reader)
        composed = dataclasses.replace(brought, overrides=composed.overrides)
    overrides = whole
    if composed.cfg.resume:  # its companions are those of the run
        return composed

    def companion(words: Sequence[str], about: companions.Declared, own: Sequence[str]) -> Composed:
        return _whole(words, config_dirs, strict, None, about, own)[0]

    folders = [conf_dir(), *map(Path, config_dirs)]
    known = known_choices(config_dirs)
    typed, _ = explain.parse(overrides, known)
    of_file, _ = explain.parse(experiments.words(typed, folders), known)
    found = companions.resolve(
        composed,
        typed,
        of_file,
        companion,
        lambda words: bool(validate.published(explain.parse(words, known)[0], folders)),
    )
    return dataclasses.replace(composed, companions=found)


def _whole(
    overrides: Sequence[str],
    config_dirs: Sequence[str],
    strict: bool,
    reader: Callable[[str], Checkpoint] | None,
    companion: companions.Declared | None = None,
    own: Sequence[str] = (),
) -> tuple[Composed, Sequence[str]]:
    """(the config without its companions, its overrides, those that a checkpoint brings among them).

    companion: the role for which it is composed; own: those of its overrides that are its own words, the others being
    those of the run.
    """
    given = tuple(map(init_from.normalise, overrides))
    # Before anything is parsed: choices are what Hydra's ConfigStore has.
    store.declare()
    # Before mistyped keys are reported: a missing module may be the one that declares them.
    if absent := registry.missing():
        raise UserError("\n".join(absent))
    # Hydra 1.3 would merge the YAML file over the part's own config, with a warning.
    for slot, name in registry.defined():
        if (conf_dir() / slot / f"{name}.yaml").exists():
            raise UserError(
                f"{slot}={name} is a preset in conf/{slot}/; choose another name for the part that you define"
            )
    if (file := stages.file_of(given, config_dirs)) is not None:
        raise UserError(
            f"experiment={file.stem} is several runs, of which this is not; llmlab train experiment={file.stem} runs them, "
            f"and {file} has the words of each"
        )
    run = functools.partial(hydra_config.run, config_dirs=tuple(config_dirs))
    known = known_choices(config_dirs)
    # Passed as a function: listing the choices reads folders, which only data=... needs.
    spelled = spelling.spelled(given, lambda: known.choices("data"))
    overrides = tuple(heads.addressed(spelled, run))
    parsed, problems = explain.parse(overrides, known)
    problems += validate.published(parsed, [conf_dir(), *map(Path, config_dirs)])
    if problems:
        raise UserError("\n".join([*problems, *_further(overrides, parsed, known, run)]))
    # Values only: a choice in a group brings defaults that nobody has typed.
    keys = frozenset(p.key_or_group for p in parsed if not p.is_delete() and p.key_or_group not in known.groups)
    start = _start(parsed, reader)
    if start is not None:
        merged, problems = start.merged(parsed)
        if problems:
            raise UserError("\n".join(problems))
        overrides = tuple(merged)
        parsed, _ = explain.parse(overrides, known)
    asked = typed_choices.with_plus(overrides, parsed, run)
    try:
        typed = typed_choices.choices(parsed, known, run)
        kept = (o for o, t in zip(asked, typed, strict=True) if t is None or not t.kept)
        effective = (*kept, *typed_choices.other_budgets(parsed))
        cfg = run(effective)
    # Hydra lets exceptions of OmegaConf, PyYAML and resolvers through beside its own.
    except Exception as first:
        # With the "+" that Hydra wants, for each override is composed by itself now.
        parsed, _ = explain.parse(asked, known)
        problems, good = explain.every_problem(parsed, run, known, first)
        if not problems:
            problems = [explain.message(first, None, known)]
        elif len(good) < len(parsed):
            problems += _further(overrides, good, known, run)
        raise UserError("\n".join(dict.fromkeys(problems))) from first
    if own := inherit.words(cfg, parsed):
        effective = (*inherit.without(effective), *own)
        overrides = (*inherit.without(overrides), *own)
        keys = frozenset(k for k in keys if not inherit.is_about(k))
        cfg = run(effective)
    if companion is not None:  # what was typed for the run need not have an effect on its companion
        keys &= {companions.key_and_package(word)[0] for word in own}
    composed = Composed(cfg, tuple(t for t in typed if t), given, effective, keys)
    problems, spec = validate.problems_and_spec(composed, strict, None if companion is None else companion.heads)
    if problems := problems or (start.contradictions(composed) if start else []):
        raise UserError("\n".join(problems))
    return dataclasses.replace(composed, spec=spec), overrides


def unchecked(overrides: Sequence[str]) -> DictConfig:
    """The config, whatever its parts say of each other."""
    store.declare()
    return hydra_config.run(tuple(overrides), config_dirs=())


def misspelt(overrides: Sequence[str]) -> list[str]:
    """Problems of keys and single values, a line each, whatever the chosen parts say of each other."""
    store.declare()
    known = known_choices()
    run = functools.partial(hydra_config.run, config_dirs=())
    spelled = spelling.spelled(overrides, lambda: known.choices("data"))
    parsed, problems = explain.parse(heads.addressed(spelled, run), known)
    try:
        return problems + validate.local(run([str(o.input_line) for o in parsed]))
    except Exception as e:
        found, _ = explain.every_problem(parsed, run, known, e)
        return problems + (found or [explain.message(e, None, known)])


def _start(parsed: Sequence[Override], reader: Callable[[str], Checkpoint] | None) -> Checkpoint | None:
    """The checkpoint that init_from=hf=FOLDER names, which brings its model; None without one."""
    typed = next((str(o.value()) for o in parsed if o.key_or_group == "init_from" and not o.is_delete()), None)
    if (name := init_from.hf_name(typed)) is None:
        return None
    if reader is None:
        raise TypeError(f"{typed}: composing it needs a reader of checkpoints; use llmlab.runs.compose")
    return reader(name)


def vary(composed: Composed, values: Mapping[str, str]) -> Composed | None:
    """The config that `compose` would give had these values been typed as well: {"seed": "2"}, a tenth of its time.

    None where it can't tell: choices in groups, what a budget replaces, and whatever is wrong.
    """
    import copy

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    # OmegaConf changes in place, and the config is the caller's.
    cfg = copy.deepcopy(composed.cfg)
    parser = OverridesParser.create()
    for key, value in values.items():
        try:
            o = parser.parse_override(f"{key}={value}")
            if (
                # A choice at a place, a deletion and a dict are for Hydra to resolve, which isn't asked here.
                "@" in key
                or key[0] in "+~"
                or key.startswith(("budget.", "init_", "models.", "tokenizer."))
                # Those were composed of the values before.
                or (composed.companions and key.partition(".")[0] in companions.NODES)
                or key in groups()
                or isinstance(o.value(), dict)
            ):
                return None
            # Checked by the schema as Hydra's own override is, for the nodes have its types.
            OmegaConf.update(cfg, key, o.value(), merge=True)
        except Exception:
            return None
    changed = dataclasses.replace(composed, cfg=cfg, keys=composed.keys | frozenset(values))
    problems, spec = validate.problems_and_spec(changed)
    return None if problems else dataclasses.replace(changed, spec=spec)


def swapped(composed: Composed, slot: str, name: str, options: Mapping[str, Any]) -> Composed:
    """The config that `compose` would give had this part been typed as well, with these options; a tenth of its time.

    It is not the part that stands there, and nothing else was typed for the slot. UserError as from `compose`.
    """
    import copy

    from omegaconf import OmegaConf

    cfg = copy.deepcopy(composed.cfg)
    # A typed node: what is put into it is checked as if Hydra had composed it.
    node = OmegaConf.structured(store.schema(slot, name))
    for key, value in options.items():
        node[key] = value
    cfg[slot] = node
    words = (f"{slot}={name}", *(f"{slot}.{key}={value}" for key, value in options.items()))
    changed = dataclasses.replace(
        composed,
        cfg=cfg,
        typed=(*composed.typed, Typed(slot, "", name)),
        overrides=(*composed.overrides, *words),
        effective=(*composed.effective, *words),
        keys=composed.keys | {f"{slot}.{key}" for key in options},
    )
    problems, spec = validate.problems_and_spec(changed)
    if problems:
        raise UserError("\n".join(problems))
    return dataclasses.replace(changed, spec=spec)


def _further(
    overrides: Sequence[str], good: Sequence[Override], known: explain.Known, run: Callable[[Sequence[str]], DictConfig]
) -> list[str]:
    """Further problems, apart from overrides that are wrong already and what may follow from them."""
    bad = {o.lstrip("+~").partition("=")[0].partition("@")[0] for o in overrides} - {o.key_or_group for o in good}
    good = [o for o in good if o.key_or_group.partition(".")[0] not in bad or o.key_or_group in known.groups]
    if not good or "model" in bad or "experiment" in bad:
        return []
    problems, good = explain.every_problem(good, run, known)
    try:
        cfg = run([str(o.input_line) for o in good])
    except Exception:
        return problems
    return problems + validate.local(cfg)


def addressed(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """Overrides with each head at its role, as Hydra wants them; of a sweep too, whose first objective tells the roles."""
    return heads.addressed(overrides, functools.partial(hydra_config.run, config_dirs=tuple(config_dirs)))
