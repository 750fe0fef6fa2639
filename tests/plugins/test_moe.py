"""Routers against loops and against the reference implementations."""

import math

import pytest
import torch
from parts import build, close, names, part, randn, sizes

from llmlab.model.experts import MixtureOfExperts

ROUTERS = [n for n in names("moe") if n not in ("none", "expert_choice")]  # whose tokens choose


def router(name="topk", options=None, **traits):
    traits = {"n_experts": 8, "per_token": 2, **traits}
    made = build(part("moe", name, **(options or {})), sizes(moe=traits))
    if hasattr(made, "bias"):
        made.bias.zero_()
    return made


def test_every_router_is_here():
    assert set(names("moe")) == {"none", "topk", "sigmoid", "expert_choice"}
    assert part("moe", "none").func.dense and not part("moe", "topk").func.dense


@pytest.mark.parametrize("renormalise", [True, False])
def test_topk_is_a_loop_over_tokens(renormalise):
    made = router(renormalise=renormalise, balance=0.3, z=0.2)
    x = randn(9, 24)
    weights, experts, loss = made(x, None)
    visits, mean, z = [0.0] * 8, [0.0] * 8, 0.0
    for n in range(9):
        logits = (made.gate.weight.double() @ x[n].double()).tolist()
        total = sum(math.exp(v) for v in logits)
        p = [math.exp(v) / total for v in logits]
        best = sorted(range(8), key=lambda e: -p[e])[:2]
        assert experts[n].tolist() == best
        want = [p[e] / (sum(p[b] for b in best) if renormalise else 1) for e in best]
        assert weights[n].tolist() == pytest.approx(want, abs=1e-6)
        for e in range(8):
            visits[e] += (e in best) / 18
            mean[e] += p[e] / 9
        z += math.log(total) ** 2 / 9
    want = 0.3 * 8 * sum(f * p for f, p in zip(visits, mean, strict=True)) + 0.2 * z
    assert loss.item() == pytest.approx(want, rel=1e-5)


def test_topk_equals_mixtral():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    reference = MixtralTopKRouter(MixtralConfig(hidden_size=24, num_local_experts=8, num_experts_per_tok=2))
    made = router(balance=0.0)
    reference.weight.data.copy_(made.gate.weight)
    x = randn(30, 24)
    _, want_weights, want_experts = reference(x)
    weights, experts, loss = made(x, None)
    assert torch.equal(experts, want_experts) and loss is None
    close(weights, want_weights, 1e-6)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (2, 1), (4, 4)])
def test_topk_in_groups_equals_deepseek_v2(groups, kept):
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        hidden_size=24,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=groups,
        topk_group=kept,
        topk_method="group_limited_greedy",
        num_attention_heads=4,
    )
    reference = DeepseekV2TopkRouter(config)
    made = router("topk", {"groups": groups, "groups_kept": kept}, per_token=3, renormalise=False)
    reference.weight.data.copy_(made.gate.weight)
    x = randn(40, 24)
    _, want_weights, want_experts = reference(x)
    weights, experts, _ = made(x, None)
    (got, want) = (torch.zeros(40, 8).scatter(1, e, w) for w, e in ((weights, experts), (want_weights, want_experts)))
    close(got, want, 1e-6)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (2, 1), (4, 4)])
@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid_equals_deepseek(groups, kept, renormalise):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=24,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=renormalise,
        routed_scaling_factor=1.0,
    )
    reference = DeepseekV3TopkRouter(config)
    made = router("sigmoid", {"groups": groups, "groups_kept": kept}, per_token=3, renormalise=renormalise)
    made.bias.copy_(randn(8, seed=3) * 0.3)
    reference.weight.data.copy_(made.gate.weight)
    reference.e_score_correction_bias.copy_(made.bias)
    x = randn(40, 24)
    _, want_weights, want_experts = reference(x)
    weights, experts, _ = made(x, None)

    def by_expert(w, e):
        return torch.zeros(40, 8).scatter(1, e, w)

    close(by_expert(weights, experts), by_expert(want_weights, want_experts), 1e-6)


def test_the_bias_chooses_but_does_not_weigh():
    made, x = router("sigmoid"), randn(20, 24)
    made.bias[5] = 100.0
    weights, experts, _ = made(x, None)
    assert (experts[:, 0] == 5).all()
    scores = torch.sigmoid(x @ made.gate.weight.T).gather(1, experts)
    close(weights, scores / scores.sum(1, keepdim=True))


def test_the_bias_moves_towards_experts_with_few_tokens():
    made = router("sigmoid", {"rate": 0.01})
    made.after_step(torch.tensor([0, 10, 4, 4, 4, 4, 4, 2]))
    assert made.bias.tolist() == pytest.approx([0.01, -0.01, 0, 0, 0, 0, 0, 0.01])
    assert made.bias.dtype == torch.float32 and "bias" in made.state_dict()


def test_the_bias_balances_a_lopsided_router():
    made, x = router("sigmoid", {"rate": 0.02}), randn(200, 24)
    made.gate.weight.data[0] += 0.5 * x.mean(0)

    def load():
        return torch.bincount(made(x, None).experts.flatten(), minlength=8)

    before = load()
    for _ in range(200):
        made.after_step(load())
    assert load().float().std() < before.float().std() / 3


@pytest.mark.parametrize("name", ROUTERS)
def test_balance_loss_is_its_coefficient_at_uniform_routing(name):
    """Each token prefers its own pair of experts, all pairs equally often: both shares are uniform."""
    made = router(name, balance=0.25)
    with torch.no_grad():
        made.gate.weight.zero_()
        made.gate.weight[:, :8] = torch.eye(8)
    x = torch.zeros(4, 24)
    for n in range(4):
        x[n, 2 * n : 2 * n + 2] = 3.0
    loss = made(x, None).loss
    assert loss.item() == pytest.approx(0.25, rel=1e-5)
    assert made(x[:1].expand(4, 24), None).loss > 0.35


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_counts_in_no_loss(name):
    made, x = router(name, balance=0.3, z=0.1), randn(10, 24)
    valid = torch.tensor([True] * 6 + [False] * 4)
    close(made(x, valid).loss, made(x[:6], None).loss, 1e-6)
    assert torch.isfinite(made(x, torch.zeros(10).bool()).loss)


@pytest.mark.parametrize("name", ROUTERS)
def test_gradients_reach_the_gate_from_weights_and_from_the_loss(name):
    made, x = router(name, balance=0.3), randn(10, 24)
    for pick in (lambda r: r.weights[:, 0].sum(), lambda r: r.loss):
        made.gate.weight.grad = None
        pick(made(x, None)).backward()
        assert made.gate.weight.grad.abs().sum() > 1e-3


@pytest.mark.parametrize("name", ROUTERS)
def test_logits_are_float32_under_autocast(name):
    made, x = router(name), randn(10, 24)
    want = made(x, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = made(x, None)
    assert torch.equal(got.weights, want.weights) and torch.equal(got.experts, want.experts)


@pytest.mark.parametrize("name", ["topk", "sigmoid"])
def test_groups_that_can_not_give_enough_experts_are_refused(name):
    for options in ({"groups": 3}, {"groups": 8, "groups_kept": 1}, {"groups": 2, "groups_kept": 3}):
        with pytest.raises(ValueError, match=r"moe\.groups_kept=\d of moe\.groups=\d"):
            router(name, options)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_a_mixture_is_a_loop_over_tokens_and_experts(name, ffn):
    changed = sizes(
        moe={"n_experts": 4, "per_token": 2, "ffn_dim": 8, "n_shared": 1, "shared_gate": True, "scale": 1.7}
    )
    mixture = build(lambda s: MixtureOfExperts(s, part("moe", name), part("ffn", ffn)), changed)
    x, valid = randn(2, 5, 24), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    got, aux = mixture(x, valid)
    weights, experts, loss = mixture.router(x.flatten(0, 1), valid.flatten())
    load = [0] * 4
    for n, v in enumerate(x.flatten(0, 1)):
        want = mixture.shared(v) * torch.sigmoid(mixture.shared_gate(v))
        for w, e in zip(weights[n], experts[n].tolist(), strict=True):
            groups = torch.tensor([0] * e + [1] * (4 - e), dtype=torch.int32)
            want = want + 1.7 * w * mixture.experts(v[None], groups)[0]
            load[e] += bool(valid.flatten()[n])
        close(got.flatten(0, 1)[n], want, 1e-4)
    assert aux.tokens_per_expert.tolist() == load
    close(aux.loss, loss)
