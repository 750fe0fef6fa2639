"""Families whose own objective llmlab doesn't have yet."""

import pytest
import yaml

from llmlab.config import stand_ins
from llmlab.config.compose import compose
from llmlab.config.model_files import conf_dir

# Trained in their papers by what their files choose: masked tokens, spans, or the next token.
OWN = {"roberta": "mlm", "modernbert": "mlm", "t5": "span_corruption", "t5_v1_1": "span_corruption"}
OWN |= {"mt5": "span_corruption", "electra": "rtd", "deberta_v3": "rtd_gdes", "xlnet": "plm", "mpnet": "mpnet"}
OWN |= {"bert": "mlm_nsp", "albert": "mlm_sop", "spanbert": "span_mlm", "bart": "denoise", "pegasus": "gap_sentences"}
OWN |= {"glm_2022": "glm_2022", "deepseek_v3": "mtp", "glm_130b": "glm_130b", "chatglm1": "chatglm1", "elmo": "elmo"}


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
        (["model=gemma3"], "objective=clm stands in for what gemma3's paper trains by, distillation of a larger model"),
        (["model=gemma3", "objective=clm"], "distillation of a larger model"),  # naming what it has changes nothing
        (["model=bart_base"], None),
        (["model=bart_base", "objective=span_corruption"], None),
        (["model=xlnet", "objective=clm", "mask=causal"], None),
        (["model=distilbert"], "arXiv:1910.01108): objective=distilbert models.teacher=RUN"),
        (["model=gemma3"], "arXiv:2503.19786): objective=distill models.teacher=RUN"),
        (["model=distilbert", "objective=distilbert", "models.teacher=[]"], None),
        (["model=electra"], None),
        (["model=roberta"], None),
        ([], None),
    ],
)
def test_the_note(words, line):
    found = stand_ins.note(compose(words).cfg)
    assert (found is None) if line is None else (line in found)
