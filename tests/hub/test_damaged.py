"""A checkpoint from outside with one thing wrong: a line that names it, before a model is built; NaN is never written over."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.commands import cli
from llmlab.errors import UserError
from llmlab.hub import header_check
from llmlab.hub.load import describe, load_hf

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(transformers, tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("damaged")
    config = transformers.LlamaConfig(
        vocab_size=words.save(folder),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "hf")


def change(file, **keys):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **keys}))


def shards(folder, names):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    change(folder / "model.safetensors.index.json", weight_map=names)


def twice(folder):
    shutil.copy(folder / "model.safetensors", folder / "b.safetensors")
    shards(folder, {"x": "a.safetensors", "y": "b.safetensors"})


CONFIG, GENERATION = "config.json", "generation_config.json"
DAMAGE = {
    "layers": (
        lambda f: change(f / CONFIG, num_hidden_layers=9999),
        "config.json says 9,999 layers, but the weights hold 2",
    ),
    "layers of a list": (
        lambda f: change(f / CONFIG, num_hidden_layers=10**9),
        "num_hidden_layers=1000000000 must be a whole number from 1 to 10,000",
    ),
    "heads": (lambda f: change(f / CONFIG, num_attention_heads=2**31 - 1), "config.json: model.n_kv_heads"),
    "kind": (
        lambda f: change(f / CONFIG, model_type=["llama"]),
        r"config.json: model_type=\['llama'\] is not implemented",
    ),
    "deep": (lambda f: (f / CONFIG).write_text("[" * 50_000), "config.json: nested more than"),
    "digits": (
        lambda f: (f / CONFIG).write_text('{"a": %s}' % ("9" * 5000)),
        "config.json: holds a number of too many",
    ),
    "forced": (lambda f: change(f / GENERATION, forced_bos_token_id=10**9), "forced_bos_token_id=1000000000 is no id"),
    "eos text": (lambda f: change(f / GENERATION, eos_token_id="x"), "generation_config.json: eos_token_id must be"),
    "eos": (lambda f: change(f / GENERATION, eos_token_id=2**31), "eos_token_id=2147483648 is no id"),
    "no JSON": (lambda f: (f / GENERATION).write_text("{"), "generation_config.json: not valid JSON"),
    "long shard": (lambda f: shards(f, {"a": "x" * 5000}), "names the shard 'xxx.*', which is not in the folder"),
    "shard with NUL": (lambda f: shards(f, {"a": "x\0"}), "names the shard 'x.x00', which is not in the folder"),
    "shard above": (lambda f: shards(f, {"a": "../hf/a.safetensors"}), "which is not in the folder"),
    "shard of a number": (lambda f: shards(f, {"a": 3}), "weight_map.a must be a text, but is 3"),
    "no shards": (lambda f: shards(f, {}), "its weight_map is empty"),
    "a tensor twice": (twice, "b.safetensors: '.*' is in another shard too"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_a_line(what, folder, capsys):
    damage, said = DAMAGE[what]
    damage(folder)
    assert cli.run(["generate", f"hf={folder}", "prompt=the", "max_new=2"]) == 1
    err = capsys.readouterr().err
    with pytest.raises(UserError, match=said):
        raise UserError(err)
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 700 and "LLMLAB_DEBUG" not in err


def test_experts_and_stacks_are_held_against_the_headers(tmp_path):
    two = {f"model.layers.{i}.mlp.experts.{e}.w": torch.empty(2, 2) for i in range(2) for e in range(4)}
    joined = {f"h.{i}.experts.gate": torch.empty(4, 2, 2) for i in range(2)}
    for shapes in (two, joined):
        header_check.check_counts(["model.n_layers=2", "model.moe.n_experts=4"], None, shapes, tmp_path)
        with pytest.raises(UserError, match="says 5 experts, but the weights hold 4"):
            header_check.check_counts(["model.n_layers=2", "model.moe.n_experts=5"], None, shapes, tmp_path)
        for wrong in ("null", "x", "1e308", "1" * 400):
            with pytest.raises(UserError, match=r"model\.moe\.n_experts must be a whole number, but is"):
                header_check.check_counts(["model.n_layers=2", f"model.moe.n_experts={wrong}"], None, shapes, tmp_path)
    pair = [f"stacks.{name}.n_layers=2" for name in ("encoder", "decoder")]
    one = {f"encoder.block.{i}.w": torch.empty(2) for i in range(2)}
    header_check.check_counts(["model.n_layers=4", *pair], None, one, tmp_path)
    with pytest.raises(UserError, match="says 3 layers of the encoder, but the weights hold 2"):
        header_check.check_counts(["model.n_layers=5", "stacks.encoder.n_layers=3"], ("encoder",), one, tmp_path)
    header_check.check_counts(
        ["stacks.decoder.n_layers=3"], ("encoder",), one, tmp_path
    )  # which the class does not read
    header_check.check_counts(
        ["model.n_layers=12", f"execute={[0] * 12}".replace(" ", "")],
        None,
        {"g.0.w": one["encoder.block.0.w"]},
        tmp_path,
    )


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(folder, words, capsys, value):
    weights(folder, lambda t: t[NAME].view(-1)[3:5].fill_(value))
    for command in (["generate", "prompt=the"], ["eval", f"data={words.text}"], ["chat", "max_new=2"]):
        assert cli.run([*command[:1], f"hf={folder}", *command[1:]]) == 1
        assert capsys.readouterr().err == f"error: {folder}: {NAME} holds NaN or infinity in 2 of its 384 numbers\n"
    with pytest.raises(UserError, match=NAME):
        load_hf(folder)
    describe(folder)  # which reads no weights


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(folder, words, capsys, temperature):
    """All weights are finite, as float32 has it, and their product is not."""
    weights(folder, lambda t: t[NAME].fill_(3e38))
    assert cli.run(["generate", f"hf={folder}", "prompt=the", f"temperature={temperature}"]) == 1
    out, err = capsys.readouterr()
    which = "stacks.main.layers.1.ffn"
    assert err.startswith(f"error: the logits of new token 1 are NaN or infinity: {which}") and err.count("\n") == 1
    assert "fox" not in out
    assert cli.run(["eval", f"hf={folder}", f"data={words.text}"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: the loss is ") and which in err and "loss" not in out
