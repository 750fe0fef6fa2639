"""Recipes: one a family, each number with its source beside it; what they resolve to is in tests/golden."""

import json
import re

import pytest

from llmlab.cli import run
from llmlab.config.compose import compose, conf_dir

FAMILIES = ("gpt2", "llama3", "qwen_moe", "qwen2_moe", "gemma3", "deepseek_v3", "bert", "albert", "t5")
FILES = {name: (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8") for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_has_its_source_beside_it(name):
    text = FILES[name]
    assert re.search(r"arXiv:\d{4}\.\d{5}", text.split("defaults:")[0])
    body = text.split(f"experiment_name: {name}\n")[1]
    numbers = [line for line in body.splitlines() if re.search(r": \{?[\w.: ]*\d|shape:|warm:", line)]
    assert len(numbers) >= 7
    assert [line for line in numbers if "  # " not in line] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_is_of_its_family_and_takes_a_rung_and_its_rate(name):
    small = compose([f"experiment={name}", "size=small"]).cfg
    assert (small.experiment_name, small.model.family, small.model.dim, small.optimizer.lr) == (name, name, 768, 6e-4)


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


@pytest.mark.parametrize("name", ["deepseek_v3", "t5"])
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
    assert record["parts"]["schedule"] == {"deepseek_v3": "wsd", "t5": "inverse_sqrt"}[name]
