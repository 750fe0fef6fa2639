"""Parameters by role, which init, weight decay and placement go by instead of names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from llmlab.slots import Role


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter, Role]]:
    """Every parameter once: (path, module, name in it, parameter, role). A shared one bears its first path."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        # recurse=False, since the module is wanted too; duplicates are then told by `seen` alone.
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, module, name, parameter, role_of(module, name)


def role_of(module: nn.Module, name: str) -> Role:
    # By suffix too: XLNet's content_bias, position_bias and segment_bias are parameters of one module.
    if name == "bias" or name.endswith("_bias"):
        return "bias"
    if name in getattr(module, "constants", {}):
        return getattr(module, "role", "norm")
    return getattr(module, "role", "other")


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter, Role]]:
    """(path, parameter, role) of every parameter, as an optimizer part takes them."""
    return [(path, parameter, role) for path, _, _, parameter, role in walk(model)]


def learning(model: nn.Module) -> list[tuple[str, nn.Parameter, Role]]:
    """Parameters that learn, as `parameters` lists them: an optimizer, its state and gradients are of these alone."""
    return [(path, parameter, role) for path, parameter, role in parameters(model) if parameter.requires_grad]
