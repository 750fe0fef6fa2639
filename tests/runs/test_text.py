"""Text, tokenizer and weights that meet again: a run knows its own text by its fingerprint, and keeps its tokenizer."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from llmlab.commands import cli
from llmlab.config.compose import compose
from llmlab.data.tokenizer import Tokenizer, from_file
from llmlab.hub.save_tokenizer import as_trained
from llmlab.runs import checkpoint, record

SIZES = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=16", "train.batch_size=8"]
SIZES += ["train.sample=false", "train.validation_batches=2", "trainer.enable_progress_bar=false", "budget.steps=12"]
BPE = ["tokenizer=bpe", "tokenizer.vocab_size=300"]


def write(folder, seed, files=12):
    rng = random.Random(seed)
    words = [
        "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) for _ in range(60)
    ]
    folder.mkdir(exist_ok=True)
    for i in range(files):
        (folder / f"{folder.name}{i:02}.txt").write_text(" ".join(rng.choice(words) for _ in range(120)) + ".\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on a text that was named by a relative path, cut short, and what other texts there are."""
    here = tmp_path_factory.mktemp("own")
    for name, seed in (("text", 1), ("more", 2), ("other", 3)):
        write(here / name, seed)
    patch = pytest.MonkeyPatch()
    patch.chdir(here)
    patch.setenv("LLMLAB_CACHE", str(here / "cache"))
    cut = ["trainer.max_steps=8", "train.checkpoint_every=4", "optimizer.lr=1e-2"]
    assert cli.run(["train", "data=files", "data.path=text", *SIZES, *BPE, *cut, "hydra.run.dir=made"]) == 0
    yield here
    patch.undo()


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy of the texts and the run, alone in a folder of its own."""
    for name in ("text", "more", "other", "made"):
        shutil.copytree(made / name, tmp_path / name)
    told = json.loads((tmp_path / "made/run.json").read_text())
    told["data"]["path"] = str(tmp_path / "text")
    (tmp_path / "made/run.json").write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *argv, code=0):
    capsys.readouterr()
    assert cli.run(list(argv)) == code
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0)
    return errors[0] if errors else out


def measured(capsys, *argv):
    return json.loads(said(capsys, "eval", *argv, "--json"))["loss"]


def first_loss(folder):
    """Validation loss of a run of one step whose rate changes nothing."""
    return record.read(folder)["metrics"]["val_loss"]


def begin(name, *words):
    still = ["optimizer.lr=1e-30", "trainer.max_steps=1", f"hydra.run.dir={name}"]
    return ["train", "data=files", *SIZES, *still, *words]


# ---------------------------------------------------------------- init_from


@pytest.mark.slow
def test_the_runs_own_tokenizer_comes_with_its_weights(home, capsys):
    """On other text, with the words of the run typed again, for an export and for one of its checkpoints."""
    last = "made/checkpoints/step=00000008"
    said(capsys, "export", "run=made", "to=exported")
    told = said(capsys, *begin("a", "data.path=other", *BPE, "init_from=made"))
    assert "tokenizer: that of init_from" in told
    said(capsys, *begin("b", "data.path=other", "tokenizer=file", "tokenizer.path=made", "init_from=made"))
    said(capsys, *begin("c", "data.path=other", "init_from=exported"))
    said(capsys, *begin("d", "data.path=other", "data.validation=0.1", f"init_from={last}"))
    assert len({first_loss(n) for n in "abcd"}) == 1
    assert first_loss("a") == pytest.approx(measured(capsys, "run=a"), abs=1.0)
    own = (home / "made/tokenizer.json").read_bytes()
    assert all((home / n / "tokenizer.json").read_bytes() == own for n in "abcd")
    kept = record.read("a")["tokenizer"]
    assert kept == {"kind": "bpe", "from": "init_from", "path": str(home / "made")}
    assert record.read("made")["tokenizer"] == {"kind": "bpe", "from": "text", "path": None}


def with_template(to):
    """A tokenizer.json of words whose template puts <s> before a text, as a user may have downloaded it."""
    inner = Tokenizer.load(Path("made")).inner
    inner.add_special_tokens(["<s>"])
    ids = [("<s>", inner.token_to_id("<s>"))]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=ids)
    Path(to).mkdir()
    inner.save(f"{to}/tokenizer.json")
    about = {"bos_token": "<s>", "model_max_length": int(1e30)}  # as transformers writes it
    Path(to, "tokenizer_config.json").write_text(json.dumps(about))


@pytest.mark.slow
def test_what_documents_begin_with_comes_along(home, capsys):
    """data.bos of the run that weights are from, in a run from them and in an export; and all of another text is measured."""
    with_template("words")
    words = ["tokenizer=file", "tokenizer.path=words", "data.path=text", "data.max_documents=9"]
    told = said(capsys, *begin("plain", *words, "data.bos=false"))
    assert "begins with <s>" not in told

    def bos(*words):
        return compose(["data=files", "data.path=other", *words]).cfg.data.bos

    assert bos("init_from=plain") is False and bos("init_from=plain", "data.bos=true") is True
    assert bos("init_from=made") is None and bos("tokenizer=file", "tokenizer.path=plain") is None
    said(capsys, "export", "run=plain", "to=exported")
    assert bos("init_from=exported") is False

    told = said(capsys, "export", "run=plain", "to=hf", "format=hf")
    assert "its texts begin without <s>" in told
    found = [
        json.loads(said(capsys, "eval", f"{w}", "data=other", "seq_len=16", "--json")) for w in ("run=plain", "hf=hf")
    ]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-6) and found[0]["bytes"] == found[1]["bytes"]
    texts = [p.read_text() for p in sorted(Path("other").iterdir())]
    first = Tokenizer.load(Path("plain")).encode_sized(texts[0])[1][0]  # which is no target
    assert found[0]["bytes"] == sum(map(len, texts)) - first

    error = said(capsys, *begin("a", "data.path=other", "init_from=made", "data.bos=true"), code=1)
    assert error == "error: data.bos=true: the tokenizer is of tokenizer=bpe, which has no bos; leave it out"
    about = Path("plain/tokenizer_config.json")
    about.write_text(about.read_text().replace('"<s>"', '"<t>"'))
    assert "tokenizer_config.json is not as" in said(capsys, *begin("a", "data.path=other", "init_from=plain"), code=1)

    config = Path("plain/config.yaml")
    config.write_text(config.read_text().replace("  bos: false\n", ""))  # a run of before there was this key
    assert bos("init_from=plain") is False
    config.write_text(config.read_text().replace("  field: text\n", "  field: text\n  bos: true\n"))
    assert bos("init_from=plain") is True and bos("init_from=plain", "data.bos=false") is False


@pytest.mark.parametrize(("template", "lead", "shown"), [(True, (), ["x"]), (False, (300,), ["<s>", "x"])])
def test_a_template_as_documents_were_trained(template, lead, shown, home):
    with_template("words")
    tokenizer = from_file("words", ())
    if not template:
        tokenizer.inner.post_processor = None
    tokenizer.lead = lead
    assert as_trained(tokenizer)
    assert tokenizer.inner.encode("x").tokens == shown and tokenizer.opening() == lead
    assert tokenizer.inner.encode("x", "x").tokens == shown * 2 and as_trained(tokenizer) == ""


def test_other_shares_of_the_same_text_learn_no_other_tokenizer(home, capsys):
    said(capsys, *begin("a", "data.path=text", "data.validation=0.3", "data.max_documents=9", "init_from=made"))
    assert (home / "a/tokenizer.json").read_bytes() == (home / "made/tokenizer.json").read_bytes()


@pytest.mark.parametrize("words", [["tokenizer=char"], ["tokenizer=bpe", "tokenizer.vocab_size=299"]])
def test_another_tokenizer_is_refused_unless_it_is_to_be_new(words, home, capsys):
    error = said(capsys, *begin("a", "data.path=other", "init_from=made", *words), code=1)
    assert error.startswith(f"error: {' '.join(words)}: the weights of init_from=made know the tokens of their own")
    assert "(tokenizer=bpe, 300 tokens)" in error and "init_from.tokenizer=new" in error
    assert not (home / "a").exists()


@pytest.mark.slow
def test_weights_without_their_tokenizer_begin_nothing(home, capsys):
    (home / "made/special.json").unlink()
    error = said(capsys, *begin("a", "data.path=other", "init_from=made"), code=1)
    assert "init_from=made: there is no special.json in" in error and "init_from.tokenizer=new" in error
    shutil.copy(home / "made/tokenizer.json", home / "made/special.json")
    assert "special.json: " in said(capsys, *begin("a", "data.path=other", "init_from=made"), code=1)
    tokenizer = (home / "made/tokenizer.json").read_text()
    (home / "made/special.json").write_text(json.dumps({"kind": "bpe", "special": {"eos": 1}}))
    error = said(capsys, *begin("a", "data.path=other", "init_from=made"), code=1)
    assert "made/special.json is not as the run wrote it" in error
    assert (home / "made/tokenizer.json").read_text() == tokenizer and not (home / "a").exists()
    said(capsys, *begin("a", "data.path=other", *BPE, "init_from=made", "init_from.tokenizer=new"))


def test_a_new_tokenizer_where_it_is_asked_for(home, capsys):
    told = said(capsys, *begin("a", "data.path=other", *BPE, "init_from=made", "init_from.tokenizer=new"))
    assert "note: init_from.tokenizer=new" in told
    assert (home / "a/tokenizer.json").read_bytes() != (home / "made/tokenizer.json").read_bytes()
    assert record.read("a")["tokenizer"]["from"] == "text"
    error = said(capsys, *begin("b", "data.path=other", "init_from.tokenizer=new"), code=1)
    assert "init_from.tokenizer=new has no effect without init_from=RUN" in error


def test_a_point_of_a_sweep_is_composed_with_the_tokenizer_of_its_own_start(home):
    from llmlab.sweep import plan

    shutil.copytree("made", "again")
    points = plan.make_plan(["data=files", "data.path=other", *SIZES, "init_from=made,again"]).points
    assert len({p.hash for p in points}) == 2
    words = [next(o for o in compose(p.overrides).effective if o.startswith("tokenizer.path=")) for p in points]
    assert words == [f'tokenizer.path="{home / n}"' for n in ("made", "again")]


@pytest.mark.slow
def test_characters_that_the_tokenizer_lacks(home, capsys):
    """One document has no token that ends it; documents of another text then follow each other without one."""
    (home / "one.txt").write_text("".join(p.read_text() for p in sorted((home / "text").iterdir())))
    said(capsys, *begin("chars", "data.path=one.txt", "tokenizer=char"))
    assert Tokenizer.load(home / "chars").special == {}
    said(capsys, *begin("a", "data.path=text", "tokenizer=char", "init_from=chars"))
    assert Tokenizer.load(home / "a").special == {}
    (home / "text/z.txt").write_text("Zürich. " * 40)
    error = said(capsys, *begin("b", "data.path=text", "init_from=chars"), code=1)
    assert "a character that the tokenizer does not have" in error
    assert "a character that the tokenizer does not have" in said(capsys, "eval", "run=chars", "data=text", code=1)


# ---------------------------------------------------------------- resume and eval


def test_other_text_is_refused_with_what_has_changed(home, capsys):
    before = {p: p.read_bytes() for p in (home / "made").rglob("*") if p.is_file()}
    loss = measured(capsys, "run=made")
    (home / "text/text03.txt").write_text("another text " * 50)
    (home / "text/text04.txt").unlink()
    for file in (home / "more").iterdir():
        shutil.copy(file, "text")
    for argv in (["train", "resume=made", "trainer.max_steps=9"], ["eval", "run=made"]):
        error = said(capsys, *argv, code=1)
        assert f"data.path={home / 'text'} is not the text that it was trained on" in error
        assert "it had 12 documents; 1 changed, 12 added, 1 removed (fingerprint " in error
    assert f"llmlab eval run=made data={home / 'text'}" in error
    assert {p: p.read_bytes() for p in before} == before
    shutil.rmtree("text")
    shutil.copytree(Path("made").resolve().parent / "other", "text")  # gone, and then other text in its place
    assert "12 added, 12 removed" in said(capsys, "train", "resume=made", "trainer.max_steps=9", code=1)
    shutil.rmtree("text")
    assert "its text is gone" in said(capsys, "eval", "run=made", code=1)
    assert loss > 0


@pytest.mark.slow
def test_text_that_moved_may_be_named_anew(home, made, capsys):
    shutil.move("text", "moved")
    assert "data.path=PATH" in said(capsys, "train", "resume=made", "trainer.max_steps=-1", code=1)
    assert "is not the text" in said(capsys, "train", "resume=made", "data.path=other", code=1)
    said(capsys, "train", "resume=made", "data.path=moved", "trainer.max_steps=10")
    assert record.read("made")["data"]["path"] == str(home / "moved")
    said(capsys, "train", "resume=made", "trainer.max_steps=-1")  # where it was found before
    assert record.read("made")["data"]["path"] == str(home / "moved")
    assert measured(capsys, "run=made") > 0
    assert said(capsys, "train", "resume=made").endswith("made is complete: 12 steps\n")  # not cut short any more
    shutil.copytree(made / "made", "whole")
    said(capsys, "train", "resume=whole", "trainer.max_steps=-1")  # the text is where it was for that one
    ours, theirs = (checkpoint.read_weights(home / n / "checkpoints/step=00000012") for n in ("made", "whole"))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_relative_path_means_the_same_from_another_folder(made, tmp_path, monkeypatch, capsys):
    loss = measured(capsys, "run=made")
    write(tmp_path / "text", 5)
    monkeypatch.chdir(tmp_path)
    assert measured(capsys, f"run={made / 'made'}") == loss
    shutil.copytree(made / "made", "copy")
    said(capsys, "train", "resume=copy", "trainer.max_steps=9")
    assert record.read("copy")["data"]["fingerprint"] == record.read(made / "made")["data"]["fingerprint"]


@pytest.mark.slow
def test_nothing_is_learnt_anew_where_the_cache_is_gone(home, monkeypatch, capsys):
    from llmlab.data import tokenizer

    loss = measured(capsys, "run=made")
    monkeypatch.setenv("LLMLAB_CACHE", str(home / "cache"))
    monkeypatch.setattr(tokenizer, "_bpe", lambda *_: pytest.fail("a tokenizer was learnt"))
    assert measured(capsys, "run=made") == loss
    said(capsys, "train", "resume=made", "trainer.max_steps=9")


def aged(folder, path):
    """A run folder as it was before its text, its tokenizer and its files were recorded."""
    told = json.loads((folder / "run.json").read_text())
    told.pop("files"), told.pop("tokenizer")
    told["data"] = {
        k: told["data"][k] for k in ("fingerprint", "tokens", "train_tokens", "validation_tokens", "vocabulary")
    }
    (folder / "run.json").write_text(json.dumps(told))
    lines = (folder / "config.yaml").read_text().splitlines()
    new = ("resume_from:", "init_tokenizer:", "published:")
    lines = [f"  path: {path}" if line.startswith("  path: /") else line for line in lines if not line.startswith(new)]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    for at in (folder / "checkpoints").iterdir():
        manifest = json.loads((at / "manifest.json").read_text())
        kept = {k: v for k, v in manifest.items() if k not in ("step", "run", "sha256")}
        (at / "manifest.json").write_text(checkpoint.sealed(kept) + "\n")


def test_older_run_folders_are_still_read(home, capsys):
    loss = measured(capsys, "run=made")
    aged(home / "made", "text")
    assert measured(capsys, "run=made") == loss
    said(capsys, "export", "run=made", "to=exported")
    assert measured(capsys, "run=exported") == loss
    assert said(capsys, "generate", "run=made", "prompt=ba", "max_new=2")
    said(capsys, "train", "resume=made", "trainer.max_steps=9")
    told = record.read("made")
    assert told["data"]["path"] == str(home / "text") and told["files"].keys() >= {"config.yaml", "tokenizer.json"}
    (home / "text/z.txt").write_text("something else " * 20)
    assert "is not the text" in said(capsys, "train", "resume=made", "trainer.max_steps=10", code=1)


def test_a_checkpoint_of_an_older_folder_under_the_name_of_a_later_step(home, capsys):
    aged(home / "made", "text")
    (home / "made/checkpoints/step=00000008").rename("made/checkpoints/step=00000011")
    told = said(capsys, "train", "resume=made", "trainer.max_steps=9")
    assert "from step 4" in told
