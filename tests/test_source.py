"""The index read by `ast` says what Python says, and refuses what it can't know."""

import importlib
import inspect
import typing

import pytest

from llmlab import registry, source

PARTS = sorted(registry.index())


def test_there_are_parts_in_every_slot():
    from llmlab.slot_names import SLOTS

    assert {slot for slot, _ in PARTS} == set(SLOTS)
    assert registry.problems() == []


@pytest.mark.parametrize("slot", sorted({slot for slot, _ in PARTS}))
def test_index_says_what_the_signature_says(slot):
    for name in registry.names(slot):
        entry = registry.index()[slot, name]
        cls = getattr(importlib.import_module(entry.module), entry.qualname)
        options = {
            p.name: p
            for p in inspect.signature(cls).parameters.values()
            if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and hasattr(cls, "__dataclass_fields__"))
        }
        assert list(entry.options) == list(options), f"{slot}={name}"
        own = [o for o in entry.options if entry.options[o].default != options[o].default]
        bound = registry.load(slot, name, {}).keywords
        assert all(bound[o] == entry.options[o].default for o in own)  # a kin's own default, given by register
        hints = typing.get_type_hints(cls.__init__)
        for key, option in entry.options.items():
            if option.choices:
                literal = next(
                    a for a in (hints[key], *typing.get_args(hints[key])) if typing.get_origin(a) is typing.Literal
                )
                assert option.choices == typing.get_args(literal)
            elif not option.as_tuple:
                assert option.type == hints[key] or set(typing.get_args(option.type)) == set(
                    typing.get_args(hints[key])
                )
        for key, value in entry.attrs.items():
            assert getattr(cls, key) == value
        assert entry.doc.endswith(inspect.getdoc(cls))  # kin have a line of it of their own before
        assert entry.summary
        assert entry.paper or name in ("none", "function"), (
            f"{slot}={name}: the docstring names no paper (Author year, ...)"
        )
        assert entry.line == inspect.getsourcelines(cls)[1] + len(cls_decorators(cls))


def cls_decorators(cls):
    """Lines of decorators before the class statement."""
    lines = inspect.getsourcelines(cls)[0]
    return lines[: next(i for i, line in enumerate(lines) if line.startswith("class "))]


def read(tmp_path, text):
    file = tmp_path / "part.py"
    file.write_text("from llmlab.registry import register\n" + text)
    return source.parts_of_file(file, "part")


GOOD = '''
from typing import Literal
Kind = Literal["a", "b"]

class Base:
    unused = ("n_kv_heads",)
    def __init__(self, dim: int, /, *, kind: Kind = "a", pair: tuple[float, float] = (0.1, 0.2)): ...

@register("norm", "one")
@register("norm", "other", kind="b", pair=(1, 2))
class Part(Base):
    """One thing. More of it (Someone & Else 1999, arXiv:1234.5678).

    pair: two numbers
    """
    estimates: bool = True
'''


def test_kin_aliases_bases_and_docs(tmp_path):
    one, other = read(tmp_path, GOOD)
    assert (one.name, other.name) == ("one", "other")
    assert one.options["kind"].choices == ("a", "b")
    assert one.options["kind"].default == "a"
    assert (other.options["kind"].default, other.options["pair"].default) == ("b", (1, 2))
    assert one.options["pair"].type == list[float]
    assert one.options["pair"].as_tuple
    assert one.options["pair"].doc == "two numbers"
    assert one.attrs == {"unused": ("n_kv_heads",), "estimates": True}
    assert one.summary == "One thing."
    assert one.paper == "Someone & Else 1999, arXiv:1234.5678"


HELPED = '''
import typing
from typing import Annotated, Literal

@register("norm", "helped")
class Part:
    """One thing (Someone 1999).

    said: in the docstring
    """

    def __init__(
        self,
        *,
        said: Annotated[int, "not here"] = 1,
        way: Annotated[Literal["up", "down"] | None, "which way"] = None,  # not here
        other: typing.Annotated[tuple[int, ...], "of two"] = (1,),
        plain: float = 1.0,  # in a comment
    ): ...
'''


def test_help_of_an_option_is_a_line_of_the_docstring_annotated_or_a_comment(tmp_path):
    options = read(tmp_path, HELPED)[0].options
    said = {"said": "in the docstring", "way": "which way", "other": "of two", "plain": "in a comment"}
    assert {k: o.doc for k, o in options.items()} == said
    assert options["way"].choices == ("up", "down")
    assert (options["other"].type, options["other"].as_tuple) == (list[int], True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class P:\n    def __init__(self, *, eps: float = 1e-5 * 2): ...", "default of eps must be a literal"),
        ("class P:\n    def __init__(self, *, eps=1): ...", "eps needs a type"),
        ("class P:\n    def __init__(self, *, eps: complex = 1): ...", "must be int, float, str, bool"),
        ("class P:\n    def __init__(self, dim, *, eps: int = 1): ...", "positional-only"),
        ("class P:\n    def __init__(self, dim, /, width, *, eps: int = 1): ...", "positional-only"),
        ("class P:\n    def __init__(self, dim, /, *, eps: int = 1, **more): ...", "positional-only"),
        ("class P:\n    def __init__(self, dim, /, *others): ...", "positional-only"),
        ("class P(Other): ...", "P has the constructor of Other, which is not in this file"),
        (
            "class P:\n    def __init__(self, *, x: Literal[1, 'a'] = 1): ...",
            "choices of the option x must be of one type",
        ),
        (
            "class P:\n    def __init__(self, *, x: list[Literal['a']] = ['a']): ...",
            "Literal can't be inside of a list",
        ),
        ("class P:\n    def __init__(self, *, x: dict[int, int] = {[1]: 2}): ...", "default of x must be a literal"),
        (
            "class P:\n    def __init__(self, *, x: Literal[{{}}] = 2): ...",
            "a choice must be a literal, .*unhashable type",
        ),
        ("class P:\n    def __init__(self, *, x: Literal[()] = 2): ...", "the option x has no choices"),
        ("class P:\n    def __init__(self, *, x: 'int |' = 2): ...", "type of the option x can't be read: 'int |'"),
        ("class P:\n    def __init__(self, *, x: A = 2): ...\nA = 'A'", "must be int, float"),
        ("class P:\n    small = {[1]: 2}", "small must be a literal, but is .*: 2} .unhashable type: 'list'"),
        (f"class P:\n    small = {'-' * 2000}1", "small must be a literal, but is nested too deeply"),
        (f"class P:\n    x = {'+'.join('1' * 20000)}", "an expression is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(source.SourceError, match=rf"part\.py:\d+: .*{message}"):
        read(tmp_path, f"from somewhere.norms import Other\n\n@register('norm', 'p')\n{text}")


@pytest.mark.parametrize("base", ["nn.Module", "Position", "Protocol[int]", "Own", "object"])
def test_what_takes_no_options_may_be_a_base(tmp_path, base):
    text = "from torch import nn\nfrom llmlab.slots import Position\nfrom typing import Protocol\nclass Own: ...\n"
    assert read(tmp_path, f"{text}@register('norm', 'p')\nclass P({base}): ...")[0].options == {}


def test_a_class_may_extend_an_imported_one_of_its_own_name(tmp_path):
    text = "from torch.nn import RMSNorm\n\n@register('norm', 'p')\nclass RMSNorm(RMSNorm):\n    estimates = True"
    assert read(tmp_path, text)[0].attrs == {"estimates": True}


def test_a_public_attribute_that_is_no_literal_is_left_alone(tmp_path):
    text = "@register('norm', 'p')\nclass P:\n    table = {[1]: 2}\n    made = dict()"
    assert read(tmp_path, text)[0].attrs == {}


def test_bad_registrations(tmp_path):
    with pytest.raises(source.SourceError, match="must be a literal, but is NAME"):
        read(tmp_path, "@register('norm', NAME)\nclass P: ...")
    with pytest.raises(source.SourceError, match="no option 'x'"):
        read(tmp_path, "@register('norm', 'p', x=1)\nclass P: ...")
    with pytest.raises(source.SourceError, match=r"part\.py:2: "):
        read(tmp_path, "class P(:")
