"""`llmlab export`: the folder is what the run's checkpoint is, for llmlab and for transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmlab.commands import cli
from llmlab.commands.eval import evaluate
from llmlab.commands.export import export
from llmlab.config import schema
from llmlab.config.compose import compose
from llmlab.data.template import Template
from llmlab.data.tokenizer import make
from llmlab.errors import UserError
from llmlab.hub import text as text_of_hub
from llmlab.runs import checkpoint
from llmlab.runs.folder import load_model
from llmlab.training.run import train


def run(folder, *overrides):
    last = {o.partition("=")[0]: o for o in overrides}
    return train(compose(list(last.values())), folder)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "run"
    run(folder, *tiny, "tokenizer=bpe", "tokenizer.vocab_size=300", "train.checkpoint_every=4", "model.n_kv_heads=1")
    return folder


@pytest.fixture(scope="module")
def exported(trained):
    export(trained, trained.parent / "ours")
    return trained.parent / "ours"


def test_the_weights_are_those_of_the_newest_checkpoint_or_of_the_step_asked_for(trained, exported, tmp_path):
    names = {p.name for p in exported.iterdir()}
    assert names == {
        "config.yaml",
        "export.json",
        "model.json",
        "model.safetensors",
        "special.json",
        "tokenizer.json",
    }
    said = export(trained, tmp_path / "eight", step=8)
    assert said == f"the weights of step 8; use them as init_from={tmp_path / 'eight'} or run={tmp_path / 'eight'}"
    for folder, step in ((exported, 12), (tmp_path / "eight", 8)):
        theirs = checkpoint.read_weights(trained / "checkpoints" / checkpoint.name(step))
        ours = load_file(folder / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
        assert json.loads((folder / "export.json").read_text())["step"] == step


def test_a_run_that_has_diverged_is_neither_exported_nor_gone_on_with(trained, tmp_path):
    weights, state = checkpoint.read(trained / "checkpoints" / checkpoint.name(12))
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / checkpoint.name(12)
    name = next(n for n in weights if n.endswith("ffn.down.weight"))
    weights[name].view(-1)[0] = torch.nan
    checkpoint.write(path, weights, state)
    for format in ("llmlab", "hf"):
        with pytest.raises(
            UserError, match=f"{path} is of a run that has diverged: {name} holds NaN or infinity in 1 of"
        ):
            export(tmp_path / "run", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    for read in (
        checkpoint.read,
        lambda _: load_model(tmp_path / "run"),
    ):  # resume and init_from; generate, chat and eval
        with pytest.raises(UserError, match=f"diverged: {name}"):
            read(path)


def test_it_is_what_eval_generate_and_init_from_take(trained, exported, tiny, tmp_path, capsys):
    run_alone = tmp_path / "alone"
    shutil.copytree(exported, run_alone)
    assert evaluate(str(run_alone)) == evaluate(str(trained))
    said = []
    for folder in (trained, run_alone):
        assert cli.run(["generate", f"run={folder}", "prompt=the ", "max_new=8", "temperature=0"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    found = run(
        tmp_path / "new",
        *tiny,
        "tokenizer=bpe",
        "tokenizer.vocab_size=300",
        "model.n_kv_heads=1",
        f"init_from={run_alone}",
        "optimizer.lr=1e-30",
        "trainer.max_steps=1",
    )
    assert found["steps"] == 1
    ours = checkpoint.read_weights(tmp_path / "new/checkpoints/step=00000001")
    theirs = load_file(run_alone / "model.safetensors")
    assert all(torch.allclose(ours[n], theirs[n], rtol=0, atol=1e-20) for n in theirs)


def test_transformers_reads_the_model_and_the_tokenizer(exported, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(exported, tmp_path / "hf", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model, tokenizer = load_model(exported)
    text = "the quick brown  fox\n runs, Zürich 12345"
    ids = tokenizer.encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == text
    assert their_tokenizer.eos_token_id == theirs.config.eos_token_id == tokenizer.special.get("eos")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits
        ours = model({"ids": torch.tensor([ids])}).heads["tokens"]
    assert torch.allclose(logits, ours, atol=1e-5)


def test_a_chat_model_of_a_type_whose_class_transformers_replaces(tiny, tmp_path, capsys):
    """qwen2, with the tokenizer of another folder: its special tokens, its template, where its texts end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tmp_path / "source"
    source.mkdir()
    learnt = make(schema.Tokenizer(vocab_size=280), ["the quick brown fox runs. " * 9], [], ("first", "last", "turn"))
    learnt.inner.save(str(source / "tokenizer.json"))
    names = {"bos_token": "<|first|>", "eos_token": {"content": "<|last|>", "lstrip": False}}
    (source / "special_tokens_map.json").write_text(json.dumps(names))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}{{ eos_token }}"
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "model_max_length": 9}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.2}))

    words = [o for o in tiny if not o.startswith("tokenizer")]
    run(tmp_path / "run", *words, "model=qwen2", "tokenizer=file", f"tokenizer.path={source}", "trainer.max_steps=1")
    export(tmp_path / "run", tmp_path / "hf", "hf")
    model, tokenizer = load_model(tmp_path / "run")
    assert tokenizer.special["eos"] == 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the quick  brown fo\u0301x runs\n\n12345 don't"  # not composed, lines, digits: as Qwen2Tokenizer has it not
    ids = tokenizer.encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    talk = [{"role": "user", "content": "the fox"}]
    prompt = Template.from_files(tokenizer.beside, "run").render(talk)
    assert prompt == "<|first|>the fox<|turn|><|last|>"
    assert their_tokenizer.apply_chat_template(talk)["input_ids"] == tokenizer.encode_marked(prompt)
    assert theirs.generation_config.eos_token_id == [1, 2] and theirs.config.eos_token_id == 1
    assert (theirs.config.bos_token_id, theirs.config.pad_token_id, their_tokenizer.pad_token_id) == (0, None, None)
    assert (
        their_tokenizer.model_max_length == model.sizes.max_positions and len(their_tokenizer) == tokenizer.vocab_size
    )
    with torch.no_grad():
        ours = model({"ids": torch.tensor([ids])}).heads["tokens"]
    assert torch.allclose(theirs(torch.tensor([ids])).logits, ours, atol=1e-5)
    back, back_tokenizer = text_of_hub.load(tmp_path / "hf")
    assert back_tokenizer.stops == (1, 2) and back_tokenizer.encode(text) == ids
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))


def test_an_export_that_transformers_would_read_otherwise_leaves_nothing(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llmlab.hub.save_tokenizer.CLASS", "BertTokenizer")
    assert cli.run(["export", f"run={exported}", f"to={tmp_path / 'hf'}", "format=hf"]) == 1
    out, err = capsys.readouterr()
    assert (
        out == ""
        and "would read the tokenizer of a llama model otherwise: BertTokenizer" in err
        and err.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["to=OUT"], "run is missing"),
        (["run=RUN", "to=OUT", "format=onnx"], "format=onnx must be one of llmlab, hf"),
        (["run=RUN", "to=OUT", "step=7"], "keeps no checkpoint of that step (kept: 8, 12)"),
        (["run=RUN", "to=RUN"], "there is something already"),
        (["run=OUT", "to=OUT"], "there is no such folder"),
        (["run=TEXTS", "to=OUT"], "is no run folder"),
    ],
)
def test_errors_are_a_line_and_leave_nothing(arguments, said, trained, corpus, tmp_path, capsys):
    places = {"RUN": trained, "OUT": tmp_path / "out", "TEXTS": corpus}
    words = [f"{k}={places.get(v, v)}" for k, _, v in (a.partition("=") for a in arguments)]
    assert cli.run(["export", *words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_what_transformers_has_no_place_for_is_refused_by_name(tiny, tmp_path):
    run(tmp_path / "run", *tiny, "attention=mla", "trainer.max_steps=1")
    with pytest.raises(UserError, match="no place for attention=mla"):
        export(tmp_path / "run", tmp_path / "hf", "hf")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_flipped_bit_is_noticed(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "bad")
    file = tmp_path / "bad/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is corrupt"):
        load_model(tmp_path / "bad")
    with pytest.raises(UserError, match="holds exported weights"):
        run(tmp_path / "again", f"resume={exported}")
