"""Heads as they are typed: `head=pooled` for the objective's one role, `heads.tokens=mlm` for a role by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llmlab.config import learned, spelling
from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed

# Not a dict: `heads.tokens={n_classes: 3}` sets options, which Hydra merges itself.
OF_ROLE = re.compile(r"(\+{0,2})heads\.(\w+)=(?!\s*\{)(.*)", re.DOTALL)
OF_NONE = re.compile(r"(\+{0,2})head(\.\w+)?=(.*)", re.DOTALL)
OPTION, CHOICE = re.compile(r"\+{0,2}heads\.(\w+)\.\w+="), re.compile(r"\+{0,2}head@heads\.(\w+)=")
FIRST = ("model", "size", "experiment", *learned.SLOTS)  # groups that decide which objective there is


def addressed(words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> list[str]:
    """The overrides with each head at its role, `head@heads.ROLE=NAME`, as Hydra wants them.

    compose: makes a config of overrides; it tells the objective. UserError where that has several roles, or none, to which
    `head=NAME` could go.
    """
    found = []
    for word in words:
        if of_role := OF_ROLE.fullmatch(word):
            plus, role, name = of_role.groups()
            word = f"{plus}head@heads.{role}={name}"
        elif of_none := OF_NONE.fullmatch(word):
            plus, option, value = of_none.groups()
            role = _role(word, words, compose)
            word = f"{plus}heads.{role}{option}={value}" if option else f"{plus}head@heads.{role}={value}"
        found.append(word)
    # In front: Hydra applies choices before values wherever they stand, but a later choice of a group replaces an
    # earlier.
    return [*_usual(found, compose), *found]


def problems(composed: Composed, companion: Mapping[str, str] | None, strict: bool) -> list[str]:
    """A line each. A head is built and trained where the objective has its role; typed for another it would do nothing.

    What the family's file names for other objectives may be typed as well: it changes nothing, of which there is a note. Not
    so, if strict, its options.
    """
    cfg = composed.cfg
    if learned.node(cfg) is None:
        return []
    mine = list(learned.heads(cfg) if companion is None else companion)
    typed = [o.lstrip("+").partition("=")[0] for o in composed.overrides]
    wrong = {
        t.package: f"head@{t.package}={t.choice}"
        for t in composed.typed
        if t.group == "head"
        and t.package.removeprefix("heads.") not in mine
        and not t.kept
        and (f"head@{t.package}" in typed or t.package in typed)
    }
    for key in sorted(composed.keys) if strict else ():
        first, _, rest = key.partition(".")
        if first == "heads" and rest.partition(".")[0] not in mine:
            wrong.setdefault(f"heads.{rest.partition('.')[0]}", key)
    return [f"{word}: {_no_such(cfg, mine)}" for word in wrong.values()]


def notes(composed: Composed) -> list[str]:
    """A line for each typed head that the family has anyway, for objectives which are not this one."""
    cfg = composed.cfg
    known = learned.node(cfg) is not None
    mine = list(learned.heads(cfg)) if known else []
    return [
        f"{t.package}={t.choice} is what model={cfg.model.family} has, and changes nothing: " + _no_such(cfg, mine)
        for t in composed.typed
        if known and t.group == "head" and t.kept and t.package.removeprefix("heads.") not in mine
    ]


def _no_such(cfg: DictConfig, mine: Sequence[str]) -> str:
    has = ", ".join(f"heads.{role}=NAME" for role in mine) or "none"
    return f"{learned.typed(cfg)} trains no such head; it has {has}"


def _usual(words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> list[str]:
    """Choices of the heads that the objective brings, where only an option of theirs is typed."""
    typed = {m[1] for w in words if (m := OPTION.match(w))} - {m[1] for w in words if (m := CHOICE.match(w))}
    if not typed:
        return []
    try:
        base = compose(_deciding(words))
        usual = learned.heads(base)
        return [
            f"head@heads.{role}={usual[role]}" for role in sorted(typed) if role in usual and role not in base.heads
        ]
    except Exception:  # of which the others are to blame
        return []


def _deciding(words: Sequence[str]) -> list[str]:
    # Only these: a word that is wrong elsewhere must not keep the objective from being known.
    # And options of the objective: what it trains may depend on them.
    keys = [(w, o.key_or_group) for w in words if (o := spelling.parsed(w)) is not None]
    return [w for w, key in keys if key in FIRST or key.partition(".")[0] in learned.SLOTS]


def _role(word: str, words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> str:
    """The one role of the objective; that of the tokens where there is none to be known, as something else is wrong."""
    try:
        cfg = compose(_deciding(words))
        names = list(learned.heads(cfg))
    except Exception:  # of which the others are to blame
        return "tokens"
    option, _, value = word.lstrip("+").removeprefix("head").partition("=")
    if len(names) == 1:
        return names[0]
    several = " or ".join(f"heads.{role}{option}={value}" for role in names)
    has = f"trains several heads; type {several}" if names else "trains no head; leave it out"
    raise UserError(f"{word}: {learned.typed(cfg)} {has}")
