"""Recipes: one a family, each number with its source beside it; what they resolve to is in tests/golden."""

import json
import re
from pathlib import Path

import pytest
from families import mostly_slow

from llmlab.commands.cli import run
from llmlab.config.compose import compose
from llmlab.config.model_files import conf_dir

FIRST = ("gpt2", "llama3", "qwen_moe", "qwen2_moe", "gemma3", "deepseek_v3", "bert", "albert", "t5")
FAMILIES = (
    *FIRST,
    "gpt1",
    "gpt3",
    "gpt_neo",
    "gpt_neox",
    "opt",
    "bloom",
    "mpt",
    "falcon",
    "llama1",
    "llama2",
    "olmo",
    "olmo2",
    "deepseek_v2",
    "baichuan",
    "stablelm",
    "phi",
    "qwen1",
    "glm_130b",
    "roberta",
    "modernbert",
    "t5_v1_1",
    "mt5",
)
SCHEDULES = {"deepseek_v3": "wsd", "t5": "inverse_sqrt", "roberta": "linear", "deepseek_v2": "multistep"}
FILES = {name: (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8") for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_has_its_source_beside_it(name):
    text = FILES[name]
    assert re.search(r"arXiv:\d{4}\.\d{5}", text.split("defaults:")[0])
    body = text.split(f"experiment_name: {name}\n")[1]
    numbers = [line for line in body.splitlines() if re.search(r": \{?[\w.: ]*\d|shape:|warm:", line)]
    assert len(numbers) >= 7
    assert [line for line in numbers if "  # " not in line] == []


def test_a_family_has_a_recipe_or_the_docs_say_why_not():
    models = "\n".join(file.read_text(encoding="utf-8") for file in (conf_dir() / "model").glob("*.yaml"))
    docs = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    without = docs.split("No recipe is published for")[1].split("\n\n")[0]
    families = set(re.findall(r"\bfamily: (\w+)", models))
    assert families - set(FAMILIES) == set(re.findall(r"`(\w+)`", without))
    assert families >= set(FAMILIES)


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, FIRST))
def test_a_recipe_is_of_its_family_and_takes_a_rung_and_its_rate(name):
    small = compose([f"experiment={name}", "size=small"]).cfg
    # With norms behind the residual the rung's is too large.
    rate = 2e-4 if small.block._part_ == "post" else 6e-4
    assert (small.experiment_name, small.model.family, small.model.dim, small.optimizer.lr) == (name, name, 768, rate)


def test_rates_and_first_values_of_families_with_norms_behind_the_residual_follow_the_width():
    tiny, large = (compose(["model=bert", f"size={size}"]).cfg for size in ("tiny", "large"))
    assert (tiny.optimizer.lr, tiny.init.std) == pytest.approx((2e-4 * 8, 0.02 * 8**0.5), rel=2e-3)
    assert (large.optimizer.lr, large.init.std) == (1e-4, 0.02)
    # That of ELECTRA's small model (table 6) is the most, at which a discriminator learns.
    assert compose(["model=electra", "size=tiny"]).cfg.optimizer.lr == 5e-4
    typed = compose(["model=electra", "size=tiny", "optimizer.lr=1e-2", "init.std=0.02"]).cfg
    assert (typed.optimizer.lr, typed.init.std) == (1e-2, 0.02)
    assert compose(["model=bert_base"]).cfg.init.std == 0.02


def test_what_papers_say():
    """Some numbers as one would look them up."""
    bert = compose(["experiment=bert"]).cfg
    assert (bert.optimizer.beta2, bert.optimizer.weight_decay, bert.schedule._part_) == (0.999, 0.01, "linear")
    v3 = compose(["experiment=deepseek_v3"]).cfg
    assert v3.schedule.decay_share == pytest.approx(4.3 / 14.8, abs=1e-4)
    assert v3.schedule.hold_share == pytest.approx(0.5 / 14.8, abs=1e-4)
    t5 = compose(["experiment=t5"]).cfg
    assert t5.schedule.warmup_share == pytest.approx(10**4 / 2**19, abs=1e-4)
    llama = compose(["experiment=llama3"]).cfg
    assert llama.schedule.warmup_share == pytest.approx(8_000 / 1_200_000, abs=1e-5)


@pytest.mark.slow
def test_what_more_papers_say():
    gpt3 = compose(["experiment=gpt3"]).cfg.schedule
    assert (gpt3.warmup_share, gpt3.hold_share) == pytest.approx((375e6 / 300e9, 40 / 300), abs=1e-4)
    assert gpt3.warmup_share + gpt3.decay_share + gpt3.hold_share == pytest.approx(1, abs=1e-4)
    roberta = compose(["experiment=roberta"]).cfg
    assert (roberta.optimizer.beta2, roberta.train.clip, roberta.model.dropout) == (0.98, None, 0.1)
    olmo2 = compose(["experiment=olmo2"]).cfg
    assert olmo2.schedule.warmup_share == pytest.approx(2_000 * 1024 * 4096 / 5e12, abs=1e-5)
    modern = compose(["experiment=modernbert", "optimizer.lr=8e-4"]).cfg
    assert modern.optimizer.weight_decay * modern.optimizer.lr == pytest.approx(1e-5)


@pytest.mark.slow
def test_what_papers_say_of_post_training():
    tune = [
        compose([f"experiment={name}", f"model.dim={dim}"]).cfg
        for name, dim in (("alpaca", 4096), ("gpt1_finetune", 768))
    ]
    assert [cfg.optimizer.lr for cfg in tune] == [2e-5, 6.25e-5]
    alpaca, gpt1 = tune
    assert (alpaca.schedule.warmup_share, alpaca.optimizer.weight_decay, alpaca.tokenizer.template) == (
        0.03,
        0,
        "alpaca",
    )
    assert (gpt1.objective.lm_weight, gpt1.train.batch_size, gpt1.heads.classes.dropout) == (0.5, 32, 0.1)
    stages = [compose([f"experiment=llama3_{name}", "model.dim=16384"]).cfg for name in ("sft", "rejection", "dpo")]
    assert stages[0].optimizer.lr == 1e-5
    assert (stages[2].alignment.beta, stages[2].alignment.nll) == (0.1, 0.2)


@pytest.mark.slow
def test_a_recipe_of_kin():
    cfg = compose(["experiment=llama2", "model=mistral"]).cfg
    assert (cfg.model.family, cfg.optimizer.eps) == ("mistral", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "t5", "roberta", "deepseek_v2"])
def test_a_recipe_trains(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(
        "It was a bright cold day in April, and the clocks were striking thirteen. " * 300
    )
    small = [
        "data=files",
        "data.path=text.txt",
        "tokenizer=char",
        "model.dim=32",
        "model.n_layers=2",
        "data.seq_len=32",
    ]
    small += ["train.batch_size=4", "train.validation_batches=1", "trainer.max_steps=2", "hydra.run.dir=out"]
    assert run(["train", f"experiment={name}", *small]) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["steps"], record["experiment"]) == ("completed", 2, name)
    assert record["parts"]["schedule"] == SCHEDULES[name]


@pytest.mark.slow
def test_recipes_of_post_training_on_a_fresh_machine(tmp_path, monkeypatch, capsys):
    """Llama 3's round, each stage with the run of the one before; Alpaca's and GPT-1's from nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    small = ["model.dim=32", "model.n_layers=1", "train.batch_size=8", "train.validation_batches=1", "budget.steps=2"]
    runs = {
        "llama3_sft": (),
        "llama3_rejection": ("init_from=llama3_sft",),
        "llama3_dpo": ("init_from=llama3_rejection",),
    }
    for name, more in {**runs, "alpaca": (), "gpt1_finetune": ()}.items():
        assert run(["train", f"experiment={name}", *small, *more, f"hydra.run.dir={name}"]) == 0
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert (record["status"], record["steps"], record["experiment"]) == ("completed", 2, name)
