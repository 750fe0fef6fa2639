"""Models built here go out as checkpoints that the reference reads; what has no place is refused, and so is what is broken."""

import json
from dataclasses import replace

import pytest
import torch
from families import batch, build, ids, mostly_slow, spec, tiny
from reference_models import BUILT, PADDED
from safetensors.torch import load_file, save_file

import llmlab
from llmlab.errors import UserError
from llmlab.hub import entry as hub
from llmlab.model.build import build_model

MORE = {
    "llama3 tied, scaled": (
        "llama3",
        "model.tie_embeddings=true",
        "position=rope_llama3_x8",
        "position.original_max=null",
    ),
    "llama3 mha": ("llama3", "attention=mha"),
    "llama3 geglu": ("llama3", "ffn=geglu"),
    "llama3 mqa, biases": ("llama3", "attention=mqa", "model.attention.qkv_bias=true", "model.attention.out_bias=true"),
    "qwen_moe without experts": ("qwen_moe", "moe=none"),
    "qwen_moe sliding": ("qwen_moe", "window=sliding", "window.left=4"),
    "gpt2 relu, untied": ("gpt2", "ffn=relu", "model.tie_embeddings=false"),
    "gpt_neox serial": ("gpt_neox", "block=pre", "ffn=relu", "position.fraction=0.5"),
    "falcon 40b": ("falcon", "block=parallel_norms_2", "attention=gqa", "model.n_kv_heads=2"),
    "falcon serial, a key head for each": ("falcon", "block=pre", "attention=mha"),
    "gpt_neo local only": ("gpt_neo", "layers.cycle=[local]"),
    "opt 350m": ("opt", "block=post", "embedding.table_width=12"),
    "opt as galactica": (
        "opt",
        "norm=layernorm_plain",
        "ffn=gelu",
        "model.ffn.bias=false",
        "model.attention.qkv_bias=false",
        "model.attention.out_bias=false",
    ),
    "bloom normed residual": ("bloom", "block.normed_residual=true"),
    "mpt clipped, scaled": ("mpt", "model.attention.clip_qkv=0.5", "model.attention.scale=0.3"),
    "stablelm parallel, a norm for each head": ("stablelm", "block=parallel", "model.attention.qk_norm=each_head"),
    "gemma3 capped": ("gemma3", "model.logit_softcap=3.0"),
    "gemma2 global only": ("gemma2", "layers.cycle=[global]"),
    "gemma3 global only": ("gemma3", "layers.cycle=[global]"),
    "deepseek with a query latent": ("deepseek_v3", "attention.q_rank=12"),
    "bert causal": ("bert", "objective=clm"),
    "t5 gated": ("t5", "ffn=geglu_tanh", "model.tie_embeddings=false", "model.logit_scale=null"),
    "albert, two groups": ("albert", "execute=[0,0,1,1]"),
    "albert, inner layers": ("albert", "execute=[0,1,0,1]"),
    "roberta causal": ("roberta", "position.pad_id=3", "position.offset=4", "objective=clm"),
    "electra as wide": ("electra", "embedding=bert", "ffn=relu"),
    "distilbert silu": ("distilbert", "ffn=silu", "heads.tokens.act=silu"),
    "modernbert with biases": (
        "modernbert",
        "norm.bias=true",
        "model.ffn.bias=true",
        "ffn=swiglu",
        "heads.tokens.act=relu",
        "heads.tokens.dense_bias=true",
        "heads.tokens.bias=false",
    ),
    "bert generation, both ways": ("bert_generation", "objective=mlm"),
}
MODELS = {**{family: (family, *PADDED.get(family, ())) for family in BUILT}, **MORE}


@pytest.mark.parametrize("name", mostly_slow(MODELS))
@torch.no_grad()
def test_the_reference_reads_what_is_saved(name, transformers, tmp_path):
    family, *overrides = MODELS[name]
    model = build(*tiny(family, *overrides))
    llmlab.save_hf(model, tmp_path)
    data = batch(model)
    logits = model.double()(data).heads["tokens"]  # float64: differences are not rounding

    config = transformers.AutoConfig.from_pretrained(tmp_path)
    cls = getattr(transformers, config.architectures[0])
    plain = {"attn_implementation": "eager"}
    if any(layer.routed for stack in model.all_stacks() for layer in stack.layers):
        plain["experts_implementation"] = "eager"  # the grouped one knows no float64
    reference, info = cls.from_pretrained(tmp_path, output_loading_info=True, **plain)
    reference = reference.double()
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    if "source_ids" in data:
        theirs = reference.eval()(
            input_ids=data["source_ids"], attention_mask=data["source_valid"].long(), decoder_input_ids=data["ids"]
        )
    else:
        theirs = reference.eval()(input_ids=data["ids"])
    scores = theirs.prediction_logits if hasattr(theirs, "prediction_logits") else theirs.logits
    torch.testing.assert_close(logits, scores, rtol=2e-5, atol=2e-5)

    back = llmlab.load_hf(tmp_path, verbose=False).model
    ours, again = model.state_dict(), back.state_dict()
    assert list(ours) == list(again)
    assert all(torch.equal(ours[k], again[k].double()) for k in ours)
    assert torch.equal(back.double()(data).heads["tokens"], logits)


NO_PLACE = {
    "position=alibi": ("llama3", "position=alibi"),
    "position=learned": ("bloom", "position=learned"),
    "block=deepnorm": ("gpt_neox", "block=deepnorm"),
    "position=alibi.skip_padding=True": ("mpt", "position=alibi_bloom"),
    "norm=layernorm": ("mpt", "norm.bias=true"),
    "attention=mha": ("gpt_neo", "model.attention.qkv_bias=true"),
    "block=sandwich": ("llama3", "block=sandwich"),
    "ffn=gelu": ("llama3", "ffn=gelu"),
    "moe=topk": ("llama3", "moe=topk"),
    "attention=gqa": ("deepseek_v3", "attention=gqa"),
    "attention=mla": ("qwen_moe", "attention=mla"),
    "position=rope": ("llama3", "position.fraction=0.5"),
    "mask=bidirectional": ("llama3", "objective=mlm"),
    "model.attention.scale": ("gpt2", "model.attention.scale=0.3"),
    "model.attention.softcap": ("llama3", "kernel=eager", "model.attention.softcap=9.0"),
    "model.moe.scale": ("qwen_moe", "model.moe.scale=2.0"),
    "model.attention.qk_norm": ("qwen_moe", "model.attention.qk_norm=full"),
    "cross_attention=mla": ("t5", "attention@stacks.decoder.cross_attention=mla"),
    "stacks.encoder": ("t5", "attention@stacks.decoder.attention=mqa"),
    "execute": ("llama3", "execute=[0,1,0,1]"),
    "embedding=token": ("distilbert", "embedding=token"),
}


@pytest.mark.parametrize("what", mostly_slow(NO_PLACE, list(NO_PLACE)[::4]))
def test_what_has_no_place_is_refused_by_name(what, tmp_path):
    family, *overrides = NO_PLACE[what]
    model = build(*tiny(family, *overrides), wake=False)
    word = {"stacks.encoder": "attention=mqa", "mask=bidirectional": "(mask=bidirectional|heads tokens=mlm)"}.get(
        what, what
    )
    with pytest.raises(UserError, match=f"has no place for {word}") as e:
        llmlab.save_hf(model, tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "choices", "said"),
    [
        ("roberta", (), "tells padding by its id; train with position.pad_id=ID position.offset=ID[+]1"),
        ("mpnet", ("position.pad_id=0", "position.offset=1"), "position.pad_id=0 has no place"),
        ("albert", ("execute=[0,1,1,0]",), r"execute=\[0, 1, 1, 0\] has no place"),
    ],
)
def test_what_a_file_can_not_say_is_refused(family, choices, said, tmp_path):
    with pytest.raises(UserError, match=said):
        llmlab.save_hf(build(*tiny(family, *choices), wake=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- folders that are broken


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    llmlab.save_hf(build(*tiny("gpt2")), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def tensors(folder, edit):
    held = load_file(folder / "model.safetensors")
    edit(held)
    save_file(held, folder / "model.safetensors")


def resized(name, *shape):
    return lambda held: held.update({name: torch.zeros(shape)})


def flip_header(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[9] ^= 0xFF
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_only(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


BROKEN = {
    "unknown model_type": (
        lambda f: change(f, model_type="gpt9"),
        "model_type='gpt9' is not implemented; known: .*gpt2",
    ),
    "no model_type": (lambda f: change(f, model_type=None), "model_type=None"),
    "unknown class": (
        lambda f: change(f, architectures=["GPT2Doubled"]),
        "architectures='GPT2Doubled'.*GPT2LMHeadModel",
    ),
    "not JSON": (lambda f: (f / "config.json").write_text("{'a': 1}"), "config.json: not valid JSON"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is not UTF-8"),
    "not an object": (lambda f: (f / "config.json").write_text("[1]"), "config.json: must be an object"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "pickled": (only_bin, r"pickled weights \(\*.bin\)"),
    "truncated": (truncate, "model.safetensors can't be read"),
    "corrupt": (flip_header, "model.safetensors can't be read"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors can't be read"),
    "missing tensor": (
        lambda f: tensors(f, lambda t: t.pop("transformer.h.1.ln_1.bias")),
        "transformer.h.1.ln_1.bias is missing",
    ),
    "left over": (lambda f: tensors(f, resized("transformer.h.0.extra", 2)), "transformer.h.0.extra has no place"),
    "more layers than stated": (lambda f: change(f, n_layer=1), "transformer.h.1.* has no place"),
    "fewer layers than stated": (lambda f: change(f, n_layer=3), "config.json says 3 layers, but the weights hold 2"),
    "wrong shape": (
        lambda f: tensors(f, resized("transformer.ln_f.weight", 31)),
        r"transformer.ln_f.weight has shape \(31,\), but .* needs \(32,\)",
    ),
    "wrong fused shape": (
        lambda f: tensors(f, resized("transformer.h.0.attn.c_attn.weight", 32, 95)),
        r"transformer.h.0.attn.c_attn.weight has shape \(32, 95\)",
    ),
    "missing shard": (
        lambda f: index_only(f, '{"weight_map": {"a": "model-1.safetensors"}}'),
        "names the shard 'model-1.safetensors', which is not in the folder",
    ),
    "a shard elsewhere": (lambda f: index_only(f, '{"weight_map": {"a": "../x.safetensors"}}'), "names the shard"),
    "index not JSON": (lambda f: index_only(f, "{"), "model.safetensors.index.json: not valid JSON"),
    "index without a map": (lambda f: index_only(f, "{}"), "model.safetensors.index.json: weight_map is missing"),
    "heads do not divide": (lambda f: change(f, n_head=5), "n_heads=5 does not divide model.dim=32"),
    "not a number": (lambda f: change(f, n_embd="wide"), "n_embd=.wide. must be a whole number from 1"),
    "a class that is no name": (lambda f: change(f, architectures=7), "architectures=7 must be a list of names"),
    "a size that is null": (
        lambda f: change(f, n_embd=None),
        "model.dim=null: must have a value, but is null; null: n_embd$",
    ),
    "a value of another kind": (lambda f: change(f, n_inner=[3]), r"config.json: n_inner=\[3\] must be a whole number"),
    "more than memory": (lambda f: change(f, vocab_size=10**9), "transformer.wte.weight has shape .*, but .* needs"),
    "layers without end": (
        lambda f: change(f, n_layer=10**13),
        "n_layer=10000000000000 must be a whole number from 1 to 10,000",
    ),
    "rounded to whole numbers": (
        lambda f: tensors(f, lambda t: t.update({"transformer.ln_f.bias": t["transformer.ln_f.bias"].to(torch.int8)})),
        "transformer.ln_f.bias holds int8, which is not implemented",
    ),
    "none of a size": (lambda f: change(f, n_head=0), "config.json: n_head=0 must be a whole number from 1"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_one_line_that_names_it(what, folder):
    damage, message = BROKEN[what]
    damage(folder)
    with pytest.raises(UserError, match=message) as e:
        llmlab.load_hf(folder, verbose=False)
    assert "\n" not in str(e.value)


def test_what_is_ignored_is_said_in_a_line(folder, capsys):
    tensors(folder, resized("transformer.h.0.attn.bias", 1, 1, 8, 8))
    llmlab.load_hf(folder)
    assert capsys.readouterr() == ("", f"{folder}: ignored transformer.h.0.attn.bias\n")


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        llmlab.load_hf(tmp_path / "nowhere")


def test_a_stale_index_beside_the_weights_is_not_read(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert llmlab.load_hf(folder, verbose=False).config["n_embd"] == 32


def test_saving_over_a_checkpoint_replaces_it(folder):
    model = build(*tiny("llama3"))
    llmlab.save_hf(model, folder)
    back = llmlab.load_hf(folder, verbose=False)
    assert back.config["model_type"] == "llama"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_an_argument_that_the_model_does_not_read_is_refused(folder):
    model = llmlab.load_hf(folder, verbose=False)
    with pytest.raises(TypeError, match="token_type_ids"):
        model(torch.ones(1, 3, dtype=torch.long), token_type_ids=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="inputs_embeds"):
        model(torch.ones(1, 3, dtype=torch.long), inputs_embeds=torch.zeros(1, 3, 32))


CLASSES = {
    "a classifier": ("bert", "classes", "pooled", {"n_classes": 5}),
    "tokens' classes": (
        "modernbert",
        "labels",
        "token",
        {"n_classes": 3, "act": "gelu", "dense_bias": False, "normed": True},
    ),
    "a reward": ("llama3", "scalar", "scalar", {"pool": "last", "skip": 7}),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "a reward" else pytest.mark.slow) for c in CLASSES])
@torch.no_grad()
def test_a_head_with_classes_says_how_many(case, transformers, tmp_path):
    family, role, name, options = CLASSES[case]
    usual = spec(*tiny(family))
    model = build_model(replace(usual, heads={role: hub.part("head", name, **options)})).eval()
    llmlab.save_hf(model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    cls = getattr(transformers, config.architectures[0])
    reference, info = cls.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    data = {"ids": ids(3, 9)}
    data["ids"][1, 5:] = 7
    theirs = reference.eval()(input_ids=data["ids"]).logits
    torch.testing.assert_close(model(data).heads[role], theirs, rtol=2e-5, atol=2e-5)


def test_what_the_reference_holds_but_does_not_read_goes_back_out(transformers, tmp_path):
    config = transformers.BertConfig(vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8, max_position_embeddings=12, tie_word_embeddings=False)  # fmt: skip
    reference = transformers.BertForMaskedLM(config)
    for n, p in reference.named_parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(len(n)))
    reference.save_pretrained(tmp_path / "theirs")
    llmlab.save_hf(llmlab.load_hf(tmp_path / "theirs"), tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / where / "model.safetensors") for where in ("theirs", "ours"))
    assert not torch.equal(theirs["cls.predictions.bias"], theirs["cls.predictions.decoder.bias"])
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
