"""llmlab chat: turn by turn what the reference answers; through a pipe and on a terminal."""

import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch

from llmlab.commands import cli
from llmlab.commands.chat import Chat
from llmlab.data.template import Template
from llmlab.decoding.sampling import Sampling
from llmlab.hub import text

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}{{ {'system': 'river', 'user': 'dog', 'assistant': 'fox'}[m.role] + ' ' + m.content + eos_token + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}fox {% endif %}"
)
LINES = ("the quick brown dog", "jumps", "far from the lazy river")


@pytest.fixture(scope="module")
def made(transformers, tmp_path_factory, words):
    """A LLaMA that follows a template and seldom says its eos."""
    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=words.save(folder, TEMPLATE),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,
        eos_token_id=0,
        bos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return folder, model


def reference(transformers, made, lines, max_new, system=None):
    folder, model = made
    words = transformers.AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "system", "content": system}] if system else []
    for line in lines:
        talk.append({"role": "user", "content": line})
        ids = words.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=max_new, do_sample=False, pad_token_id=0)
        answer = words.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        talk.append({"role": "assistant", "content": answer})
        yield answer


def test_lines_of_a_pipe_are_answered_as_the_reference_does(transformers, made, capsys, monkeypatch):
    wanted = list(reference(transformers, made, LINES, 8, system="a lazy dog"))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([LINES[0], "", LINES[1], LINES[2], "/clear", LINES[0]])))
    how = [f"hf={made[0]}", "temperature=0", "max_new=8", "system=a lazy dog"]
    assert cli.run(["chat", *how]) == 0
    assert capsys.readouterr().out.splitlines() == [*wanted, wanted[0]]
    monkeypatch.setattr("sys.stdin", io.StringIO("jumps\n/quit\nover\n"))
    assert cli.run(["chat", *how[:3]]) == 0
    assert capsys.readouterr().out.splitlines() == list(reference(transformers, made, ["jumps"], 8))


def test_generate_puts_a_prompt_as_a_question(transformers, made, capsys, tmp_path):
    wanted = [next(reference(transformers, made, [line], 8)) for line in LINES]
    how = [f"hf={made[0]}", "temperature=0", "max_new=8", "chat=true"]
    assert cli.run(["generate", *how, f"prompt={LINES[0]}"]) == 0
    assert capsys.readouterr().out == wanted[0] + "\n"
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    assert cli.run(["generate", *how, f"prompts={tmp_path / 'lines.txt'}", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(s["prompt"], s["text"]) for s in said] == list(zip(LINES, wanted, strict=True))


def test_a_prompt_has_the_tokens_that_special_tokens_map_names(transformers, words, tmp_path, capsys):
    template = "{{ bos_token }} {% for m in messages %}{{ m.content }} {{ eos_token }} {% endfor %}{{ pad_token }}"
    size = words.save(tmp_path, template)
    about = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
    names = {"bos_token": "river", "eos_token": {"content": "<end>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), text.tokenizer_of(tmp_path)
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "runs"}]
    prompt = Template.from_files(ours.beside, "here").render(talk)
    assert ours.encode_marked(prompt) == theirs.apply_chat_template(talk)["input_ids"]
    assert ours.encode_marked(prompt)[0] == theirs.bos_token_id and ours.stops == (theirs.eos_token_id,)
    assert ours.encode("the fox <end> river") == theirs("the fox <end> river")["input_ids"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"template": "x"}]}))
    assert cli.run(["chat", f"hf={tmp_path}"]) == 1
    line = f"error: {tmp_path}: tokenizer_config.json: chat_template[0].name is missing\n"
    assert capsys.readouterr() == ("", line)


def test_the_cache_serves_the_next_turn(made):
    chat = Chat(*text.load(made[0]), "here", max_new=8, sampling=Sampling(temperature=0))
    for line in LINES:
        before = len(chat.session.ids)
        "".join(chat.answer(line))
        assert chat.session.reused == before
    assert chat.ended in ("length", "eos") and chat.too_long() is None
    "".join(chat.answer("the " * 40))
    assert chat.too_long().endswith("tokens, but the model was made for 64: /clear begins anew")
    chat.clear()
    assert chat.messages == [] and chat.session.ids == []


def test_an_answer_that_is_broken_off_is_remembered_so_far(made):
    chat = Chat(*text.load(made[0]), "here", max_new=50, sampling=Sampling(temperature=0))
    pieces = chat.answer(LINES[0])
    said = [next(pieces), next(pieces)]
    pieces.close()
    assert [m["content"] for m in chat.messages] == [LINES[0], "".join(said)]
    assert "".join(chat.answer(LINES[1])) and len(chat.messages) == 4
    chat.stop = ("fox",)
    chat.clear()
    whole = "".join(chat.answer("the fox"))
    assert "fox" not in whole and chat.messages[-1]["content"] == whole


SYSTEMLESS = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "typed", "line"),
    [
        (None, "", "hf={folder}: its tokenizer has no chat template, so what it writes is a text and no answer"),
        ("{% for %}", "", "hf={folder}: its chat template can't be read: line 1: Expected"),
        (SYSTEMLESS, "system=kind", "hf={folder}: its chat template says: no system"),
        (TEMPLATE, "max_new=0", "max_new=0 must be at least 1"),
        (TEMPLATE, "temprature=1", "temprature: there is no such key of llmlab chat; did you mean temperature?"),
        (TEMPLATE, "run=some", "run and hf can't both be given; llmlab chat run=FOLDER, or hf=FOLDER"),
    ],
)
def test_what_is_wrong_is_a_line(made, words, tmp_path, capsys, monkeypatch, template, typed, line):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(made[0] / name)
    words.save(tmp_path, template)
    monkeypatch.setattr("sys.stdin", io.StringIO("the fox\n"))
    assert cli.run(["chat", f"hf={tmp_path}", *typed.split()]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: " + line.format(folder=tmp_path)) and err.count("\n") == 1


def spawn(*words):
    """llmlab chat on a terminal of its own."""
    ours, theirs = pty.openpty()

    def control():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and what it starts
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "chat", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=control,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
    )
    os.close(theirs)
    return process, ours


def until(ours, text, within=60.0):
    said, end = b"", time.monotonic() + within
    while text not in said:
        ready, _, _ = select.select([ours], [], [], max(0.0, end - time.monotonic()))
        assert ready, said
        said += os.read(ours, 1024)
    return said.decode()


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(made, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(made[0], tmp_path / "endless")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0] = 0  # of 14 tokens others are always likelier than the eos
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    process, ours = spawn(f"hf={folder}", "temperature=0", "max_new=5000")
    try:
        assert "Ctrl-C stops an answer, /clear begins anew" in until(ours, b"> ")
        os.write(ours, b"the quick brown dog\n")
        until(ours, b"\n")  # the echo
        until(ours, b" ")
        os.write(ours, b"\x03")
        said = until(ours, b"\n> ")
        assert "Traceback" not in said and "more than" not in said
        time.sleep(1)  # readline writes the prompt a moment before it listens: no hand is as quick
        os.write(ours, b"\x03")  # at the prompt
        assert "/quit or Ctrl-D ends" in until(ours, b"\n> ")
        os.write(ours, b"/what\n")
        assert "/what: there is no such command; /clear and /quit are" in until(ours, b"\n> ")
        os.write(ours, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
