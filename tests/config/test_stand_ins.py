"""Families whose own objective llmlab doesn't have yet."""

import pytest
import yaml

from llmlab.config import stand_ins
from llmlab.config.compose import compose
from llmlab.config.model_files import conf_dir

# Trained in their papers by what their files choose: masked tokens alone, spans, or the next token.
OWN = {"roberta": "mlm", "modernbert": "mlm", "t5": "span_corruption", "t5_v1_1": "span_corruption"}
OWN |= {"mt5": "span_corruption", "electra": "rtd", "deberta_v3": "rtd", "deepseek_v3": "mtp"}


def files():
    """{family: objective} as the files of conf/model say, without composing them."""
    found, chosen = {}, {}
    for path in (conf_dir() / "model").glob("*.yaml"):
        found[path.stem] = yaml.safe_load(path.read_text())

    def objective(name):
        for entry in found[name].get("defaults", []):
            if isinstance(entry, dict) and "override /objective" in entry:
                return entry["override /objective"]
        bases = [e for e in found[name].get("defaults", []) if isinstance(e, str) and e in found]
        return objective(bases[0]) if bases else "clm"

    for name, content in found.items():
        if (content.get("model") or {}).get("family") == name:
            chosen[name] = objective(name)
    return chosen


def test_every_family_that_has_a_stand_in_is_in_the_table():
    chosen = files()
    assert {name: chosen[name] for name in stand_ins.TABLE} == {n: s.objective for n, s in stand_ins.TABLE.items()}
    others = {n: o for n, o in chosen.items() if o != "clm" and n not in stand_ins.TABLE}
    assert others == OWN
    assert all("arXiv:" in s.paper for s in stand_ins.TABLE.values())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model=xlnet"], "objective=mlm stands in for what xlnet's paper trains by, permutation language modelling"),
        (["model=xlnet", "objective=mlm"], "permutation language modelling"),  # naming what it has changes nothing
        (["model=bart_base"], "text infilling"),
        (["model=xlnet", "objective=clm", "mask=causal"], None),
        (["model=roberta"], None),
        ([], None),
    ],
)
def test_the_note(words, line):
    found = stand_ins.note(compose(words).cfg)
    assert (found is None) if line is None else (line in found)
