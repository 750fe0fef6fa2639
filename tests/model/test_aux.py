"""What the experts of all layers say reaches the output: losses added up, a row of visits for each run of a layer."""

import pytest
import torch
from families import batch, build, ids, tiny

CASES = {
    "qwen_moe": ("qwen_moe", "model.n_layers=3", "model.moe.balance=0.1"),
    "one layer twice": ("qwen_moe", "model.n_layers=3", "execute=[0,1,0]", "model.moe.balance=0.1"),
    "a dense layer first": ("deepseek_v3", "model.moe.balance=0.1"),
    "both stacks": ("t5", "moe=topk", "model.moe.balance=0.1"),
}


def said_by_layers(model):
    """(loss, load) of each routed layer, as it runs."""
    said = []
    for stack in model.all_stacks():
        for layer in stack.layers:
            if layer.routed:
                layer.ffn.register_forward_hook(lambda m, i, out: said.append((m.router, out[1])))
    return said


@pytest.mark.parametrize("case", CASES)
def test_losses_add_up_and_loads_stand_in_the_order_of_the_routers(case):
    model = build(*tiny(*CASES[case]))
    said = said_by_layers(model)
    with torch.no_grad():
        aux = model(batch(model)).aux
    assert len(said) >= 2
    torch.testing.assert_close(aux.loss, sum(a.loss for _, a in said))
    assert aux.tokens_per_expert.tolist() == [a.tokens_per_expert.tolist() for _, a in said]
    assert [r for r, _ in said] == model.routers()


def test_padding_visits_no_expert_and_counts_in_no_loss():
    model = build(*tiny("qwen_moe", "model.moe.balance=0.1"))
    text = ids(1, 9)
    padded = torch.cat([text, ids(1, 4, seed=3)], 1)
    valid = torch.arange(13)[None] < 9
    with torch.no_grad():
        alone, aux = model({"ids": text}).aux, model({"ids": padded, "valid": valid}).aux
        cache = model.new_cache(13)
        first = model({"ids": padded[:, :5], "valid": valid[:, :5]}, cache=cache).aux
        second = model({"ids": padded[:, 5:], "valid": valid[:, 5:]}, cache=cache).aux
    torch.testing.assert_close(aux.loss, alone.loss)
    assert torch.equal(aux.tokens_per_expert, alone.tokens_per_expert)
    assert torch.equal(first.tokens_per_expert + second.tokens_per_expert, alone.tokens_per_expert)
