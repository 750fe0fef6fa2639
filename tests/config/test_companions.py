"""`models.ROLE=`: what can be chosen for the other models of an objective, and what is refused in a line."""

import pytest
from omegaconf import OmegaConf

from llmlab import registry
from llmlab.config import companions, spelling
from llmlab.config.compose import compose
from llmlab.errors import UserError

ELECTRA = ("model=electra", "objective=rtd")


def chosen(*overrides, role="generator"):
    return companions.spec_of(compose(overrides).companions[role])


def test_words_change_the_runs_own_model():
    own = compose([*ELECTRA, "size=micro", "attention=gqa", "models.generator=[]"])
    assert own.cfg.models == {"generator": []}
    same = companions.spec_of(own.companions["generator"])
    assert same.stacks == own.spec.stacks and {r: p.name for r, p in same.heads.items()} == {"tokens": "mlm"}
    other = chosen(*ELECTRA, "size=micro", "attention=gqa", "models.generator=[model.n_layers=1,attention=mha]")
    assert other.sizes.dim == own.spec.sizes.dim and len(other.stacks[0].layers) == 1
    assert other.stacks[0].layers[0].parts["attention"].name == "mha"


def test_a_size_in_the_words_is_not_that_of_the_runs_sizes():
    nano, micro = (compose(["model=electra", f"size={size}"]).spec.sizes for size in ("nano", "micro"))
    found = chosen(*ELECTRA, "model.dim=48", "model.n_heads=4", "model.n_layers=3", "models.generator=[size=micro]")
    assert (found.sizes.dim, found.sizes.n_layers, found.sizes.n_heads) == (micro.dim, micro.n_layers, micro.n_heads)
    published = chosen(*ELECTRA, "size=nano", "models.generator=[model=electra_base_generator]")
    assert published.sizes.dim == 256 != nano.dim


def test_words_change_the_model_of_an_experiment(tmp_path):
    """Its family, its sizes and its parts, but for those that the words name."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: electra\n  - override /ffn: geglu\n"
        "model: {dim: 48, n_layers: 3, n_heads: 4, dropout: 0.25}\n"
    )

    def found(*words, more=()):
        overrides = ["experiment=own", *more, f"models.generator=[{','.join(words)}]"]
        composed = compose(overrides, [str(tmp_path)])
        return companions.spec_of(composed.companions["generator"]), composed.spec

    one, own = found("norm=rmsnorm")
    parts = one.stacks[0].layers[0].parts
    assert one.sizes == own.sizes and (own.family, own.sizes.dim, own.sizes.dropout) == ("electra", 48, 0.25)
    assert (one.family, parts["norm"].name, parts["ffn"].name) == ("electra", "rmsnorm", "geglu")
    micro = compose(["model=electra", "size=micro"]).spec.sizes
    assert found("size=micro")[0].sizes.dim == micro.dim and found("model.n_layers=1")[0].sizes.dim == 48
    assert found("norm=rmsnorm", more=["model.dim=64"])[0].sizes.dim == 64
    assert found("model=bert")[0].family == "bert"


def test_a_role_has_default_words_which_the_config_then_states():
    nano = compose(["model=electra"])
    assert nano.cfg.objective["_part_"] == "rtd" and nano.cfg.models == {"generator": ["width=1/4"]}
    sizes = companions.spec_of(nano.companions["generator"]).sizes
    assert (sizes.dim, sizes.n_heads, sizes.ffn_dim, sizes.n_layers) == (32, 1, 128, nano.spec.sizes.n_layers)
    # A family's file may say another, and says nothing where the objective has no such role.
    base = chosen("model=electra_base").sizes
    assert (base.dim, base.n_heads, base.ffn_dim, base.n_layers) == (256, 4, 1024, 12)
    deberta = chosen("model=deberta_v3").sizes
    assert (deberta.dim, deberta.n_layers) == (128, 2)
    assert compose(["model=electra_base", "objective=mlm"]).cfg.models == {}


def test_a_width_is_of_the_runs_own():
    found = chosen("model=electra_small", "models.generator=[width=0.5,model.n_layers=3]").sizes
    assert (found.dim, found.n_heads, found.ffn_dim, found.n_layers) == (128, 2, 512, 3)
    grouped = chosen(*ELECTRA, "attention=gqa", "model.n_heads=8", "model.n_kv_heads=4", "models.generator=[width=1/2]")
    assert (grouped.sizes.n_heads, grouped.sizes.n_kv_heads) == (4, 2)
    wide = ("model.ffn_dim=40", "models.generator=[width=1/2,model.dim=64]")
    assert (chosen(*ELECTRA, *wide).sizes.dim, chosen(*ELECTRA, *wide).sizes.ffn_dim) == (64, 20)


def test_another_family_has_the_vocabulary_of_the_run():
    found = chosen("objective=distill", "models.teacher=[model=gpt2]", "tokenizer.vocab_size=300", role="teacher")
    assert found.family == "gpt2" and found.sizes.vocab_size == 320 and found.heads["tokens"].name == "lm"


@pytest.mark.parametrize("word", ["head=lm_bias", "heads.tokens=lm_bias", "head@heads.tokens=lm_bias"])
def test_a_head_in_the_words_is_the_companions(word):
    typed = ("objective=distill", "head=lm", f"models.teacher=[model=gpt2,{word}]")
    assert chosen(*typed, role="teacher").heads["tokens"].options["bias"]
    assert not compose(typed).spec.heads["tokens"].options["bias"]


def test_a_typed_choice_of_the_run_without_effect_on_its_companion_is_no_mistake():
    found = chosen(*ELECTRA, "model.n_kv_heads=1", "attention=gqa", "models.generator=[attention=mha]")
    assert found.stacks[0].layers[0].parts["attention"].name == "mha"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("[size=nano]", '["size=nano"]'),
        ("[size=nano, attention=mla]", '["size=nano","attention=mla"]'),
        ("[layers.cycle=[a,b],model.dim=16]", '["layers.cycle=[a,b]","model.dim=16"]'),
        ("[]", "[]"),
        ("runs/a=b, c", '"runs/a=b, c"'),
        ("hf=FOLDER", '"hf=FOLDER"'),
    ],
)
def test_words_and_paths_as_the_grammar_takes_them(typed, meant):
    assert spelling.spelled([f"models.x={typed}"], tuple) == [f"models.x={meant}"]


def test_a_sweep_goes_over_several():
    found = spelling.spelled(["models.x=[size=nano,mask=causal],[size=micro],RUN"], tuple, sweep=True)
    assert found == ['models.x=["size=nano","mask=causal"],["size=micro"],"RUN"']


REFUSED = {
    "missing": (
        ("objective=distill",),
        r"objective=distill needs a model for the role teacher: models\.teacher=\[size=nano\]",
    ),
    "unknown role": (
        (*ELECTRA, "models.genrator=[]"),
        "models.genrator: objective=rtd has no such role; did you mean",
    ),
    "no role": (("models.x=[]",), "models.x: objective=clm works with no other model"),
    "a number": (("objective=distill", "models.teacher={a: 1}"), "models.teacher"),
    "unknown group": ((*ELECTRA, "models.generator=[sise=nano]"), "sise is no choice of a model; did you mean size"),
    "of the run": (
        (*ELECTRA, "models.generator=[train.clip=1]"),
        "train is no choice of a model; it holds for the whole run",
    ),
    "no width": ((*ELECTRA, "models.generator=[width=wide]"), "models.generator: width=wide must be a share"),
    "two widths": (
        (*ELECTRA, "models.generator=[size=nano,width=1/2]"),
        "width=1/2 is of the run's own width, and size",
    ),
    "unknown choice": (
        (*ELECTRA, "models.generator=[size=nanno]"),
        "models.generator: size=nanno: there is no such size",
    ),
    "unknown key": (
        (*ELECTRA, "models.generator=[model.dimm=3]"),
        "models.generator: model.dimm: there is no such key",
    ),
    "a value": ((*ELECTRA, "models.generator=[model.dim=x]"), "models.generator: model.dim=x: must be a whole number"),
    "a head of no role": ((*ELECTRA, "models.generator=[heads.x=mlm]"), "models.generator: .*heads.x=mlm"),
    "a head of another kind": (
        (*ELECTRA, "models.generator=[heads.tokens=token]"),
        "models.generator: heads.tokens=token.*choose lm or mlm$",
    ),
    "finished, but shared": ((*ELECTRA, "models.generator=RUN"), "has an embedding of its own, but the role shares"),
    "no folder": (("objective=distill", "models.teacher=/nowhere/run"), "there is no such run folder"),
    "no run": (("objective=distill", "models.teacher=/tmp"), "there is no run.json in it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_in_a_line(case):
    overrides, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as error:
        compose(overrides)
    assert "\n" not in str(error.value)


def odd():
    """What is declared by the objective `odd`; UserError also where its file is left out."""
    if why := registry.broken("objective", "odd"):
        raise UserError(why)
    return companions.declared(OmegaConf.create({"objective": {"_part_": "odd"}}))


DECLARED = {
    "{'x': {'head': {}}}": "head",
    "{'x': {'shares': ('positions',)}}": "positions",
    "{'model': {}}": "model",
}


@pytest.mark.parametrize("literal", DECLARED)
def test_a_declaration_that_cannot_be_meant_is_refused(literal, tmp_path, monkeypatch):
    name = f"declared_{abs(hash(literal))}"
    (tmp_path / f"{name}.py").write_text(
        "from llmlab.registry import register\n\n\n"
        f'@register("objective", "odd")\nclass Odd:\n    """Odd."""\n\n    models = {literal}\n\n'
        "    def __init__(self, vocabulary, seq_len, /): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMLAB_PLUGINS", name)
    with pytest.raises(UserError, match=DECLARED[literal]):
        odd()
