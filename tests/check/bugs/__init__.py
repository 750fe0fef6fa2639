"""Bugs as others have shipped them, put into the real code one by one: the matrix must catch each.

A bug is a function that gives context managers, each of which replaces something real for as long as it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

Patch = AbstractContextManager[Any]


@dataclass(frozen=True)
class Bug:
    """`problem`: what is wrong. `caught`: the checks that see it, each with what a case must have to be asked: "position=alibi"
    is typed in it, "model=t5" is the family as it is, "model=t5 ffn=glu" with another part."""

    name: str
    problem: str
    caught: Mapping[str, str]
    patches: Callable[[], Patch | tuple[Patch, ...]]
    refused: bool = False  # without the bug there is no such model

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def injected(self) -> Iterator[None]:
        with ExitStack() as stack:
            patches = self.patches()
            for patch in patches if isinstance(patches, tuple) else (patches,):
                stack.enter_context(patch)
            yield


BUGS: list[Bug] = []


def bug(problem: str, *, refused: bool = False, **caught: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(patches: Callable[[], Any]) -> Callable[[], Any]:
        BUGS.append(Bug(patches.__name__, problem, caught, patches, refused))
        return patches

    return add


def replaced(owner: Any, **attributes: Any) -> Patch:
    """Attributes of a class or module are these instead."""
    return mock.patch.multiple(owner, **attributes)


def after(owner: Any, change: Callable[[Any], Any]) -> Patch:
    """What the class `owner` makes is changed when it has been made."""
    make = owner.__init__

    def __init__(self: Any, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        change(self)

    return mock.patch.object(owner, "__init__", __init__)


def around(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """`owner.name(...)` is `change(the original, ...)` instead."""
    original = getattr(owner, name)

    def instead(*given: Any, **options: Any) -> Any:
        return change(original, *given, **options)

    return mock.patch.object(owner, name, instead)


def every() -> list[Bug]:
    """All bugs, by what they are about."""
    from bugs import attention, experts, kernels, layers, methods, positions, precision, recipe, state, training

    modules = (attention, kernels, positions, layers, experts, training, precision, recipe, methods, state)
    assert all(m.__doc__ for m in modules)
    return BUGS
