"""Guesses at what a word that is no key was meant to be: a key deeper in the tree, a part, or another tool's name for it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config.aliases import ALIASES, ARGUMENTS, NOTES
from llmlab.registry import near
from llmlab.slot_names import place_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

ALL_KEYS = "llmlab train --help lists what can be typed, llmlab train --cfg job every key"


def at_root(word: str, names: Sequence[str], base: DictConfig | None, choices: Callable[[str], list[str]]) -> str:
    """The hint for a key that was typed without a path. names: of the root's keys and groups."""
    names = sorted(set(map(str, names)))
    if found := elsewhere(word, base):
        return found
    if groups := [g for g in names if word in choices(g)]:
        return f"{word} is {_a(groups[0])}: {' or '.join(f'{g}={word}' for g in groups[:3])}"
    if close := difflib.get_close_matches(word, names, 3, 0.7):
        return f"did you mean {' or '.join(close)}?"
    leaves: dict[str, list[str]] = {}
    for path in paths(base):
        leaves.setdefault(path.rpartition(".")[2], []).append(path)
    if close := difflib.get_close_matches(word, [*leaves, *ALIASES], 1, 0.8):
        targets = leaves.get(close[0]) or list(ALIASES[close[0]])
        return f"did you mean {' or '.join(_shortest(targets))}?"
    # Last: difflib's cutoff is 0.55 there, which lets through what is hardly alike.
    said = near(word, names)
    return said if said.startswith("did you mean") else ALL_KEYS


def elsewhere(word: str, base: DictConfig | None, but: str = "") -> str | None:
    """The hint for a word that is a key in another place, or another tool's name of one; None if it is neither.

    but: the key that is wrong, which a config holds where it was forced into it.
    """
    known = [p for p in paths(base) if p.endswith(f".{word}") and p != but]
    targets = list(ALIASES.get(word, ())) or _shortest(known)
    if not targets:
        return None
    return f"did you mean {' or '.join(targets)}?" + (f" ({NOTES[word]})" if word in NOTES else "")


def below(parent: str, last: str, names: Sequence[str], base: DictConfig | None) -> str:
    """The hint for PARENT.LAST, where PARENT has other keys, `names`."""
    there = paths(base)
    exact = list(ALIASES.get(f"{parent}.{last}", ())) or [p for p in there if p.endswith(f".{parent}.{last}")]
    if exact:
        return f"did you mean {' or '.join(exact[:3])}?"
    if last in ALIASES:
        return str(elsewhere(last, base))
    said = near(last, names)
    return said if said.startswith("did you mean") else elsewhere(last, base, f"{parent}.{last}") or said


def parts(word: str, groups: Iterable[str], choices: Callable[[str], list[str]], command: str) -> str | None:
    """The hint for a word in a slot's place that names parts of some: "rope is a position: ..."."""
    of = [g for g in groups if word in choices(g)]
    if not of:
        return None
    return f"{word} is {_a(of[0])}: llmlab {command} {of[0]}, or {of[0]}={word}"


def bare(word: str, groups: Sequence[str], choices: Callable[[str], list[str]]) -> str:
    """Advice for a word without a value."""
    if of := [g for g in groups if word in choices(g)]:
        return f"{word} is {_a(of[0])}; type {' or '.join(f'{g}={word}' for g in of[:3])}"
    hint = near(word, groups)
    return f"give it a value, {word}=VALUE" + (f"; {hint}" if hint.startswith("did you mean") else "")


def spelled(flag: str, value: str | None, names: Iterable[str]) -> str | None:
    """Advice for a flag as argparse has them, `--resume x`: the words of llmlab have no dashes; None if it is none.

    names: of the root's keys and groups.
    """
    # argparse takes --batch-size for batch_size.
    word = flag.lstrip("-").replace("-", "_")
    first, dot, _ = word.partition(".")
    targets = [word] if first in set(names) and (not dot or word in declared()) else list(ALIASES.get(word, ()))
    targets = targets or _shortest([p for p in declared() if p.rpartition(".")[2] == word])
    if not targets:
        return None
    typed = [t.replace("NAME", value or "NAME") if "=" in t else f"{t}={value or 'VALUE'}" for t in targets]
    return f"keys have no dashes, type {' or '.join(typed)}" + (f"; {NOTES[word]}" if word in NOTES else "")


@functools.cache
def declared() -> list[str]:
    """The dotted keys that some config may have: those of the schema, and the options of parts. Nothing is composed."""
    from llmlab.config.schema import root

    found: dict[str, None] = {}

    def walk(cls: type, above: str) -> None:
        # Annotations of schema.py are texts, by its __future__ import.
        hints: dict[str, typing.Any] = typing.get_type_hints(cls)
        for name, hint in hints.items():
            inner = [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)]
            if inner and typing.get_origin(hint) is not dict:
                walk(typing.cast("type", inner[0]), f"{above}{name}.")
            elif not name.startswith("_"):
                found[f"{above}{name}"] = None

    walk(root(), "")
    for (slot, name), entry in sorted(registry.index().items()):
        found.update(dict.fromkeys(f"{place_of(slot, name)}.{option}" for option in entry.options))
    return list(found)


def argument(word: str, fields: Iterable[str]) -> str:
    """The hint for a word that is no argument of a command with these."""
    known = list(fields)
    if found := [t for t in ARGUMENTS.get(word, ()) if t in known]:
        return f"did you mean {' or '.join(found)}?"
    return near(word, known)


def paths(base: DictConfig | None) -> list[str]:
    """The dotted keys of a config that hold values, not worked out."""
    from omegaconf import DictConfig

    found: list[str] = []

    def walk(node: DictConfig, above: str) -> None:
        # A node that is null has None for its content; one that is missing or an interpolation, a text.
        keys = map(str, node) if node._content is not None and not isinstance(node._content, str) else ()
        for key in keys:
            if not key.startswith("_"):
                # The node itself: `node[key]` works an interpolation out, and raises where it can't.
                inner: Any = node._get_node(key)
                if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
                    walk(inner, f"{above}{key}.")
                else:
                    found.append(f"{above}{key}")

    if isinstance(base, DictConfig):
        walk(base, "")
    return found


def _shortest(found: Sequence[str]) -> list[str]:
    return sorted(found, key=lambda p: (p.count("."), found.index(p)))[:3]


def _a(group: str) -> str:
    return f"{'an' if group[0] in 'aeiou' else 'a'} {group}"
