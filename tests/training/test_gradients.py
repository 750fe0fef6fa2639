"""The gradient of a step is sum / count over its targets, however the batch is cut and on however many ranks."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

SCRIPT = Path(__file__).with_name("gradients.py")
spec = importlib.util.spec_from_file_location("gradients_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

OBJECTIVES = {"clm": ["objective=clm"], "pairs": ["model=bert", "objective=mlm_nsp"], "spans": ["model=spanbert"]}


def close(a, b):
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_cut_in_three_ways(objective, tiny, tmp_path):
    found = [
        script.gradients([*tiny, *OBJECTIVES[objective], f"train.micro_batch_size={micro}"], tmp_path / str(micro))
        for micro in (8, 4, 1)
    ]
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3
    assert close(found[0], found[1]) < 1e-6
    assert close(found[0], found[2]) < 1e-6


def test_it_is_the_mean_over_all_targets_written_out_by_hand(tiny, tmp_path):
    from llmlab.config.compose import compose
    from llmlab.data.order import index
    from llmlab.model.build import build_model
    from llmlab.seeds import key
    from llmlab.training.recipe import Recipe

    overrides = [*tiny, "model=bert", "objective=mlm_only", "train.micro_batch_size=2"]
    found = script.gradients(overrides, tmp_path)
    import numpy as np

    from llmlab.data import Windows

    recipe = Recipe.from_config(compose(overrides))
    windows = Windows(recipe.corpus.train, 16)
    model = build_model(recipe.spec, 1)
    total, count = 0.0, 0
    for row in range(8):
        at = index(1, row, len(windows))
        sample = recipe.objective.prepare(windows[at], np.random.default_rng(key(1, "prepare", 0, at)))
        labels = torch.from_numpy(sample["labels"])[None]
        logits = model({"ids": torch.from_numpy(sample["ids"])[None]}).heads["tokens"]
        total = total + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
        count += int((labels != -100).sum())
    (total / count).backward()
    assert close(found, {n: p.grad for n, p in model.named_parameters()}) < 1e-6


@pytest.mark.slow  # two processes that import Lightning
def test_one_rank_and_two_ranks(tiny, tmp_path):
    """Of an objective whose ranks have unlike numbers of targets."""
    overrides = [*tiny, "model=bert", "objective=mlm_only", "train.micro_batch_size=2"]
    one = script.gradients(overrides, tmp_path)
    out = tmp_path / "two.pt"
    ranks = ["strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    command = [sys.executable, str(SCRIPT), str(out), *overrides, *ranks]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert out.exists(), done.stderr
    assert close(one, torch.load(out, weights_only=True)) < 1e-6
