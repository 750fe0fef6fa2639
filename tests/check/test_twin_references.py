"""Twins that are written from papers against the functions of the reference implementations, transformers and torch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from twins import moe, simple
from twins.position import added, biases, turned
from twins.record import settings_of_slot

from llmlab import twins
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.observers.observed import options_of, sizes_of
from llmlab.check.twins.settings import Setting

slow = pytest.mark.slow  # importing transformers' models takes seconds

# ---------------------------------------------------------------- positions

SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")
ROPES = [
    setting
    for setting in settings_of_slot("position")
    if setting.name == "rope" and setting.options.get("scaling") in SCALINGS and "rotary_dim" not in setting.sizes
]


@slow
@pytest.mark.parametrize("setting", ROPES, ids=str)
def test_frequencies(setting):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    options, sizes = options_of(setting), sizes_of(setting)
    dims = int(sizes.rotary_dim * options["fraction"])
    original = options["original_max"] or sizes.max_positions
    known = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate", "attention_factor")
    names = (*known, "mscale", "mscale_all_dim", "short_factor", "long_factor")
    config = LlamaConfig(
        head_dim=dims,
        max_position_embeddings=original,
        rope_parameters={
            "rope_type": options["scaling"],
            "rope_theta": options["theta"],
            "original_max_position_embeddings": original,
            **{name: options[name] for name in names if options[name] is not None},
        },
    )
    for length in (original - 1, original, original + 1, 2 * original + 3):
        got, amplitude = turned.frequencies(options, dims, original, length)
        want, factor = ROPE_INIT_FUNCTIONS[options["scaling"]](config, None, seq_len=length)
        np.testing.assert_allclose(got, want.double().numpy(), rtol=1e-6)
        assert amplitude == pytest.approx(factor, rel=1e-9)


@slow
@pytest.mark.parametrize("n_heads", [1, 4, 6, 12])
def test_slopes(n_heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    want = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float64)[:, 0, 1]
    np.testing.assert_allclose(biases.slopes(n_heads, 8.0), want, rtol=1e-6)


@slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 10), (6, 30)])
def test_buckets_of_t5(causal, buckets, most):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-60, 60) + 0
    want = T5Attention._relative_position_bucket(torch.tensor(distance), not causal, buckets, most)
    assert biases.t5_bucket(distance, causal, buckets, most).tolist() == want.tolist()


@slow
@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (8, 40), (6, 40), (8, 20)])
def test_buckets_of_deberta(buckets, most):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    want = make_log_bucket_position(torch.arange(-39, 40), buckets, most)
    options = {"buckets": buckets, "max_distance": most}
    assert [biases.log_bucket(d, options) for d in range(-39, 40)] == want.int().tolist()


@slow
def test_sinusoids():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    table = MarianSinusoidalPositionalEmbedding(40, 12)
    np.testing.assert_allclose(added.sinusoids(np.arange(40), 12, True), table.create_weight(), atol=1e-6)


# ---------------------------------------------------------------- routers and activations


def observed(name, sizes, **options):
    """What a twin is given, and x as a tensor."""
    given = OBSERVERS["moe"](Setting("moe", name, options, sizes)).given
    return given, torch.from_numpy(given.inputs["x"]).float()


def table(weights, n, n_experts):
    return [[weights.get((t, e), -1.0) for e in range(n_experts)] for t in range(n)]


@slow
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


@slow
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


@slow
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("gelu_tanh", "gelu_pytorch_tanh"), *((n, n) for n in ("gelu", "relu", "relu2", "silu", "tanh", "sigmoid"))],
)
def test_activations(ours, theirs):
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    assert ACT2FN[theirs](x).numpy() == pytest.approx(simple.ACTIVATIONS[ours](x.numpy()), abs=1e-12)


# ---------------------------------------------------------------- schedules and optimizers


def schedulers():
    """{part: the multiplier of torch or transformers that is the same from step `late` on, of options, warm-up and total}.

    transformers' warm-up is step / w: ours is theirs one step later, with a warm-up and a total longer by one.
    """
    from transformers import optimization as hf

    def multiplier(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        return make(optimizer).lr_lambdas[0]

    return {
        "constant": lambda o, w, n: multiplier(lambda opt: hf.get_constant_schedule_with_warmup(opt, w + 1)),
        "linear": lambda o, w, n: multiplier(lambda opt: hf.get_linear_schedule_with_warmup(opt, w + 1, n + 1)),
        "cosine": lambda o, w, n: multiplier(lambda opt: hf.get_cosine_schedule_with_warmup(opt, w + 1, n + 1)),
        "inverse_sqrt": lambda o, w, n: multiplier(lambda opt: hf.get_inverse_sqrt_schedule(opt, w)),
    }


@slow
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_twins_of_schedules_are_transformers(name):
    """Where transformers has the same: without a floor, and up to the end."""
    asked = 0
    for setting in (s for s in settings_of_slot("schedule") if s.name == name):
        given = OBSERVERS["schedule"](setting).given
        o, want = given.options, twins.twin_of("schedule", name).compute(given)["of_50"]
        w = round(o["warmup_share"] * 50) if o["warmup_steps"] is None else o["warmup_steps"]
        if o.get("warm") == "flat" or (name == "inverse_sqrt" and w == 0) or w > 45:
            continue
        theirs = schedulers()[name](o, w, 50)
        floor = o.get("floor", 0.0)
        steps = given.inputs["of_50"]
        found = np.array([theirs(int(s) + 1) for s in steps])
        np.testing.assert_allclose(want, np.where(steps < w, found, floor + (1 - floor) * found), rtol=1e-12)
        asked += 1
    assert asked >= 3


def test_the_twin_of_adamw_is_torchs():
    """Over hand-made groups."""
    for setting in (s for s in settings_of_slot("optimizer") if s.name == "adamw"):
        given = OBSERVERS["optimizer"](setting).given
        o, inputs = given.options, given.inputs
        names = [key.removeprefix("given/") for key in inputs if key.startswith("given/")]
        values = {name: torch.nn.Parameter(torch.tensor(inputs[name])) for name in names}
        whole = ("q", "k", "v", "out", "ffn_in", "ffn_in.experts", "q.flat", "router", "head", "adapter", "other")
        decayed = {*whole, "ffn_out", "ffn_out.sometimes", "head.never"}
        decayed |= {"embed", "position"} if o["decay"] == "matrices" else set()
        rest = ["norm", "norm.heads", "bias", "bias.experts", "other.vector"]
        rest += [] if o["decay"] == "matrices" else ["embed", "position"]
        assert decayed | set(rest) == set(names)
        groups = [
            {"params": [values[n] for n in sorted(decayed)], "weight_decay": o["weight_decay"]},
            {"params": [values[n] for n in rest], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], foreach=False)
        for step, rate in enumerate(inputs["rates"]):
            for group in optimizer.param_groups:
                group["lr"] = o["lr"] * rate
            for name, p in values.items():
                on = inputs[f"given/{name}"][step]
                p.grad = torch.tensor(inputs[f"gradient/{name}"][step]) if on else None
            optimizer.step()
        for name, moved in twins.twin_of("optimizer", "adamw").compute(given).items():
            found = values[name.removeprefix("alone/")].detach().numpy() - inputs[name.removeprefix("alone/")]
            np.testing.assert_allclose(found, moved[-1], rtol=1e-7, atol=1e-12, err_msg=f"{setting} {name}")
