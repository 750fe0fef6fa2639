"""Adapters: nothing changes at first, merging changes nothing, the trunk stays as it was, and PEFT computes the same."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import llmlab
from llmlab import registry
from llmlab.config.spec import PartSpec
from llmlab.errors import UserError
from llmlab.hub import read_adapter
from llmlab.hub.save import save_hf
from llmlab.model import adapters, build, merging, roles
from llmlab.model.trainable import Filter
from llmlab.runs.compose import compose
from llmlab.training import companions

WORDS = ("model.dim=24", "model.n_heads=4", "model.n_layers=2", "model.vocab_size=64", "model.attention.out_bias=true")
OPTIONS = {
    "lora": {},
    "lora, all": {"rank": 3, "alpha": 5.0, "targets": ["q", "k", "v", "out", "ffn_in", "ffn_out"]},
    "lora, stabilised": {"rank": 4, "rank_stabilised": True, "targets": ["out"]},
    "dora": {"rank": 3, "targets": ["q", "out", "ffn_out"]},
    "ia3": {},
    "ia3, others": {"targets": ["q", "out", "ffn_in", "ffn_out"]},
}
IDS = torch.arange(30).reshape(2, 15) % 61


@pytest.fixture(scope="module")
def base():
    model = llmlab.build(WORDS)
    with torch.no_grad():
        for path, p, role in roles.parameters(model):
            if role == "bias":  # they begin at 0, at which nothing tells whether they are scaled too
                p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(path)))
    return model


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


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_only_the_adapter_learns_and_the_trunk_stays_bit_for_bit(base, name):
    model = adapted(base, name)
    Filter(("adapter",)).apply(model)
    learning = [p for _, p, _ in roles.learning(model)]
    wide, keys = base.spec.sizes.ffn_dim, len(base.state_dict()["stacks.main.layers.0.attention.k.weight"])
    layer = {"dora": 2 * (3 * (24 + 24) + 24) + 3 * (wide + 24) + 24, "ia3": 2 * keys + wide}[name]
    assert sum(p.numel() for p in learning) == 2 * layer
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
    with pytest.raises(ValueError, match="adapter.targets must be roles of linears, but 'router' is none"):
        registry.load("adapter", "ia3", {"targets": ["router"]})()
    experts = llmlab.build([*WORDS, "moe=topk", "model.moe.n_experts=4", "model.moe.n_shared=0"]).spec
    part = PartSpec.with_defaults("adapter", "lora", targets=["ffn_in"])
    with pytest.raises(UserError, match=r"^adapter=lora\(targets=\['ffn_in'\]\) adapts no linear of this model"):
        build.assemble(replace(experts, adapter=part))


def written(folder, tensors, **changed):
    """A folder as PEFT writes it."""
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "bias": "none",
        "init_lora_weights": True,
    }
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **changed}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def test_an_adapter_of_peft_is_read_whole_or_refused_in_a_line_that_names_what_it_is(tmp_path):
    base = llmlab.build(WORDS[:-1])
    sizes = {"q": (24, 24), "v": (24, 24), "gate": (24, base.spec.sizes.ffn_dim)}
    where = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "gate": "mlp.gate_proj"}

    def pair(layer, name, rank=2):
        path = f"base_model.model.model.layers.{layer}.{where[name]}"
        n_in, n_out = sizes[name]
        return {f"{path}.lora_A.weight": torch.ones(rank, n_in), f"{path}.lora_B.weight": torch.ones(n_out, rank)}

    whole = {**pair(0, "q"), **pair(1, "q")}
    assert read_adapter.overrides(written(tmp_path / "a", whole), base.spec, []) == [
        "adapter=lora", "adapter.rank=2", "adapter.alpha=6.0", "adapter.dropout=0.1", "adapter.rank_stabilised=false",
        "adapter.targets=[q]",
    ]  # fmt: skip
    save_hf(base, tmp_path / "hf")
    start = [f"init_from=hf={tmp_path / 'hf'}", f"init_from.adapter={tmp_path / 'a'}", "tokenizer=bpe", "adapter=lora"]
    composed = compose([*start, "adapter.dropout=0"])
    assert composed.cfg.adapter.rank == 2 and composed.cfg.adapter.dropout == 0
    with pytest.raises(
        UserError, match=r"^adapter\.rank=4 contradicts init_from\.adapter=.*, which has adapter\.rank=2; leave"
    ):
        compose([*start, "adapter.rank=4"])
    odd = {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 24)}
    for n, (tensors, changed, said) in enumerate((
        (whole, {"peft_type": "IA3"}, "peft_type='IA3' can't be read"),
        (whole, {"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4} is nothing that"),
        (whole, {"bias": "all"}, "bias='all' is nothing that"),
        (whole, {"modules_to_save": ["lm_head"]}, "modules_to_save="),
        (whole, {"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is nothing that"),
        (pair(0, "q"), {}, "adapts model.layers.0.self_attn.q_proj but not model.layers.1.self_attn.q_proj"),
        ({**pair(0, "gate"), **pair(1, "gate")}, {}, "but not model.layers.0.mlp.up_proj; linears of one role"),
        ({**whole, **odd}, {}, "'base_model.model.lm_head.lora_A.weight' is of no linear of this model"),
        ({**pair(0, "q", 3), **pair(1, "q")}, {}, r"must be \[2, 24\] for this model and r=2, but is \[3, 24\]"),
        (whole, {"use_dora": True}, "lora_magnitude_vector of model.layers.0.self_attn.q_proj must be"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=said) as e:
            read_adapter.overrides(written(tmp_path / str(n), tensors, **changed), base.spec, [])
        assert "\n" not in str(e.value)
    whole["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match="holds NaN"):
        read_adapter.tensors(written(tmp_path / "nan", whole), base.spec, {})
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        read_adapter.overrides(str(tmp_path / "a"), base.spec, [])
    with pytest.raises(UserError, match=r"^init_from\.adapter=a is beside the weights of a base"):
        compose(["init_from.adapter=a"])
    with pytest.raises(UserError, match="it holds an adapter and no model; give its base"):
        compose([f"init_from=hf={tmp_path / 'a'}"])


PEFT = {
    "lora": ({}, {"target_modules": ["q_proj", "v_proj"]}),
    "lora, all": ({}, {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}),
    "lora, stabilised": ({}, {"r": 4, "use_rslora": True, "target_modules": ["o_proj"]}),
    "dora": ({}, {"r": 3, "use_dora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]}),
}


def llama(folder):
    """A model of transformers, written into a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                         tie_word_embeddings=False, initializer_range=0.1)  # fmt: skip
    theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT)
def test_peft_computes_the_same_with_the_same_gradients(name, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    from llmlab.hub.load import load_hf
    from llmlab.hub.save_adapter import save_adapter

    theirs = llama(tmp_path)
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
    # The way back: what PEFT has written, as a run begins with it.
    words = [f"init_from=hf={tmp_path}", f"init_from.adapter={tmp_path / 'theirs'}", "tokenizer=bpe"]
    spec = compose(words).spec
    assert spec.adapter == ours.spec.adapter
    again = build.build_model(replace(spec, sizes=ours.spec.sizes))
    build.load(again, companions.read_weights(tmp_path, again, tmp_path / "theirs"), begins=True)
    torch.testing.assert_close(scores(again), scores(ours), atol=2e-6, rtol=1e-5)
    found, wanted = scores(ours), theirs(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for match, p, _ in pairs:
        torch.testing.assert_close(mine[match].grad, p.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_peft_computes_the_same_gains_with_the_same_gradients(tmp_path):
    peft = pytest.importorskip("peft")

    from llmlab.hub.load import load_hf
    from llmlab.hub.save_adapter import save_adapter

    theirs = llama(tmp_path)
    ours = adapted(load_hf(tmp_path, verbose=False).model, "ia3")
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    named = {n: p for n, p in theirs.named_parameters() if "ia3_l" in n}
    spots = {
        "k_proj": "attention.k.adapter.given",
        "v_proj": "attention.v.adapter.given",
        "down_proj": "down.adapter.read",
    }
    own, pairs = dict(ours.named_parameters()), []
    for n, p in named.items():
        layer, linear = n.partition("layers.")[2].partition(".")[0], n.partition(".ia3_l")[0].rpartition(".")[2]
        (match,) = [m for m in own if f"layers.{layer}." in m and m.endswith(spots[linear])]
        value = 0.3 * torch.randn(p.numel(), generator=torch.Generator().manual_seed(len(pairs)))
        with torch.no_grad():
            own[match].copy_(value)
            p.copy_(1 + value.view_as(p))
        pairs.append((own[match], p))
    assert len(pairs) == 6 == sum(adapters.MARK in n for n in own)
    found, wanted = scores(ours), theirs(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for mine, p in pairs:
        torch.testing.assert_close(mine.grad, p.grad.flatten(), atol=1e-3, rtol=1e-4)
    with pytest.raises(UserError, match=r"^format=peft writes LoRA and DoRA, but this run has adapter=ia3; format=hf"):
        save_adapter(ours, tmp_path / "adapter")
