"""What is composed: the law of parts that a family has anyway, places, budgets, every file of conf/."""

import time
from pathlib import Path

import pytest
from families import mostly_slow
from omegaconf import OmegaConf

import llmlab
from llmlab import registry
from llmlab.config import hydra_config, layout, limits, traits
from llmlab.config.compose import compose
from llmlab.config.composed import Typed
from llmlab.config.model_files import conf_dir
from llmlab.errors import UserError
from llmlab.slot_names import SLOTS


def test_the_law_keeps_a_presets_options_and_lets_them_be_set():
    assert compose(["model=llama3", "position=rope"]).cfg.position.theta == 500_000
    assert compose(["model=llama3", "position=rope", "position.theta=7"]).cfg.position.theta == 7
    assert compose(["model=gemma3", "norm=rmsnorm"]).cfg.norm.offset == 1.0
    assert compose(["model=llama3", "position=alibi"]).cfg.position == {"_part_": "alibi"} | {
        k: o.default for k, o in registry.index()["position", "alibi"].options.items()
    }


def test_what_a_family_has_anyway_leaves_the_run_as_it_is():
    composed = compose(["model=llama3", "attention=gqa", "norm=rmsnorm", "seed=77"])
    assert composed.effective == ("model=llama3", "seed=77")
    folder = hydra_config.hydra_node(composed.effective).run.dir
    assert folder.endswith("-llama3") and "hydra" not in composed.cfg
    time.sleep(1.01)
    assert hydra_config.hydra_node(composed.effective).run.dir != folder  # is named by the time at which it is asked


@pytest.mark.parametrize("word", ["+attention=gqa", "++attention=gqa", "attention@attention=gqa"])
def test_a_word_that_hydra_refuses_is_refused_also_where_it_changes_nothing(word):
    with pytest.raises(UserError):
        compose(["model=llama3", word])


def test_places_that_were_typed():
    typed = compose(
        ["model=gemma3", "window@kinds.local.window=full", "attention@kinds.global.attention=mla", "position=alibi"]
    ).typed
    assert typed == (
        Typed("model", "", "gemma3"),
        Typed("window", "kinds.local", "full"),
        Typed("attention", "kinds.global", "mla"),
        Typed("position", "", "alibi"),
    )
    t5 = compose(["model=t5", "attention@stacks.decoder.cross_attention=gqa"])
    assert t5.typed[1] == Typed("attention", "stacks.decoder.cross_attention", "gqa")
    assert t5.cfg.stacks.decoder.cross_attention._part_ == "gqa"


def test_a_kept_choice_that_other_layers_do_not_have_is_said():
    composed = compose(["model=gemma3", "window=full"])
    notes = traits.notes(composed, layout.resolve(composed))
    assert [n for n in notes if n.startswith("window=full is what model=gemma3 has")]
    assert not [n for n in notes if "position" in n]


def test_an_unused_trait_of_the_family_is_a_note_and_a_typed_one_an_error():
    composed = compose(["model=llama3", "attention=mla"])
    assert any(n.startswith("mla: ") and "n_kv_heads" in n for n in traits.notes(composed, layout.resolve(composed)))
    with pytest.raises(UserError, match="^model.n_kv_heads: attention=mla does not use it; .*gqa[^\n]*$"):
        compose(["model=llama3", "attention=mla", "model.n_kv_heads=2"])


def test_a_config_that_comes_back_from_a_launchers_process_spoils_no_other():
    cloudpickle = pytest.importorskip("cloudpickle")
    cfg = compose(["model=t5", "model.n_layers=4"]).cfg
    assert cloudpickle.loads(cloudpickle.dumps(cfg)) == cfg
    assert compose(["model=t5", "model.n_layers=6"]).cfg.stacks.encoder.n_layers == 3


def test_a_typed_budget_replaces_the_default():
    assert compose([]).cfg.budget.tokens is not None
    budget = compose(["budget.steps=7"]).cfg.budget
    assert dict(budget) == {"tokens": None, "steps": 7, "flops": None, "minutes": None}


def test_the_experiment_wins_over_the_model_that_it_selects_and_typed_wins_over_it(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: gpt2\n  - override /norm: rmsnorm\n"
        "  - override /optimizer: adamw\nseed: 5\nmodel: {dim: 64}\noptimizer: {lr: 0.5}\n"
    )
    cfg = compose(["experiment=mine"], [str(tmp_path)]).cfg
    assert (cfg.model.family, cfg.norm._part_, cfg.seed, cfg.model.dim, cfg.optimizer.lr) == (
        "gpt2",
        "rmsnorm",
        5,
        64,
        0.5,
    )
    cfg = compose(["experiment=mine", "norm=layernorm", "seed=6", "model=llama3"], [str(tmp_path)]).cfg
    assert (cfg.model.family, cfg.norm._part_, cfg.seed) == ("llama3", "layernorm", 6)


def test_problems_of_an_experiment_name_its_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    for text, message in [
        ("model: {dimm: 64}", "experiment/bad.yaml: there is no key 'model.dimm'; did you mean dim"),
        ("seed: many", "experiment/bad.yaml.* must be a whole number, but is 'many'"),
        ("defaults:\n  - override /norm: rmsnrom", "rmsnrom.*did you mean rmsnorm"),
        ("model: {dim: [", r"bad.yaml:\d+: "),
    ]:
        (tmp_path / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{text}\n")
        with pytest.raises(UserError, match=message):
            compose(["experiment=bad"], [str(tmp_path)])


SLOTS_WITH_PRESETS = sorted({p.parent.name for p in conf_dir().glob("*/*.yaml")} & set(SLOTS))


PRESETS_NEED = {  # the model of which they are the objective
    ("objective", "glm_2022"): ["model=glm_2022"],
    ("objective", "chatglm1"): ["model=chatglm1"],
    ("objective", "distilbert"): ["model=distilbert", "models.teacher=[]"],
    ("objective", "mlm_nsp"): ["model=bert"],
    ("objective", "mlm_sop"): ["model=albert"],
    ("objective", "rtd_large"): ["model=electra"],
    ("objective", "ul2"): ["model=t5"],
    ("objective", "ul2_decoder"): ["model=llama3"],
}


@pytest.mark.parametrize("group", mostly_slow(SLOTS_WITH_PRESETS, ["head"]))
def test_presets_compose_and_bear_no_stored_name(group):
    presets = [p.stem for p in (conf_dir() / group).glob("*.yaml")]
    assert not set(presets) & set(registry.names(group))
    for preset in presets:
        place = "head@heads.tokens" if group == "head" else group
        extra = ["model.n_heads=16", "model.dim=256"] if "deepseek" in preset else PRESETS_NEED.get((group, preset), [])
        assert compose([f"{place}={preset}", *extra]).typed[0].choice == preset


def test_the_ranges_name_keys_that_exist():
    cfg = llmlab.compose(["logger=[wandb,tensorboard]"])
    for key in (*limits.AT_LEAST, *limits.POSITIVE, *limits.SHARES, *limits.CHOICES):
        parent, _, last = key.rpartition(".")
        assert last in (OmegaConf.select(cfg, parent) if parent else cfg), key


def test_trainer_keys_are_lightnings():
    import inspect

    from lightning.pytorch import Trainer

    from llmlab.config import trainer

    signature = {n: p.default for n, p in inspect.signature(Trainer.__init__).parameters.items() if n != "self"}
    assert {n: default for n, (_, default) in trainer.arguments().items()} == signature
    assert set(trainer.ELSEWHERE) <= set(signature)


def test_conf_holds_no_python_targets():
    for file in Path(conf_dir()).rglob("*.yaml"):
        assert "_target_" not in file.read_text(), f"{file}: parts are named, never targeted"


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["model=gemma3", "window@kinds.global.window=sliding"], "kinds.global.window"),
        (["model=t5", "norm@stacks.decoder.norm=layernorm"], "stacks.decoder.norm"),
    ],
)
def test_any_slot_of_a_kind_or_a_stack_can_be_named(overrides, place):
    """Also where the family's file names nothing; the rest of the config stays as it was."""
    composed = compose(overrides)
    assert OmegaConf.select(composed.cfg, place)["_part_"] == overrides[1].partition("=")[2]
    assert composed.overrides == tuple(overrides)
    before, after = compose(overrides[:1]).cfg, composed.cfg.copy()
    OmegaConf.update(after, place, None)
    assert after == before


def test_few_compositions_find_what_is_wrong_among_many_values():
    """Each costs 0.1 s; a config.json becomes some 25 overrides. All problems are named, wherever they stand."""
    from llmlab.config import explain

    asked = []
    known = explain.Known([], lambda group: [])

    def run(overrides):
        asked.append(overrides)
        if wrong := [o for o in overrides if o.endswith("=bad")]:
            raise ValueError(f"Value 'bad' could not be: {wrong[0]}")
        return {}

    for bad, most in (({7}, 14), ({0, 23}, 26), (set(), 2)):
        typed = [f"k{i}={'bad' if i in bad else i}" for i in range(24)]
        asked.clear()
        parsed, _ = explain.parse(typed, explain.Known([], lambda group: []))
        problems, good = explain.every_problem(parsed, run, known)
        assert len(problems) == len(bad) and [o.input_line for o in good] == [t for t in typed if "bad" not in t]
        assert all(f"k{i}=bad" in " ".join(problems) for i in bad) and len(asked) <= most


def test_a_head_is_typed_for_the_one_role_or_by_the_roles_name(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text": "x", "label": 1}\n')
    data = ["objective=classification", f"data={tmp_path / 'r.jsonl'}"]
    same = [
        ["head=pooled", "head.pool=last"],
        ["heads.classes=pooled", "heads.classes.pool=last"],
        ["head@heads.classes=pooled", "heads.classes.pool=last"],
        ["heads.classes.pool=last"],  # of the head that the objective brings
        ["head.pool=last"],
    ]
    found = [compose(["model=bert", *data, *words]) for words in same]
    assert len({str(c.cfg.heads) for c in found}) == 1 and found[0].cfg.heads.classes.pool == "last"
    assert {c.spec.heads["classes"].name for c in found} == {"pooled"}
    assert compose(["heads.tokens=mlm"]).cfg.heads.tokens._part_ == "mlm"
    assert compose(["model=gpt2", "head=lm_bias"]).cfg.heads.tokens.bias


def test_a_head_that_the_family_has_and_nothing_trains_is_a_note():
    words = ["model=bert", "objective=classification"]
    said = (
        "heads.tokens=mlm is what model=bert has, and changes nothing: objective=classification trains no such head; "
    )
    composed = compose([*words, "heads.tokens=mlm"])
    assert traits.notes(composed, composed.spec)[0] == f"{said}it has heads.classes=NAME"
    for same in ([*words], ["model=bert", "heads.tokens=mlm"]):
        composed = compose(same)
        assert not [n for n in traits.notes(composed, composed.spec) if n.startswith("heads.")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model=roberta", "head=pooled"],
            "objective=mlm asks for those of the vocabulary; choose lm or mlm; objective=classification",
        ),
        (["model=bert", "heads.classes=pooled"], "objective=mlm trains no such head; it has heads.tokens=NAME"),
        (
            ["model=bert", "objective=mlm_only", "heads.pair.act=relu"],
            "heads.pair.act: objective=mlm trains no such head; it has heads.tokens=",
        ),
        (
            ["model=bert", "objective=classification", "heads.tokens=mlm", "heads.tokens.act=relu"],
            "heads.tokens.act: objective=classification trains no such head; it has heads.classes=NAME",
        ),
        (
            ["objective=classification", "mask=causal"],
            "heads.classes=pooled reads the first token .*; set heads.classes.pool=last",
        ),
        (["head=pooles"], "head=pooles: there is no such head; did you mean pooled"),
        (["data.fields.label=x"], "data.fields.label is of records, but the objective reads texts"),
        (["data.fields.lable=x"], "data.fields.lable: there is no such key in data.fields; did you mean label"),
    ],
)
def test_heads_that_nothing_trains_and_fields_that_nothing_reads(words, said):
    with pytest.raises(UserError, match=said) as e:
        compose(words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model.dim=64", "seed=3", "model=gpt2"],
        ["norm=layernorm", "norm.eps=1e-3"],  # no such key
        ["model.attention.qk_norm=head", "position=rope", "position.theta=5", "+position.other=1"],
        ["size=nano", "++model.dim=48", "model.dim=32", "~model.dim", "layers.cycle=[a,b]", "+kinds.a={}"],
        ["model=t5", "attention@stacks.decoder.attention=mla", "stacks.decoder.n_layers=3", "~reward"],
        ["filter=[length,duplicates]", "filter.length.least=9", "data.path='a, b'", "hydra.run.dir=x/${model.dim}"],
        ["hydra.run.dri=x"],
        ["norm={_part_:rmsnorm}", "norm.offset=1"],
        ["models.teacher=[size=nano]", "model=gpt2", "budget={steps:7}"],
        ["seed=1,2"],
        ["seed=", "data.seq_len=x"],
        ["seed=", "modle.dim=1"],
        ["sedd=1"],
        ["model=nothing"],
        ["a b"],
        ["seed@here=1"],
    ],
    ids=str,
)
def test_values_set_in_kept_choices_are_what_hydra_composes(words):
    import hydra

    def told(make):
        try:
            cfg = make()
        except Exception as e:
            return type(e), str(e)
        kinds = {key: OmegaConf.get_type(cfg, key) for key in cfg}
        return OmegaConf.to_yaml(cfg), kinds, OmegaConf.is_struct(cfg), str(cfg.norm)

    def by_hydra():
        with hydra_config.session():
            return hydra.compose("config", words)

    hydra_config.run((), ())
    assert told(lambda: hydra_config.run(tuple(words), ())) == told(by_hydra)
