"""Adapters: nothing changes at first, merging changes nothing, the trunk stays as it was, and PEFT computes the same."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import llmlab
from llmlab import registry
from llmlab.config.spec import PartSpec
from llmlab.errors import UserError
from llmlab.model import adapters, build, merging, roles
from llmlab.model.trainable import Filter

WORDS = ("model.dim=24", "model.n_heads=4", "model.n_layers=2", "model.vocab_size=64", "model.attention.out_bias=true")
OPTIONS = {
    "lora": {},
    "lora, all": {"rank": 3, "alpha": 5.0, "targets": ["q", "k", "v", "out", "ffn_in", "ffn_out"]},
    "lora, stabilised": {"rank": 4, "rank_stabilised": True, "targets": ["out"]},
    "dora": {"rank": 3, "targets": ["q", "out", "ffn_out"]},
}
IDS = torch.arange(30).reshape(2, 15) % 61


@pytest.fixture(scope="module")
def base():
    return llmlab.build(WORDS)


def adapted(base, name):
    """The base with an adapter that has not learnt yet."""
    part = PartSpec.with_defaults("adapter", name.partition(",")[0], **OPTIONS[name])
    model = build.build_model(replace(base.spec, adapter=part), seed=3)
    build.load(model, base.state_dict(), begins=True)
    return model


def scores(model):
    return model({"ids": IDS}, heads={"tokens": None}).heads["tokens"]


@torch.no_grad()
def disturb(model):
    for path, p, _ in roles.parameters(model):
        if adapters.MARK in path:
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(path)))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_adapter_changes_nothing_at_first_and_nothing_when_it_is_merged(base, name):
    model = adapted(base, name)
    torch.testing.assert_close(scores(model), scores(base), atol=2e-6, rtol=1e-5)
    if not name.startswith("dora"):
        assert torch.equal(scores(model), scores(base))
    disturb(model)
    assert (scores(model) - scores(base)).abs().max() > 1e-3
    merged = merging.merge(model)
    assert merged.spec == base.spec and not adapters.is_adapted(merged.state_dict())
    torch.testing.assert_close(scores(merged), scores(model), atol=2e-6, rtol=1e-5)
    # A copy has hooks of its own.
    other = copy.deepcopy(model)
    disturb(other)
    torch.testing.assert_close(scores(merged), scores(model), atol=2e-6, rtol=1e-5)


def test_only_the_adapter_learns_and_the_trunk_stays_bit_for_bit(base):
    model = adapted(base, "dora")
    Filter(("adapter",)).apply(model)
    learning = [p for _, p, _ in roles.learning(model)]
    wide = base.spec.sizes.ffn_dim
    assert sum(p.numel() for p in learning) == 2 * (2 * (3 * (24 + 24) + 24) + 3 * (wide + 24) + 24)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW(learning, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        scores(model).square().mean().backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (adapters.MARK not in name), name


def test_options_and_models_without_such_linears_are_refused(base):
    for options, said in (
        ({"rank": 0}, "adapter.rank must be at least 1"),
        ({"targets": ["router"]}, "adapter.targets must be roles of linears, but 'router' is none"),
        ({"targets": []}, "but there is none"),
        ({"dropout": 1.0}, "adapter.dropout must be in"),
    ):
        with pytest.raises(ValueError, match=said):
            registry.load("adapter", "lora", options)()
    experts = llmlab.build([*WORDS, "moe=topk", "model.moe.n_experts=4", "model.moe.n_shared=0"]).spec
    part = PartSpec.with_defaults("adapter", "lora", targets=["ffn_in"])
    with pytest.raises(UserError, match=r"^adapter=lora\(targets=\['ffn_in'\]\) adapts no linear of this model"):
        build.assemble(replace(experts, adapter=part))


PEFT = {
    "lora": ({}, {"target_modules": ["q_proj", "v_proj"]}),
    "lora, all": ({}, {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}),
    "lora, stabilised": ({}, {"r": 4, "use_rslora": True, "target_modules": ["o_proj"]}),
    "dora": ({}, {"r": 3, "use_dora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT)
def test_peft_computes_the_same_with_the_same_gradients(name, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmlab.hub.load import load_hf
    from llmlab.hub.save_adapter import save_adapter

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                         tie_word_embeddings=False, initializer_range=0.1)  # fmt: skip
    theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path)
    ours = adapted(load_hf(tmp_path, verbose=False).model, name)
    more = {"r": 8, "lora_alpha": 16, **PEFT[name][1]}
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **more)).eval()
    own = dict(ours.named_parameters())
    mine = {n: p for n, p in own.items() if adapters.MARK in n}
    named = {n: p for n, p in theirs.named_parameters() if "lora_" in n}
    assert len(mine) == len(named)
    pairs = []
    for n, p in named.items():
        layer, linear = n.partition("layers.")[2].partition(".")[0], n.partition(".lora_")[0].rpartition(".")[2]
        kind = n.partition(".lora_")[2].partition(".")[0]
        tail = {"A": "a.weight", "B": "b.weight", "magnitude_vector": "magnitude"}[kind]
        spot = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}.get(linear, linear.removesuffix("_proj"))
        (match,) = [m for m in mine if f"layers.{layer}." in m and m.endswith(f".{spot}.adapter.{tail}")]
        pairs.append((match, p, linear))
    with torch.no_grad():
        for match, p, _ in pairs:
            value = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2
            if match.endswith("magnitude"):
                mine[match].copy_(value)
                # Theirs is the norm itself, of which ours is what it has more than that of the frozen row.
                p.copy_(own[match.replace("adapter.magnitude", "weight")].norm(dim=1) + value)
            else:
                mine[match].copy_(value)
                p.copy_(value)
    save_adapter(ours, tmp_path / "adapter")
    read = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path), tmp_path / "adapter").eval()
    torch.testing.assert_close(read(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    written = {n: tuple(t.shape) for n, t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    theirs.save_pretrained(tmp_path / "theirs")
    assert written == {
        n: tuple(t.shape) for n, t in load_file(tmp_path / "theirs" / "adapter_model.safetensors").items()
    }
    found, wanted = scores(ours), theirs(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for match, p, _ in pairs:
        torch.testing.assert_close(mine[match].grad, p.grad, atol=1e-3, rtol=1e-4)
