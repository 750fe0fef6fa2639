"""my_adapter changes nothing at first, and merged it changes nothing either."""

from dataclasses import replace

import torch

import llmlab
from llmlab.config.spec import PartSpec
from llmlab.model import adapters, build, merging


def scores(model: torch.nn.Module) -> torch.Tensor:
    return model({"ids": torch.arange(12)[None]}, heads={"tokens": None}).heads["tokens"]


def test_nothing_changes_at_first_and_nothing_by_merging():
    base = llmlab.build(["model.dim=24", "model.n_heads=4", "model.n_layers=2", "model.vocab_size=64"])
    part = PartSpec.with_defaults("adapter", "my_adapter")
    model = build.build_model(replace(base.spec, adapter=part))
    build.load(model, base.state_dict(), begins=True)
    assert torch.equal(scores(model), scores(base))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adapters.MARK in name:
                parameter.add_(0.5)
    assert not torch.allclose(scores(model), scores(base), atol=1e-3)
    torch.testing.assert_close(scores(merging.merge(model)), scores(model), atol=1e-5, rtol=1e-5)
