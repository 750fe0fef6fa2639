"""Naming the part that a family has anyway changes nothing, and what was typed wins where it should."""

import pytest
import torch
from families import FAMILIES, batch, build, composed, mostly_slow, spec, tiny
from omegaconf import OmegaConf

from llmlab.config import layout, model_files
from llmlab.config.compose import compose
from llmlab.config.model_files import conf_dir
from llmlab.errors import UserError
from llmlab.model.build import build_model
from llmlab.slot_names import LAYER_SLOTS, LISTED_SLOTS, SLOTS

STACK_SLOTS = (*LAYER_SLOTS, "mask", "embedding")


def own_choices(cfg) -> list[str]:
    """Every choice that names the part which stands there already: at the root, in kinds and in stacks."""
    out = [
        f"{slot}={cfg[slot]._part_}" for slot in SLOTS if slot not in ("head", *LISTED_SLOTS) and cfg[slot] is not None
    ]
    out += [f"head@heads.{role}={node._part_}" for role, node in cfg.heads.items()]
    for where in ("kinds", "stacks"):
        for name, node in cfg[where].items():
            for slot in STACK_SLOTS:
                if slot in node and node[slot] is not None:
                    out.append(f"{slot}@{where}.{name}.{slot}={node[slot]._part_}")
    return out


def same_model(a, b) -> None:
    one, two = a.state_dict(), b.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[k], two[k]) for k in one)
    data = batch(a)
    # Without heads that need more of a batch than a text, as SpanBERT's over boundaries.
    heads = {role: None for role, part in a.spec.heads.items() if not part.attribute("needs")}
    with torch.no_grad():
        ours, theirs = a(data, heads=heads).heads, b(data, heads=heads).heads
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[role], theirs[role]) for role in ours)


def test_every_family_is_in_these_tests():
    files = (conf_dir() / "model").glob("*.yaml")
    families = {f.stem for f in files if model_files.published(f) is None}
    assert families == set(FAMILIES)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_naming_what_a_family_has_changes_nothing(family):
    own = tuple(word for word in tiny(family) if not word.startswith("objective="))
    before = composed(*own)
    choices = own_choices(before.cfg)
    assert len(choices) >= 13
    after = compose([*own, *choices])
    slots = [t for t in after.typed if t.group in SLOTS]
    assert len(slots) == len(choices)
    assert all(t.kept for t in slots), [t for t in slots if not t.kept]
    assert OmegaConf.to_container(after.cfg) == OmegaConf.to_container(before.cfg)
    assert layout.resolve(after) == layout.resolve(before)
    same_model(build(*own, wake=False), build_model(layout.resolve(after)).eval())


ONE_BY_ONE = {
    "rope keeps llama's base": ("llama3", "position=rope"),
    "gqa keeps qwen's bias": ("qwen2_moe", "attention=gqa"),
    "rope stays different by kind": ("gemma3", "position=rope"),
    "rmsnorm keeps gemma's offset": ("gemma3", "norm=rmsnorm"),
    "the objective's own mask": ("llama3", "mask=causal"),
    "the objective's own mask, both ways": ("bert", "mask=bidirectional"),
    "a stack's mask": ("t5", "mask@stacks.encoder.mask=bidirectional"),
    "a stack's cross-attention": ("t5", "attention@stacks.decoder.cross_attention=mha"),
    "a kind's window": ("gemma3", "window@kinds.local.window=sliding"),
    "a head": ("albert", "head@heads.tokens=mlm"),
    "a preset": ("llama3", "position=rope_500k"),
}


@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_one_by_one(case):
    family, choice = ONE_BY_ONE[case]
    same_model(build(*tiny(family), wake=False), build(*tiny(family, choice), wake=False))


# ---------------------------------------------------------------- what was typed wins


def parts(slot, *overrides, stack=0):
    return [layer.parts[slot].name for layer in spec(*overrides).stacks[stack].layers]


def test_a_typed_part_displaces_every_kind():
    assert parts("position", *tiny("gemma3")) == ["rope"] * 3
    assert parts("position", *tiny("gemma3", "position=alibi")) == ["alibi"] * 3
    resolved = spec(*tiny("gemma3", "position=alibi"))
    shown = [layer.displaced for layer in resolved.stacks[0].layers]
    assert "rope" in shown[-1]["position"]
    assert any("alibi" in note and "displaces" in note for note in resolved.notes)


def test_one_kind_can_be_named():
    usual = tiny("gemma3")
    assert parts("window", *usual) == ["sliding", "sliding", "full"]
    without = tuple(o for o in usual if "window.left" not in o)
    assert parts("window", *without, "window@kinds.local.window=full") == ["full"] * 3
    assert parts("attention", *usual, "attention@kinds.global.attention=mla") == ["gqa", "gqa", "mla"]


def test_of_two_typed_choices_the_narrower_wins():
    choices = ("attention=mha", "attention@kinds.global.attention=mla")
    assert parts("attention", *tiny("gemma3", *choices)) == ["mha", "mha", "mla"]
    assert parts("attention", *tiny("gemma3", *choices[::-1])) == ["mha", "mha", "mla"]
    own = ("position=alibi", "position@kinds.global.position=rope")  # the latter is what those layers have anyway
    assert parts("position", *tiny("gemma3", *own)) == ["alibi", "alibi", "rope"]
    last = spec(*tiny("gemma3", *own)).stacks[0].layers[-1].parts["position"]
    assert last == spec(*tiny("gemma3")).stacks[0].layers[-1].parts["position"]


def masks(*overrides):
    return [stack.mask.name for stack in spec(*overrides).stacks]


def test_masks_of_stacks():
    assert masks(*tiny("t5")) == ["bidirectional", "causal"]
    assert masks(*tiny("t5", "mask=causal")) == ["causal", "causal"]
    assert any("mask=causal as typed displaces bidirectional" in n for n in spec(*tiny("t5", "mask=causal")).notes)
    assert masks(*tiny("t5", "mask=causal", "mask@stacks.encoder.mask=bidirectional")) == ["bidirectional", "causal"]


@pytest.mark.parametrize(
    ("family", "choice", "said"),
    [
        ("llama3", "mask=bidirectional", "each token would see the answer"),
        ("t5", "mask=bidirectional", "in the decoder: each token would see the answer"),
        ("bert", "mask=prefix", "mask=prefix reads prefix_len of each sample, which objective=mlm does not give"),
        ("llama3", "mask=prefix", "mask=prefix reads prefix_len"),
        ("t5", "mask@stacks.encoder.mask=prefix", "mask=prefix reads prefix_len"),
    ],
)
def test_a_mask_that_can_not_be_trained_under_is_refused(family, choice, said):
    with pytest.raises(UserError, match=said):
        composed(*tiny(family, choice))


def test_one_stack_can_be_named():
    overrides = tiny("t5", "attention@stacks.decoder.attention=mla")
    assert parts("attention", *overrides) == ["mha", "mha"]
    assert parts("attention", *overrides, stack=1) == ["mla", "mla"]
    both = tiny("t5", "attention=mqa")
    assert parts("attention", *both) + parts("attention", *both, stack=1) == ["mqa"] * 4


def test_a_typed_moe_displaces_the_dense_layers_too():
    assert parts("moe", *tiny("deepseek_v3")) == ["none", "sigmoid", "sigmoid"]
    assert parts("moe", *tiny("deepseek_v3", "moe=topk")) == ["topk"] * 3


def test_traits_survive_a_swap():
    attention = build(*tiny("qwen2_moe", "attention=mha"), wake=False).stacks["main"].layers[0].attention
    assert attention.q.bias is not None
    assert attention.k.bias is not None
    assert attention.out.bias is None
    assert attention.k.weight.shape[0] == 32  # a key head for each query head
    assert hasattr(build(*tiny("qwen_moe", "attention=mqa"), wake=False).stacks["main"].layers[0].attention, "q_norm")
    latent = build(*tiny("qwen2_moe", "attention=mla"), wake=False).stacks["main"].layers[0].attention
    assert latent.kv_down.bias is not None
    plain = build(*tiny("gpt2", "ffn=swiglu"), wake=False).stacks["main"].layers[0].ffn
    assert plain.gate.bias is not None
    t5 = build(*tiny("t5", "attention=mqa"), wake=False).stacks["encoder"].layers[0].attention
    assert t5.score.scale == 1.0
    routed = build(*tiny("deepseek_v3", "moe=topk"), wake=False).stacks["main"].layers[1].ffn
    assert (routed.scale, routed.per_token, routed.shared is not None) == (2.5, 2, True)


def test_a_position_that_is_added_must_be_the_first_layers():
    with pytest.raises(UserError, match="position=learned is added to the embedding"):
        build(*tiny("gemma3", "position@kinds.global.position=learned"), wake=False)
    build(*tiny("gemma3", "position=learned"), wake=False)
