"""A composed config, and the choices by which it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmlab import registry

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec


@dataclass(frozen=True)
class Typed:
    """A group choice on the command line. `package`: the place, "" for the root, "kinds.local" for
    `window@kinds.local.window=full` (the whole package where its last name is not the group's).
    `kept`: it names what was there anyway, so nothing was changed.
    """

    group: str
    package: str
    choice: str | None
    kept: bool = False


class Checkpoint(Protocol):
    """A trained model from outside that a run begins with: it brings choices and values of its own."""

    def merged(self, typed: list[Override], /) -> tuple[list[str], list[str]]:
        """Its overrides and those that were typed; and which of these contradict, a line each."""
        ...

    def contradictions(self, composed: Composed, /) -> list[str]:
        """Values of the composed config that its weights do not fit, a line each."""
        ...


@dataclass(frozen=True)
class Declared:
    """An objective's declaration of a role. heads: role of a head -> its usual part, as of the objective's own. words:
    those of the model where none is chosen; None: one has to be. copies: where none is chosen it is the trained model as that
    begins. warm: where none is chosen it begins, but for its heads, with the weights that the trained model begins with.
    heads_from: role of a head -> that of a finished model's head which stands for it. judges: the run's reward works with it,
    and not the objective. delta: the trained model reads the shared table plus a delta, which alone it moves."""

    role: str
    heads: Mapping[str, str] = field(default_factory=dict)
    trains: bool = True
    shares: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None
    copies: bool = False
    warm: bool = False
    heads_from: Mapping[str, str] = field(default_factory=dict)
    judges: bool = False
    delta: bool = False


@dataclass(frozen=True)
class Chosen:
    """The model chosen for a role: `words` that change the run's own (`composed` is its config), or a finished `source`."""

    declared: Declared
    words: tuple[str, ...] = ()
    source: str | None = None
    composed: Composed | None = None

    @property
    def role(self) -> str:
        return self.declared.role


@dataclass(frozen=True)
class Composed:
    """A config, interpolations resolved on access, and how it came about.

    spec: its model with the vocabulary that the config states, resolved once; None of a config that isn't sound.
    companions: the other models that its objective works with, by role.
    """

    cfg: DictConfig
    typed: tuple[Typed, ...]
    overrides: tuple[str, ...]  # as typed
    effective: tuple[str, ...]  # as composed: without choices that change nothing
    keys: frozenset[str] = frozenset()  # values that were typed, "model.n_kv_heads"
    spec: ModelSpec | None = None
    companions: Mapping[str, Chosen] = field(default_factory=dict)

    def of_this_process(self, *, ranks: bool = False) -> list[str]:
        """The typed parts that other processes can't have, a line each. ranks: those that run the same script have its own."""
        found = []
        for group, name in ((t.group, name) for t in self.typed for name in (t.choice or "").strip("[]").split(",")):
            entry = registry.defined().get((group, name))
            # For a notebook's cell ipykernel gives the name of a file that is never written.
            if entry is not None and not (ranks and entry.path.is_file()):
                found.append(
                    f"{group}={name} is defined in this process alone (at {entry.path}:{entry.line}), but others would "
                    "train it; put it into a file of its own, which LLMLAB_PLUGINS names"
                )
        return found
