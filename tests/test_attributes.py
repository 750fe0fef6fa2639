"""What parts declare of themselves stands in one table, and what is not in it is refused where it is written."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab import attributes, registry, source
from llmlab.attributes import TABLE, problem
from llmlab.slot_names import SLOTS

ROOT = Path(__file__).parents[1]
OBJECTIVE = '''
from llmlab.registry import register

@register("objective", "mine")
class Mine:
    """Next tokens (Nobody 2026)."""

    mask = "causal"
    {line}

    def __init__(self, vocabulary, seq_len, /, *, weight: float = 1.0): ...
'''


def read(tmp_path, line, slot="objective"):
    file = tmp_path / "mine.py"
    file.write_text(OBJECTIVE.replace('"objective"', f'"{slot}"').format(line=line))
    return source.parts_of_file(file, "mine")[0]


def test_every_slot_has_a_table_and_every_default_fits():
    assert set(TABLE) == {attributes.EVERY, *SLOTS}
    for slot in SLOTS:
        for name, a in attributes.of_slot(slot).items():
            assert a.doc
            assert problem(slot, name, a.default) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'topologys = ("decoder",)',
            "topologys is no attribute of the slot objective .*; did you mean topologies?",
        ),
        ("bits_per_bytes = True", "bits_per_bytes is no attribute .*valid: .*measures"),
        ("bits_per_byte = True", 'bits_per_byte is called otherwise now; write measures = {"nll": "bits"}'),
        ("fixed_count = True", "fixed_count is called otherwise now; write fixed_counts"),
        ("fixed_countz: bool = True", "fixed_countz is no attribute .*did you mean .*fixed_counts"),
        ('topologies = ("decodr",)', "topologies can't be 'decodr'; did you mean decoder"),
        ('topologies = "decoder"', r"topologies must be tuple\[str, ...\], but is 'decoder'"),
        ("fixed_counts = 1", "fixed_counts must be bool, but is 1"),
        ("fixed_counts = bool(1)", r"fixed_counts must be a literal, but is bool\(1\)"),
        ('special = tuple(f"s{i}" for i in range(3))', "special must be a literal"),
        ('measures = {"nll": "likelihood"}', "measures can't be 'likelihood'"),
        ('models = {"teacher": {"train": True}}', "models must be dict"),
        ('reads = "pair"', "reads can't be 'pair'; did you mean pairs"),
        ('small = {"wieght": 2.0}', "small names 'wieght', which is no option of the part; did you mean weight"),
        ('unused = ("n_kv_head",)', "unused can't be 'n_kv_head'; did you mean n_kv_heads"),
    ],
)
def test_what_is_not_in_the_table_is_refused_by_file_and_line(tmp_path, line, message):
    with pytest.raises(source.SourceError, match=rf"mine\.py:9: {message}"):
        read(tmp_path, line)


def test_what_is_ones_own_begins_with_an_underscore_or_is_no_literal(tmp_path):
    entry = read(tmp_path, '_table = {"a": 1}\n    made = staticmethod(len)\n    fixed_counts: bool')
    assert entry.attrs == {"mask": "causal"}
    assert entry.attribute("fixed_counts") is False
    with pytest.raises(KeyError):
        entry.attribute("fixed_countz")


def test_a_type_that_is_no_literal_is_taken_from_the_class(tmp_path):
    file = tmp_path / "fast.py"
    file.write_text(
        'import torch\nfrom llmlab.registry import register\n\n@register("kernel", "fast")\nclass Fast:\n'
        '    devices = ("cuda",)\n    dtypes = (torch.bfloat16,)\n'
    )
    assert source.parts_of_file(file, "fast")[0].attrs == {"devices": ("cuda",)}


def test_one_bad_part_is_left_out_and_breaks_no_other(tmp_path, monkeypatch):
    """A misspelt attribute, and one that names a part which isn't there: said at the start, refused where it is chosen."""
    pack = tmp_path / "attribute_pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    for name, line in (
        ("bad", "topologys = ()"),
        ("blind", 'heads = {"tokens": "lmm"}'),
        ("good", "fixed_counts = True"),
    ):
        (pack / f"{name}.py").write_text(OBJECTIVE.replace('"mine"', f'"{name}"').format(line=line))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMLAB_PLUGINS", "attribute_pack")
    assert registry.index()["objective", "good"].attribute("fixed_counts") is True
    bad, blind = registry.problems()
    assert "bad.py:9: topologys is no attribute" in bad
    assert "blind.py:5: heads names head=lmm, which isn't there; did you mean lm or mlm?" in blind
    for name, said in (("bad", "topologys"), ("blind", "head=lmm")):
        with pytest.raises(ValueError, match=f"objective={name} can't be read: .*{said}") as e:
            registry.load("objective", name, {})
        assert "\n" not in str(e.value)


CHILD = '''
from llmlab.registry import register
from llmlab_plugins.objective.mlm import MaskedLM

@register("objective", "child")
class Child(MaskedLM):
    """Masked tokens, fewer of them (Nobody 2026)."""

    {more}

    def __init__(self, vocabulary, seq_len, /):
        super().__init__(vocabulary, seq_len, rate=0.1)
'''


def test_what_a_base_in_another_file_declares_is_written_on_the_class(tmp_path, monkeypatch):
    """The index reads one file at a time: it would take the child of an MLM for causal, and say nothing."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "attribute_child.py").write_text(CHILD.format(more=""))
    monkeypatch.setenv("LLMLAB_PLUGINS", "attribute_child")
    with pytest.raises(
        ValueError, match=r"objective=child: .*py:6: Child inherits mask = 'bidirectional' from another file"
    ) as e:
        registry.load("objective", "child", {})
    assert "\n" not in str(e.value)
    base, known = registry.index()["objective", "mlm"].attrs, attributes.of_slot("objective")
    own = "\n    ".join(f"{name} = {value!r}" for name, value in base.items() if not known[name].own)
    (tmp_path / "attribute_grown.py").write_text(CHILD.replace('"child"', '"grown"').format(more=own))
    monkeypatch.setenv("LLMLAB_PLUGINS", "attribute_grown")
    assert registry.load("objective", "grown", {})


GONE = ("small", "when", "joins", "joins_options", "joins_names")  # what they name are options


def test_a_part_may_be_a_subclass_without_its_options(tmp_path, monkeypatch):
    """Of any shipped part, in a file of one's own: `telling`, and what names options that are gone, are the base's affair."""
    lines, parts = ["from llmlab.registry import register"], list(registry.index().items())
    for i, ((slot, name), entry) in enumerate(parts):
        known = attributes.of_slot(slot)
        base = getattr(importlib.import_module(entry.module), entry.qualname)
        given = [p.name for p in inspect.signature(base).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        repeated = [f"    {k} = {v!r}" for k, v in entry.attrs.items() if not known[k].own and k not in GONE]
        lines += [
            f"from {entry.module} import {entry.qualname} as Base{i}",
            f'@register("{slot}", "less_{name}")',
            f"class Less{i}(Base{i}):",
            '    """The same (Nobody 2026)."""',
            *repeated,
            f"    def __init__({', '.join(['self', *given, *'/'])}):",
            f"        super().__init__({', '.join(given)})",
        ]
    (tmp_path / "attribute_less.py").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMLAB_PLUGINS", "attribute_less")
    assert registry.problems() == []
    for slot, name in dict(parts):
        assert registry.load(slot, f"less_{name}", {})


def test_every_part_of_llmlab_is_what_its_file_says():
    for slot, name in registry.index():
        options = registry.index()[slot, name].options
        registry.load(slot, name, {k: None for k, o in options.items() if o.required})


def test_the_base_class_of_positions_has_the_defaults_of_the_table():
    from llmlab.slots import Position

    own = {k: v for k, v in vars(Position).items() if isinstance(v, bool | int | str) and not k.startswith("_")}
    assert own == {k: a.default for k, a in TABLE["position"].items()}


def test_sentinels_are_computed_where_they_are_declared():
    entry = registry.index()["objective", "span_corruption"]
    assert entry.special == ("pad", "eos", *(f"sentinel_{i}" for i in range(100)))
    assert registry.index()["objective", "mlm"].special == ("mask",)


def test_the_page_is_what_the_table_says():
    assert (ROOT / "docs" / "attributes.md").read_text() == attributes.page(), (
        "python -m llmlab.attributes > docs/attributes.md"
    )


def test_the_table_needs_no_torch():
    code = "import sys, llmlab.attributes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
