"""First values: a function of the seed and the parameter's path, and of nothing else."""

import pytest
import torch
from families import FAMILIES, batch, build, mostly_slow, spec, tiny

from llmlab.model.build import assemble, build_model, initialise, materialise
from llmlab.model.roles import parameters


def values(*overrides, seed=1):
    return build(*overrides, seed=seed, wake=False).state_dict()


@pytest.mark.parametrize(
    ("family", "choice", "own"),
    [
        ("llama3", "attention=mla", ".attention."),
        ("llama3", "position=alibi", ".positions."),
        ("llama3", "ffn=gelu", ".ffn."),
        ("llama3", "moe=topk", ".ffn."),
        ("llama3", "block=post", "norm"),
        ("gpt2", "position=sinusoidal", ".positions."),
        ("gemma3", "block=pre", "_post_norm"),
        ("deepseek_v3", "attention=gqa", ".attention."),
        ("bert", "norm=rmsnorm", "norm"),
        ("albert", "embedding=bert", ".embedding."),
        ("t5", "attention@stacks.decoder.attention=mqa", "decoder.layers."),
    ],
)
def test_variants_begin_bit_identical_where_they_share_parts(family, choice, own):
    one, two = values(*tiny(family)), values(*tiny(family, choice))
    common = [k for k in one if k in two and own not in k and one[k].shape == two[k].shape]
    only = [k for k in {*one, *two} if k not in common]
    assert len(common) > 5
    assert all(own in k or "positions" in k or "heads" in k or "stacks.main.norm" in k for k in only), only
    assert all(torch.equal(one[k], two[k]) for k in common)


def test_depth_leaves_the_layers_below_alone():
    one = values(*tiny("llama3", "init.residual_scale=false"))
    two = values(*tiny("llama3", "init.residual_scale=false", "model.n_layers=4"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_only_the_seed_counts(family):
    torch.manual_seed(1)
    one = values(*tiny(family))
    torch.manual_seed(2)
    torch.rand(7)
    two, other = values(*tiny(family)), values(*tiny(family), seed=2)
    assert all(torch.equal(one[k], two[k]) for k in one)
    drawn = [k for k in one if one[k].is_floating_point() and one[k].unique().numel() > 1]
    assert len(drawn) > 5
    assert not any(torch.equal(one[k], other[k]) for k in drawn)
    assert all(torch.isfinite(v).all() for v in one.values())


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    values(*tiny("llama3"))
    assert torch.equal(torch.rand(3), want)


def test_two_parameters_never_share_their_values():
    drawn = [v.flatten()[:24] for v in values(*tiny("llama3")).values() if v.unique().numel() > 1]
    for i, a in enumerate(drawn):
        assert not any(torch.allclose(a / a.std(), b / b.std()) for b in drawn[:i])


def test_dtype_is_chosen_after_the_values_are_drawn():
    model = assemble(spec(*tiny("llama3"))).to(torch.bfloat16)
    materialise(model)
    initialise(model, 1)
    whole = values(*tiny("llama3"))
    assert all(torch.equal(v, whole[k].to(torch.bfloat16)) for k, v in model.state_dict().items())


def test_a_tied_table_is_one_parameter_and_moves_with_its_head():
    model = build(*tiny("gpt2"), wake=False)
    assert not any("heads" in path for path, _, _ in parameters(model))
    data = batch(model)
    before = model(data).heads["tokens"]
    with torch.no_grad():
        model.stacks["main"].embedding.table.weight.mul_(2.0)
    after = model(data).heads["tokens"]
    assert not torch.allclose(before, after)
    assert not torch.allclose(2 * before, after)


def test_the_decoder_reads_the_encoders_table():
    model = build(*tiny("t5"), wake=False)
    tables = [path for path, _, role in parameters(model) if role == "embed"]
    assert tables == ["stacks.encoder.embedding.table.weight"]
    assert model.stacks["decoder"].embedding.weight is model.stacks["encoder"].embedding.weight


def test_layers_that_are_run_again_are_one_parameter():
    names = [path for path, _, _ in parameters(build(*tiny("albert"), wake=False)) if ".layers." in path]
    assert names
    assert all(".layers.0." in n for n in names)
    both = [path for path, _, _ in parameters(build(*tiny("llama3", "execute=[0,1,0,1]"), wake=False))]
    assert {n.split(".")[3] for n in both if ".layers." in n} == {"0", "1"}


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_every_parameter_has_a_role(family):
    model = build_model(spec(*tiny(family)))
    roles = {path: role for path, _, role in parameters(model)}
    assert set(roles) == {name for name, _ in model.named_parameters()}
    odd = {path for path, role in roles.items() if role == "other"}
    assert all("dense" in path or "project" in path or "cells" in path or ".embedding." in path for path in odd), odd
