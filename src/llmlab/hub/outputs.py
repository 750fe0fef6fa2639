"""Arguments and outputs of a checkpoint's model, by the names that the reference gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from llmlab.model.model import Model
from llmlab.slots import Output

Argument = Tensor | Sequence[Tensor] | bool | None


class Outputs(dict[str, Any]):
    """Tensors by the reference's names, as items and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        # hasattr, copy and pickle ask for names that are not there and go on only at an AttributeError.
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; there are {', '.join(self)}") from None


class Loaded(Protocol):
    """A loaded checkpoint, as a family's own `call` uses it: `HubModel`."""

    model: Model
    config: dict[str, Any]

    def answer(self, out: Output) -> Outputs: ...


def tensors(arguments: Mapping[str, Argument]) -> dict[str, Tensor]:
    """The arguments that are not None. TypeError for one that is no tensor."""
    out: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            out[name] = value
        # None is left out: callers of transformers pass it for "not given".
        elif value is not None:
            raise TypeError(f"{name} must be a tensor, but is {type(value).__name__}")
    return out
