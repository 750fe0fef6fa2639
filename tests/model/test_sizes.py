"""The ladder of sizes is fair between families, and every published size has a published number of parameters."""

import pytest
from families import FAMILIES, QUICK, spec
from published import POOLED, PUBLISHED, WITHOUT_HEADS

from llmlab.config import model_files
from llmlab.config.model_files import conf_dir
from llmlab.model.build import assemble

RUNGS = sorted(p.stem for p in (conf_dir() / "size").glob("*.yaml"))


def active_in_layers(model) -> int:
    """Parameters that a token meets in the layers, each as often as it is run."""
    total = 0
    for stack in model.stacks.values():
        for i in stack.spec.execute:
            layer = stack.layers[i]
            total += sum(p.numel() for p in layer.parameters())
            position = stack.positions[stack.position_of[i]]
            total += sum(p.numel() for p in position.parameters()) if position.scope == "layer" else 0
            if layer.routed:
                experts = sum(p.numel() for p in layer.ffn.experts.parameters())
                total -= experts * (layer.ffn.n_experts - layer.ffn.per_token) // layer.ffn.n_experts
    return total


def test_there_is_a_ladder():
    assert {"nano", "micro", "mini", "small"} <= set(RUNGS)


ALIKE = [pytest.param(QUICK, "nano", id="some-nano")]
ALIKE += [pytest.param(FAMILIES, r, id=r, marks=pytest.mark.slow) for r in RUNGS if r in ("tiny", "nano", "xl")]


@pytest.mark.parametrize(("families", "rung"), ALIKE)
def test_at_a_rung_families_are_alike(families, rung):
    counts = {}
    for family in families:
        model = assemble(spec(f"model={family}", f"size={rung}"))
        layers = sum(len(stack.spec.execute) for stack in model.stacks.values())
        counts[family] = (layers, model.sizes.dim, active_in_layers(model))
    assert len({c[:2] for c in counts.values()}) == 1, counts
    active = [c[2] for c in counts.values()]
    assert max(active) <= 1.03 * min(active), {f: round(c[2] / min(active), 4) for f, c in counts.items()}


def test_every_published_size_is_here():
    files = {p.stem for p in (conf_dir() / "model").glob("*.yaml") if model_files.published(p)}
    assert files == set(PUBLISHED) | set(WITHOUT_HEADS) | set(POOLED)
