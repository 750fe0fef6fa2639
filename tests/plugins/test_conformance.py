"""What every part owes, whatever its slot."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from parts import SIZES, part, sizes
from torch import nn

from llmlab import registry
from llmlab.slots import Linear, Position, Table

PARTS = sorted(key for key, e in registry.index().items() if e.module.startswith("llmlab_plugins."))
WITHOUT_PAPER = {("moe", "none"), ("ffn", "none"), ("reward", "function")}


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.embed_dim = nn.Parameter(torch.empty(50, 24)), 24


NORM = part("norm", "rmsnorm")
ARGUMENTS = {
    "embedding": lambda: (SIZES, Position(), NORM, None),
    "position": lambda: (SIZES,),
    "norm": lambda: (24, 1e-5),
    "block": lambda: (SIZES, NORM, ("attention", "ffn")),
    "attention": lambda: (sizes(attention={"qkv_bias": True, "sink": True, "qk_norm": "head"}), NORM),
    "ffn": lambda: (24, 40, partial(Linear, bias=True)),
    "moe": lambda: (SIZES.but(sees_all=True),),
    "head": lambda: (SIZES, NORM, Embedded()),
}
MODULES = [key for key in PARTS if key[0] in ARGUMENTS]


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_a_part_says_in_one_line_what_it_is_and_whose(slot, name):
    entry = registry.index()[slot, name]
    first = entry.doc.split("\n")[0]
    assert 20 < len(first) <= 120 and first[0].isupper()
    assert bool(entry.paper) != ((slot, name) in WITHOUT_PAPER)
    assert not [key for key, option in entry.options.items() if not option.doc], "every option says what it does"


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_options_are_keywords_with_defaults(slot, name):
    factory = part(slot, name)
    # A part whose declarations depend on its options is built by a function that is given the class.
    for parameter in inspect.signature(factory.args[0] if factory.args else factory.func).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_ONLY, parameter.KEYWORD_ONLY)
        if parameter.kind == parameter.KEYWORD_ONLY:
            assert parameter.default is not parameter.empty and parameter.annotation is not parameter.empty


@pytest.mark.parametrize(("slot", "name"), MODULES)
def test_is_built_without_memory_and_names_the_role_of_every_parameter(slot, name):
    with torch.device("meta"):
        module = part(slot, name)(*ARGUMENTS[slot]())
    assert isinstance(module, nn.Module)
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
    assert {k for k, _ in module.named_buffers()} <= set(module.state_dict()), "no buffer that a checkpoint lacks"
    for child in module.modules():
        own = dict(child.named_parameters(recurse=False))
        constants = getattr(child, "constants", {})
        assert set(constants) <= set(own)
        for key in own:
            known = isinstance(child, Linear | Table) or key in constants or key.endswith("bias") or key == "sink"
            assert known, f"{type(child).__name__}.{key} has no role"


@pytest.mark.parametrize(("slot", "name"), MODULES)
def test_two_of_a_part_share_nothing(slot, name):
    with torch.device("meta"):
        first, second = (part(slot, name)(*ARGUMENTS[slot]()) for _ in range(2))
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


@pytest.mark.parametrize(
    "kin", [("ffn", "gelu", "relu"), ("attention", "mha", "gqa"), ("embedding", "token", "scaled")]
)
def test_kin_are_names_of_one_class(kin):
    slot, *kin_names = kin
    assert len({part(slot, name).func for name in kin_names}) == 1
    assert len({repr(part(slot, name).keywords) for name in kin_names}) == len(kin_names)
