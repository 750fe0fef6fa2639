"""What a sweep will run, before anything does."""

import pytest

from llmlab.config.compose import compose, vary
from llmlab.errors import UserError
from llmlab.sweep.grid import digest, grid_points, point_name, safe_name, sweeper_argument
from llmlab.sweep.plan import make_plan


def folders(*overrides):
    return [p.folder for p in make_plan(overrides).points]


def test_points_are_those_of_hydras_grammar():
    plan = make_plan(["seed=range(1,4)", "ffn=choice(gelu,swiglu)", "model.dropout=0.1"])
    assert [p.overrides for p in plan.points] == [
        (f"seed={s}", f"ffn={f}", "model.dropout=0.1") for s in (1, 2, 3) for f in ("gelu", "swiglu")
    ]
    assert plan.keys == {"seed": ["1", "2", "3"], "ffn": ["gelu", "swiglu"]}
    assert plan.fixed == ("model.dropout=0.1",)
    assert plan.folder.name == plan.name == safe_name("ffn=choice(gelu,swiglu),seed=range(1,4),model.dropout=0.1", 60)
    assert folders("norm=glob(rms*,exclude=*gemma)") == ["norm=rmsnorm"]


@pytest.mark.slow
def test_glob_finds_choices_of_ones_own(tmp_path):
    (tmp_path / "position").mkdir()
    for theta in (1, 2):
        (tmp_path / f"position/mine_{theta}.yaml").write_text(f"defaults: [rope, _self_]\ntheta: {theta}e4\n")
    plan = make_plan(["position=glob(mine_*)"], [str(tmp_path)])
    assert [p.folder for p in plan.points] == ["position=mine_1", "position=mine_2"]


@pytest.mark.slow
def test_names_do_not_depend_on_the_order_of_typing():
    first, second = (make_plan(o) for o in (["seed=1,2", "norm=layernorm"], ["norm=layernorm", "seed=1,2"]))
    assert first.name == second.name == "seed=1,2,norm=layernorm"
    assert [(p.folder, p.hash) for p in first.points] == [(p.folder, p.hash) for p in second.points]
    assert point_name(["seed=1", "a=2", "x=3"], ["seed", "a"]) == "a=2,seed=1"
    assert point_name(["a='x/y'"], ["a"]) != point_name(["a='x y'"], ["a"])
    assert len(safe_name("x" * 500)) == 120
    for text in ("多" * 110, "多" * 500):  # three bytes each, and names have 255 at most
        name = safe_name(text)
        assert len(name.encode()) <= 200 and name.startswith("多多") and name[-9] == "-"
    assert safe_name("é" * 90) == "é" * 90
    assert make_plan(["seed=1,2", "hydra.launcher.n_jobs=2", "hydra/launcher=joblib"]).name == "seed=1,2"


@pytest.mark.slow
def test_values_set_on_a_composed_config_are_those_composed_with_it():
    base = compose(["attention=mla", "seed=1", "optimizer.lr=1e-3"])
    for values in ({"seed": "2"}, {"optimizer.lr": "2e-3", "attention.kv_rank": "16"}, {"data.seq_len": "64"}):
        varied = vary(base, values)
        overrides = {"attention": "mla", "seed": "1", "optimizer.lr": "1e-3", **values}
        assert varied is not None
        assert digest(varied) == digest(compose([f"{k}={v}" for k, v in overrides.items()]))
        assert digest(varied) != digest(base)
    assert all(vary(base, v) is None for v in ({"seed": "-1"}, {"seed": "a"}, {"sed": "1"}, {"budget.steps": "3"}))
    assert vary(base, {"attention": "mha"}) is None


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        ([], "6dd4f1f8f2b24caa3b92aae75eda555d5df39e342893ad9ab098c9043075b247"),
        (
            ["model=roberta", "size=nano", "seed=3", "attention=gqa", "optimizer.lr=4e-3", "init.std=0.02"],
            "8bdc4ebd1e9a6820361d303e86823ccffcc5cd78443fba3d7adcb738534914d7",
        ),
    ],
)
def test_a_point_has_the_hash_of_sweeps_that_were_written_before_keys_were_added(words, recorded):
    """Of before models, reward, filter, train.learns and data.fields were keys, and objectives had all of their options."""
    assert digest(compose(words)) == recorded


def test_an_added_key_that_says_something_is_hashed(tmp_path):
    from llmlab.config.bookkeeping import ADDED, hashed

    empty = {"data": {"path": "a", "fields": dict.fromkeys(("label", "text"))}, "train": {"learns": None}, "models": {}}
    assert hashed(empty) == {"data": {"path": "a"}, "train": {}}
    said = {
        "data": {"fields": {"label": "category", "text": None}},
        "train": {"learns": ["heads"]},
        "models": {"teacher": "a"},
    }
    assert hashed(said) == {**said, "data": {"fields": {"label": "category"}}}
    both = {"filter": {"length": {"least": 1}, "duplicates": {}}}
    assert hashed(both) != hashed({"filter": dict(reversed(both["filter"].items()))}) and hashed({"filter": {}}) == {}
    assert (
        list(ADDED).index("data.fields") > list(ADDED).index("data.fields.label") and empty["models"] == {}
    )  # what is given is not changed


@pytest.mark.slow
def test_the_hash_is_of_what_changes_numbers(tmp_path):
    usual = digest(compose([]))
    kept = ["sweep=a", "train.keep=3", "data.num_workers=2", "train.sample=false", "norm=rmsnorm"]
    assert digest(compose(kept)) == usual
    assert digest(compose(["trainer.max_steps=3"])) != usual
    # a typed part wins over those of a family's layers, one in a file does not: two models of one config
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment/alibi.yaml"
    file.write_text("# @package _global_\ndefaults: [override /position: alibi]\n")
    in_file = compose(["model=gemma3", "experiment=alibi"], [str(tmp_path)])
    typed = compose(["model=gemma3", "position=alibi"])
    assert in_file.cfg == typed.cfg
    assert digest(in_file) != digest(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("seed=1,1", "seed=1,1: 1 is given twice"),
        ("optimizer.lr=interval(0,1)", "intervals are for hydra/sweeper=optuna"),
        ("norm=glob(zzz*)", "no value is left of it"),
        ("seed=range(0,0)", "seed=range(0,0): no value is left of it"),
        ("seed=range(3,1)", "seed=range(3,1): no value is left of it"),
        ("seed=range(1,1000000000)", "seed=range(1,1000000000): more than 10,000 values"),
        ("seed=shuffle(range(1,1000000000))", "more than 10,000 values"),
        ("seed=range(1,201) model.n_layers=range(1,201)", "the sweep has 40,000 points; at most 10,000 are run"),
        ("hydra.run.dir=x", "hydra.sweep.dir=FOLDER places a sweep"),
        ("resume=x", "typed again, goes on with the sweep"),
        ("sweep=a/b", "it names the sweep's folder; use letters"),
        ("sweep=a,b", "it names the sweep's folder; use letters"),
        ("hydra/sweeper=optuma", "hydra/sweeper=optuma: there is no such hydra/sweeper; did you mean optuna?"),
        ("hydra.launcher.n_jbs=2", "hydra.launcher.n_jbs"),
        ("trainer.devices=1,2", "strategy=ddp or strategy=fsdp (in trainer.devices=2)"),
    ],
)
def test_what_cannot_be_swept_is_said_in_a_line(typed, said):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with pytest.raises(UserError) as e:
        make_plan(typed.split())
    assert said in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("llmlab.sweep.plan.is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"hydra/sweeper=optuna needs the extra optuna: pip install 'llmlab\[optuna\]'"):
        make_plan(["hydra/sweeper=optuna", "optimizer.lr=interval(0,1)"])


@pytest.mark.slow
def test_the_ends_of_what_optuna_may_choose_are_checked_first():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    plan = make_plan(["hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-4,1e-2))", "attention=gqa,mla"])
    assert plan.adaptive
    assert (plan.points, plan.trials) == ((), 20)
    assert {"hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=1"} <= set(plan.defaults)
    with pytest.raises(UserError, match="train.clip must be more than 0, but is -1"):
        make_plan(["hydra/sweeper=optuna", "train.clip=interval(1,-1)"])


RANGES = ["range(1,3)", "range(0,1,0.5)", "range(3)", "range(5,1,-2)", "range(0,1)", "range(start=0,stop=1,step=0.1)"]
RANGES += ["float(range(1,3))", "int(range(0.5,3))", "sort(range(1,5),reverse=true)", "tag(a,b,range(1,4))"]
RANGES += ["shuffle(range(1,5))", "shuffle(tag(q,range(1,4)))"]


@pytest.mark.parametrize("words", RANGES)
def test_a_range_is_handed_over_as_the_values_that_a_grid_of_it_has(words):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override as optunas

    def parse(text):
        return OverridesParser.create().parse_override(text)

    listed = [text for point in grid_points([parse(f"model.dropout={words}")]) for text in point]
    given = parse(sweeper_argument(parse(f"+model.dropout={words}")))
    assert given.get_key_element() == "+model.dropout"
    assert sorted(f"model.dropout={v}" for v in optunas(given).choices) == sorted(listed)
    assert given.value().tags == parse(f"a={words}").value().tags


@pytest.mark.parametrize(
    "words", ["interval(0,1)", "int(interval(0,1.5))", "tag(log,interval(1e-4,1))", "1,2", "3", "[1,2]"]
)
def test_all_else_is_handed_over_as_typed(words):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert sweeper_argument(OverridesParser.create().parse_override(f"a={words}")) == f"a={words}"


@pytest.mark.slow
def test_ranges_of_a_config_are_handed_over_too(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params: {model.n_layers: 'range(1,3)', seed: '4,5'}\n"
    )
    typed = ["experiment=mine", "hydra/sweeper=optuna", "model.dropout=range(0,1,0.5)", "norm=layernorm"]
    plan = make_plan(typed, [str(tmp_path)])
    assert sorted(plan.handed) == [
        "experiment=mine", "model.dropout=choice(0.0,0.5)", "model.n_layers=choice(1,2)", "norm=layernorm"
    ]  # fmt: skip
    assert "model.dropout=range(0,1,0.5)" in plan.typed
    assert make_plan(["seed=range(1,3)"]).handed == ("seed=range(1,3)",)


@pytest.mark.slow
def test_a_sweep_may_stand_in_a_config_of_ones_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params: {seed: '1,2', norm: 'rmsnorm,layernorm'}\n"
    )
    plan = make_plan(["experiment=mine", "seed=3"], [str(tmp_path)])
    assert [p.folder for p in plan.points] == ["norm=rmsnorm", "norm=layernorm"]
    assert plan.fixed == ("seed=3", "experiment=mine")
