"""The gradient of a step is sum / count over its targets; that it is so however the batch is cut, test_objectives.py has."""

import torch
from gradients import gradients
from torch.nn import functional as F


def test_it_is_the_mean_over_all_targets_written_out_by_hand(tiny, tmp_path):
    from llmlab.config.compose import compose
    from llmlab.data.order import index
    from llmlab.model.build import build_model
    from llmlab.seeds import key
    from llmlab.training.recipe import Recipe

    overrides = [*tiny, "model=bert", "objective=mlm_only", "train.micro_batch_size=2"]
    found = gradients(overrides, tmp_path)
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
    want = {n: p.grad for n, p in model.named_parameters()}
    assert found.keys() == want.keys()
    assert max(float((found[n] - want[n]).abs().max()) for n in want) < 1e-6
