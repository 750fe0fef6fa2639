"""Twins of routers and activations, which are written from papers, against the functions of transformers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from twins import moe, simple

from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.settings import Setting

pytestmark = pytest.mark.slow  # importing transformers' models takes seconds
pytest.importorskip("transformers")


def observed(name, sizes, **options):
    """What a twin is given, and x as a tensor."""
    given = OBSERVERS["moe"](Setting("moe", name, options, sizes)).given
    return given, torch.from_numpy(given.inputs["x"]).float()


def table(weights, n, n_experts):
    return [[weights.get((t, e), -1.0) for e in range(n_experts)] for t in range(n)]


def test_deepseek_v3s_router():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    given, x = observed("sigmoid", {"moe.n_experts": 8}, groups=4, groups_kept=2)
    router = DeepseekV3TopkRouter(
        SimpleNamespace(
            num_experts_per_tok=3,
            num_local_experts=8,
            hidden_size=x.shape[1],
            routed_scaling_factor=1.0,
            n_group=4,
            topk_group=2,
            norm_topk_prob=True,
        )
    )
    router.weight.data.copy_(torch.from_numpy(given.weights["router.gate.weight"]))
    router.e_score_correction_bias.copy_(torch.from_numpy(given.weights["router.bias"]))
    with torch.no_grad():
        _, weights, experts = router(x)
    theirs = torch.full((len(x), 8), -1.0).scatter(1, experts, weights)
    ours = table(moe.sigmoid_weights(given, given.inputs["x"], None), len(x), 8)
    assert theirs.numpy() == pytest.approx(np.array(ours), abs=1e-6)


def test_mixtrals_router_and_losses():
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    given, x = observed("topk", {})
    valid, k = torch.from_numpy(given.inputs["valid"]), 3
    router = MixtralTopKRouter(SimpleNamespace(num_experts_per_tok=k, num_local_experts=6, hidden_size=x.shape[1]))
    router.weight.data.copy_(torch.from_numpy(given.weights["router.gate.weight"]))
    with torch.no_grad():
        logits, weights, experts = router(x)
    theirs = torch.full((len(x), 6), -1.0).scatter(1, experts, weights)
    visited = moe.topk_weights(given, given.inputs["x"], None)
    assert theirs.numpy() == pytest.approx(np.array(table(visited, len(x), 6)), abs=1e-6)
    p = logits.softmax(-1).double().numpy()
    tokens = valid.nonzero().flatten().tolist()
    # Theirs counts visits a token, so that uniform routing has k; ours shares of all visits, which has 1.
    balance = load_balancing_loss_func((logits,), 6, k, valid[None].long())
    assert float(balance) == pytest.approx(k * moe.balance_loss(p, visited, tokens), rel=1e-5)
    z_loss = router_z_loss_func(logits[valid][None])
    assert float(z_loss) == pytest.approx(moe.z_loss(logits.numpy(), tokens), rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("gelu_tanh", "gelu_pytorch_tanh"), *((n, n) for n in ("gelu", "relu", "relu2", "silu", "tanh", "sigmoid"))],
)
def test_activations(ours, theirs):
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    assert ACT2FN[theirs](x).numpy() == pytest.approx(simple.ACTIVATIONS[ours](x.numpy()), abs=1e-12)
