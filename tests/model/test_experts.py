"""A mixture of experts against a loop over tokens, forward and backward."""

import pytest
import torch
from families import VOCABULARY, build, ids, tiny
from torch import nn
from torch.nn import functional as F

from llmlab import registry
from llmlab.model import experts
from llmlab.model.experts import GroupedLinear, MixtureOfExperts
from llmlab.sizes import FFNTraits, MoETraits, Sizes
from llmlab.slots import Routing
from llmlab.testing import learns

SIZES = Sizes(
    dim=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=None,
    head_dim=8,
    ffn_dim=40,
    vocab_size=10,
    max_positions=8,
    norm_eps=1e-5,
)
SHAPES = {"grouped": 24, "looped": 22}  # widths of an expert that grouped_mm takes, and does not


class Fixed(nn.Module):
    """A router that sends tokens where it is told."""

    def __init__(self, chosen, weights):
        super().__init__()
        self.chosen, self.weights = chosen, weights

    def forward(self, x, valid, total=None):
        return Routing(self.weights, self.chosen)


def mixture(width=24, bias=False, ffn="swiglu", router="topk", seed=0, **moe) -> MixtureOfExperts:
    traits = MoETraits(**{"n_experts": 5, "per_token": 2, "ffn_dim": width, **moe})
    sizes = SIZES.but(moe=traits, ffn=FFNTraits(bias=bias))
    module = MixtureOfExperts(sizes, registry.load("moe", router, {}), registry.load("ffn", ffn, {}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.normal_(0, 0.4, generator=generator)
    return module


def expert(module, e, x, act):
    """One token through one expert, from the stacked weights."""

    def linear(name, x):
        layer = getattr(module.experts, name)
        return layer.weight[e] @ x + (layer.bias[e] if layer.bias is not None else 0.0)

    if hasattr(module.experts, "gate"):
        return linear("down", act(linear("gate", x)) * linear("up", x))
    return linear("down", act(linear("up", x)))


def by_hand(module, x_BTD, act):
    rows = x_BTD.reshape(-1, x_BTD.shape[-1])
    weights, chosen, _ = module.router(rows, None)
    out = []
    for i, x in enumerate(rows):
        y = sum(weights[i, j] * expert(module, int(e), x, act) for j, e in enumerate(chosen[i])) * module.scale
        if module.shared is not None:
            s = module.shared.down(act(module.shared.gate(x)) * module.shared.up(x))
            y = y + (s * torch.sigmoid(module.shared_gate(x)) if module.shared_gate is not None else s)
        out.append(y)
    return torch.stack(out).view_as(x_BTD)


VARIANTS = {
    "topk": {},
    "one expert a token": {"per_token": 1},
    "every expert": {"per_token": 5},
    "scaled, not renormalised": {"scale": 2.5, "renormalise": False},
    "shared": {"n_shared": 2},
    "shared behind a gate": {"shared_dim": 12, "shared_gate": True, "n_shared": 1},
    "sigmoid": {"router": "sigmoid"},
    "biases": {"bias": True, "ffn": "gelu"},
}
ACTS = {"swiglu": F.silu, "gelu": F.gelu}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("path", SHAPES)
def test_against_a_loop_over_tokens(name, path):
    module = mixture(SHAPES[path], **VARIANTS[name])
    act = ACTS[VARIANTS[name].get("ffn", "swiglu")]
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    taken = experts.can_group(x, module.experts.up.weight) and experts.can_group(x, module.experts.down.weight)
    assert taken == (path == "grouped")
    direction = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    y, aux = module(x, None)
    want = by_hand(module, x, act)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    assert aux.tokens_per_expert.sum() == 18 * module.per_token
    names = [n for n, _ in module.named_parameters()]
    inputs = [x, *module.parameters()]
    got = torch.autograd.grad((y * direction).sum(), inputs, allow_unused=True, retain_graph=True)
    slow = torch.autograd.grad((want * direction).sum(), inputs, allow_unused=True)
    for n, a, b in zip(["x", *names], got, slow, strict=True):
        assert (a is None) == (b is None), n
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("path", SHAPES)
def test_experts_that_no_token_visits(path):
    module = mixture(SHAPES[path])
    chosen = torch.tensor([[3, 1], [1, 3], [3, 1]])
    module.router = Fixed(chosen, torch.full((3, 2), 0.5))
    x = torch.randn(1, 3, 16)
    y, aux = module(x, None)
    assert aux.tokens_per_expert.tolist() == [0, 3, 0, 3, 0]
    torch.testing.assert_close(y, by_hand(module, x, F.silu), rtol=1e-4, atol=1e-5)
    y.sum().backward()
    for layer in (module.experts.gate, module.experts.up, module.experts.down):
        assert all((layer.weight.grad[e] == 0).all() for e in (0, 2, 4))
        assert all(layer.weight.grad[e].abs().sum() > 0 for e in (1, 3))


@pytest.mark.parametrize("router", ["topk", "sigmoid"])
def test_padding_counts_in_no_load_and_no_loss(router):
    module = mixture(router=router, balance=0.01, z=0.001 if router == "topk" else 0.0)
    x = torch.randn(2, 6, 16)
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    y, aux = module(x, valid)
    assert aux.tokens_per_expert.sum() == 6 * 2
    other = x.clone()
    other[~valid] = 100.0
    y2, aux2 = module(other, valid)
    assert torch.equal(aux.tokens_per_expert, aux2.tokens_per_expert)
    torch.testing.assert_close(aux.loss, aux2.loss)
    torch.testing.assert_close(y[valid], y2[valid])
    _, alone = module(x[valid][None], None)
    assert torch.equal(alone.tokens_per_expert, aux.tokens_per_expert)
    torch.testing.assert_close(alone.loss, aux.loss)


def test_one_token():
    module = mixture()
    x = torch.randn(1, 1, 16)
    torch.testing.assert_close(module(x, None)[0], by_hand(module, x, F.silu), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_products_are_bfloat16_and_routing_is_not(path, bias):
    module = mixture(SHAPES[path], bias=bias, shared_dim=8, n_shared=1)
    x = torch.randn(2, 5, 16)
    exact, _ = module(x, None)
    rows = []
    hook = module.experts.down.register_forward_hook(lambda m, i, o: rows.append(o.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y, aux = module(x, None)
    hook.remove()
    assert rows == [torch.bfloat16]
    assert y.dtype == torch.float32
    assert torch.equal(aux.tokens_per_expert, module(x, None)[1].tokens_per_expert)
    assert (y - exact).abs().max() < 0.03 * exact.abs().max()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.experts.parameters())


def test_in_bfloat16_altogether():
    module = mixture(shared_dim=8, n_shared=1, shared_gate=True).to(torch.bfloat16)
    y, _ = module(torch.randn(2, 5, 16, dtype=torch.bfloat16), None)
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [16, 6])
def test_a_grouped_linear_is_a_linear_for_each_group(bias, width):
    layer = GroupedLinear(4, 16, width, bias, role="ffn_in")
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.randn(9, 16)
    ends = torch.tensor([2, 2, 8, 9], dtype=torch.int32)
    parts = [
        F.linear(x[a:b], layer.weight[e], layer.bias[e] if bias else None)
        for e, (a, b) in enumerate([(0, 2), (2, 2), (2, 8), (8, 9)])
    ]
    torch.testing.assert_close(layer(x, ends), torch.cat(parts), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- experts that choose, in a model


def test_experts_that_choose_see_the_future_and_are_refused_where_it_is_hidden():
    with pytest.raises(ValueError, match="moe=expert_choice lets tokens see the future"):
        build(*tiny("qwen_moe", "moe=expert_choice"))
    text = ids(1, 12)
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % VOCABULARY
    leaks = build(*tiny("qwen_moe", "moe=expert_choice", "moe.leak_future=true"))
    hides = build(*tiny("qwen_moe"))
    for model, leaky in ((leaks, True), (hides, False)):
        with torch.no_grad():
            one, other = (model({"ids": t}).hidden[:, :8] for t in (text, changed))
        assert ((one - other).abs().max() > 1e-3) == leaky


def test_experts_that_choose_learn_where_every_token_sees_all():
    learns("model=bert", "moe=expert_choice")
    build(*tiny("t5", "moe@stacks.encoder.moe=expert_choice"))
    build(*tiny("bert", "moe=expert_choice", "model.moe.per_token=1"))  # model.moe.renormalise is not read
