"""Objectives whose declarations depend on their options: `when`, and `joins` of other objectives."""

from __future__ import annotations

import pytest

from llmlab import attributes, registry
from llmlab.config.compose import compose
from llmlab.training import recipe

TINY = ("model=bert", "size=nano", "tokenizer.vocab_size=300")
PARTS = '''
from llmlab.registry import register

class Base:
    def __init__(self, vocabulary, seq_len, /, *, pair: str = "none", weight: float = 0.0): ...

@register("objective", "paired")
class Paired:
    """Tokens, and pairs of texts if wanted (Nobody 2026)."""

    mask = "bidirectional"
    heads = {"tokens": "mlm"}
    special = ("mask",)
    topologies = ("encoder",)
    measures = {"nll": "nll"}
    when = {
        "pair=nsp": {"heads": {"pair": "pooled"}, "special": ("cls", "sep"), "measures": {"pair": "nll"}},
        "weight": {"models": {"teacher": {"heads": {"tokens": "mlm"}, "trains": False}}},
    }

    def __init__(self, vocabulary, seq_len, /, *, pair: str = "none", weight: float = 0.0): ...

@register("objective", "several")
class Several:
    """Objectives at once (Nobody 2026)."""

    heads = {}
    mask = "bidirectional"
    joins = "of"

    def __init__(self, vocabulary, seq_len, /, *, of: list[str] | None = None): ...
'''


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    (tmp_path / "declared_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMLAB_PLUGINS", "declared_parts")


def test_an_option_adds_heads_tokens_and_models():
    plain = compose([*TINY, "objective=paired"])
    assert (list(plain.spec.heads), recipe.special(plain.cfg), plain.companions) == (["tokens"], ("mask",), {})
    paired = compose(
        [*TINY, "objective=paired", "objective.pair=nsp", "head@heads.pair=pooled", "heads.pair.n_classes=2"]
    )
    assert list(paired.spec.heads) == ["tokens", "pair"]
    assert recipe.special(paired.cfg) == ("mask", "cls", "sep")
    with pytest.raises(
        ValueError, match=r"objective=paired needs a model for the role teacher: models.teacher=\[size=nano\]"
    ):
        compose([*TINY, "objective=paired", "objective.weight=0.5"])
    with pytest.raises(ValueError, match="objective=paired trains no such head; it has heads.tokens=NAME"):
        compose([*TINY, "objective=paired", "heads.classes=pooled"])
    made = registry.load("objective", "paired", {"pair": "nsp"})(None, 8)
    assert attributes.get(made, "objective", "measures") == {"nll": "nll", "pair": "nll"}


def test_objectives_are_joined():
    entry = registry.declared("objective", "several", {"of": ["mlm", "paired", "span_corruption"]})
    assert entry.attribute("heads") == {"tokens": "mlm"}  # as the first has it
    assert entry.special[:3] == ("mask", "pad", "eos") and len(entry.special) == 103
    assert entry.attribute("mask") == "bidirectional"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('when = {"pear=nsp": {}}', "when names 'pear', which is no option of the part; did you mean pair"),
        ('when = {"pair=nsp": {"head": {}}}', r"when\['pair=nsp'\]: head is no attribute of the slot objective"),
        (
            'when = {"pair": {"heads": {"pair": "poled"}}}',
            "heads names head=poled, which isn't there; did you mean pooled",
        ),
        ('joins = "off"', "joins names 'off', which is no option"),
    ],
)
def test_a_wrong_declaration_is_a_problem_of_its_file(tmp_path, monkeypatch, line, said):
    text = (
        PARTS.replace('    joins = "of"\n', "")
        .replace('"several"', '"wrong"')
        .replace("of: list[str] | None", "pair: str | None")
    )
    (tmp_path / "wrong_parts.py").write_text(
        text.replace("    heads = {}\n", f"    heads = {{}}\n    {line}\n").replace('"paired"', '"other"')
    )
    monkeypatch.setenv("LLMLAB_PLUGINS", "wrong_parts")
    with pytest.raises(ValueError, match=said):
        registry.load("objective", "wrong", {})
