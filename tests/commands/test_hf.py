"""`llmlab generate hf=` and `llmlab eval hf=`: as the reference answers."""

import json
import math
import shutil

import pytest
import torch

from llmlab.commands import cli


@pytest.fixture(scope="module")
def made(transformers, tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=words.save(folder),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=48,
        initializer_range=0.5,
        eos_token_id=0,
        bos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return folder, model


def said(capsys, *argv):
    code = cli.run(list(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_generate_writes_the_references_greedy_tokens(made, words, capsys):
    folder, theirs = made
    ids = torch.tensor([[1, 3, 5, 6]])
    wanted = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:].tolist()
    code, out, _ = said(
        capsys, "generate", f"hf={folder}", "prompt=the quick fox jumps", "max_new=12", "temperature=0", "--json"
    )
    text = [w for w in json.loads(out)["text"].split() if w != "<end>"]
    assert (code, text) == (0, [words.list[i - 1] for i in wanted if i != 0])


def test_eval_gives_the_references_loss(made, words, capsys):
    folder, theirs = made
    code, out, _ = said(capsys, "eval", f"hf={folder}", f"data={words.text}", "--json")
    found = json.loads(out)
    known = {w: i for i, w in enumerate(words.list, 1)}
    ids = torch.tensor([known[w] for w in words.text.read_text().split()])
    n = (len(ids) - 1) // 48 * 48
    assert len(ids) - 1 > n  # the last window is a shorter one
    with torch.no_grad():
        logits = [theirs(ids[:n].view(-1, 48)).logits.flatten(0, 1), theirs(ids[None, n:-1]).logits[0]]
    loss = torch.nn.functional.cross_entropy(torch.cat(logits).double(), ids[1:]).item()
    assert (code, found["targets"]) == (0, len(ids) - 1)
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    text = words.text.read_text()
    size = len(text) - len(text.split()[0])  # the first token is no target; the spaces are text too
    assert found["bytes"] == size
    assert found["bits_per_byte"] == pytest.approx(loss * (len(ids) - 1) / size / math.log(2), rel=1e-5)


def with_bos(folder, to, *, template):
    """The checkpoint with a tokenizer whose bos is <bos>, put before a text by its template or only named."""
    from tokenizers import Tokenizer, processors

    shutil.copytree(folder, to)
    inner = Tokenizer.from_file(str(to / "tokenizer.json"))
    vocab = json.loads(inner.to_str())
    vocab["model"]["vocab"] = {"<bos>" if t == "river" else t: i for t, i in vocab["model"]["vocab"].items()}
    inner = Tokenizer.from_str(json.dumps(vocab))
    inner.add_special_tokens(["<bos>"])
    if template:
        known = [("<bos>", inner.token_to_id("<bos>"))]
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=known)
    inner.save(str(to / "tokenizer.json"))
    about = json.loads((to / "tokenizer_config.json").read_text())
    (to / "tokenizer_config.json").write_text(json.dumps({**about, "bos_token": "<bos>"}))
    return inner


@pytest.mark.parametrize("template", [True, False])
def test_eval_begins_each_window_as_the_tokenizer_begins_a_text(made, words, tmp_path, capsys, template):
    folder, theirs = made
    inner = with_bos(folder, tmp_path / "c", template=template)
    texts = [" ".join(w for w in words.text.read_text().split()[a:b] if w != "river") for a, b in ((0, 60), (60, 131))]
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    first, end = inner.token_to_id("<bos>"), words.eos
    known = [inner.encode(t, add_special_tokens=False).ids for t in texts]
    stream = [*known[0], end, first, *known[1], end]  # after the bos that the first window has anyway
    nll, targets = 0.0, 0
    for at in range(0, len(stream), 48):
        window = torch.tensor([first, *stream[at : at + 48]])
        labels = window[1:].masked_fill(window[1:] == first, -100)
        with torch.no_grad():
            logits = theirs(window[None, :-1]).logits[0].double()
        nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        targets += int((labels >= 0).sum())
    argv = ["eval", f"hf={tmp_path / 'c'}", f"data={tmp_path / 'texts'}", "seq_len=48", "--json"]
    code, out, err = said(capsys, *argv, *([] if template else ["data.bos=true"]))
    found = json.loads(out)
    assert (code, found["targets"]) == (0, targets) == (0, len(stream) - 1)
    assert found["loss"] == pytest.approx(nll / targets, abs=1e-6)
    assert found["bytes"] == sum(map(len, texts))  # the first word too
    assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / found["bytes"], rel=1e-5)
    assert "each document begins with <bos>" in err and "so does each window" in err
    _, out, err = said(capsys, *argv, *(["bos=false"] if template else []))
    assert "<bos>" not in err and json.loads(out)["targets"] == len(stream) - 2


def test_bos_that_there_is_not(made, words, capsys):
    code, _, err = said(capsys, "eval", f"hf={made[0]}", f"data={words.text}", "bos=true")
    assert code == 1 and err == (
        "error: data.bos=true: the files beside tokenizer.json name no bos_token; leave it out\n"
    )
    code, _, err = said(capsys, "eval", "run=x", "bos=true")
    assert code == 1 and err.startswith("error: bos= is for hf=")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("generate hf=nowhere prompt=the", "hf=nowhere: there is no such folder"),
        ("generate prompt=the", "run is missing; llmlab generate run=FOLDER, or hf=FOLDER"),
        ("generate run=a hf=b prompt=the", "run and hf can't both be given"),
        ("eval hf={folder}", "data is missing: a checkpoint has no text of its own"),
        ("eval hf={folder} data={text} seq_len=49", "seq_len=49 is more than the 48 positions"),
    ],
)
def test_what_is_wrong_is_a_line(made, words, capsys, argv, line):
    code, _, err = said(capsys, *argv.format(folder=made[0], text=words.text).split())
    assert code == 1 and err.startswith(f"error: {line}") and err.count("\n") == 1


def test_a_folder_without_a_tokenizer_is_refused(made, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    code, _, err = said(capsys, "generate", f"hf={tmp_path}", "prompt=the")
    assert code == 1 and "has no tokenizer.json; transformers makes one" in err
