"""Vectors of tokens: word2vec's text format, and a token table that begins with those of a run or a file."""

import json

import pytest
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models

from llmlab.commands import cli
from llmlab.commands.export import export
from llmlab.config.compose import compose
from llmlab.config.init_from import normalise
from llmlab.config.layout import resolve
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.runs import vectors
from llmlab.runs.folder import load_model
from llmlab.training import preflight
from llmlab.training.run import train

SIZES = ("model.dim=16", "model.n_heads=2", "model.vocab_size=8", "model.max_positions=8")


@pytest.fixture(scope="module")
def bytes_of_words():
    """Byte-level tokens, of which one spells a word that another is."""
    inner = Inner(
        models.WordLevel({"<eos>": 0, "the": 1, "Ġthe": 2, "Ġcat": 3, "Ġ": 4, "ing": 5, " ": 6, "\n": 7}, "<eos>")
    )
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, {"eos": 0}, "file")


def test_a_table_goes_out_and_comes_back(bytes_of_words, tmp_path):
    table = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    names = vectors.names(bytes_of_words)
    assert list(names) == ["<eos>", "the", "Ġthe", "Ġcat", "Ġ", "ing", "\\u0020", "\\u000a"]
    text = "".join(vectors.lines(list(names), table))
    (tmp_path / "v.txt").write_text(text)
    rows = vectors.begin(str(tmp_path / "v.txt"), bytes_of_words)
    assert rows.ids.tolist() == list(range(8)) and torch.equal(rows.vectors, table)
    # word2vec.c writes no "words width" if it is cut off, a space behind the last number, and GloVe's has words with spaces.
    (tmp_path / "w.txt").write_text("cat 1 2 3 \nat name@domain.com 0 0 0\nthe 4 5 6\nthe 7 8 9\nunknown a b c\n")
    rows = vectors.begin(str(tmp_path / "w.txt"), bytes_of_words)
    assert rows.ids.tolist() == [1, 2, 3] and rows.vectors.tolist() == [[4, 5, 6], [4, 5, 6], [1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2 3\nthe 1 2 3\ncat 1 2\n", "line 3 must be a word and 3 numbers with a space before each, but it has 2"),
        ("the 1 x 3\n", "line 1 has something beside numbers behind its word, 'the'"),
        ("the 1 nan 3\n", "line 1 has something beside numbers"),
        ("hello\n", "line 1 must be a word and 1 numbers"),
        ("dog 1 2 3\n", "none of its words is a token of this vocabulary; .*tokenizer=file tokenizer.path=FILE"),
        ("", "none of its words"),
    ],
)
def test_a_file_that_is_not_one_is_refused_in_a_line(text, said, bytes_of_words, tmp_path):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        vectors.begin(str(tmp_path / "v.txt"), bytes_of_words)


def test_init_fills_the_rows_and_the_others_keep_their_first_values():
    rows = vectors.Rows(torch.tensor([1, 5]), torch.full((2, 16), 3.0))
    for words in (["model=t5", "model.n_layers=2"], ["model=albert", "embedding.width=16", "model.n_layers=1"]):
        spec = resolve(compose([*SIZES, *words]))
        plain, begun = build.build_model(spec, 1), build.assemble(spec)
        build.materialise(begun)
        build.initialise(begun, 1, rows=rows)
        (path,) = build.token_tables(begun)
        before, after = plain.state_dict(), begun.state_dict()
        table = after[path]
        assert (table[[1, 5]] == 3).all() and torch.equal(table[[0, 2, 3, 4, 6, 7]], before[path][[0, 2, 3, 4, 6, 7]])
        assert all(torch.equal(before[n], after[n]) for n in before if before[n].shape != table.shape)
        preflight.vectors_fit("RUN", rows, begun)
    wide = vectors.Rows(rows.ids, torch.zeros(2, 5))
    with pytest.raises(UserError, match=r"have 5 numbers each, but .* 16; give model.dim=5 or embedding.width=5"):
        preflight.vectors_fit("RUN", wide, begun)


def test_what_is_typed(tmp_path):
    assert normalise("init_from.embedding=a/step=1") == 'init_embedding="a/step=1"'
    assert normalise("init_from.embedding=a") == "init_embedding=a"
    for words, said in (
        (
            ["init_from.embedding=nowhere"],
            "init_from.embedding=nowhere: there is no such run folder or file of vectors",
        ),
        ([f"init_from.embedding={tmp_path}"], "there is no run.json in it"),
        (["init_from.embedding=hf=gpt2"], "init_from=hf=FOLDER begins with all weights of a checkpoint"),
    ):
        with pytest.raises(UserError, match=said) as e:
            compose(words)
        assert "\n" not in str(e.value)


def run(folder, *overrides):
    last = {o.partition("=")[0]: o for o in overrides}
    return train(compose(list(last.values())), folder)


@pytest.fixture(scope="module")
def static(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "run"
    run(folder, *tiny, "objective=skipgram", "optimizer.lr=3e-2")
    return folder


@pytest.mark.slow
def test_any_model_begins_with_the_table_of_a_run(static, tiny, tmp_path):
    own, tokenizer = vectors.of_run(static)
    assert torch.equal(own, load_model(static)[0].stacks["main"].embedding.table.weight)
    still = ("optimizer.lr=1e-30", "trainer.max_steps=1")
    begun = [w for w in tiny if not w.startswith("tokenizer=")]
    done = run(tmp_path / "bert", *begun, *still, "model=bert", f"init_from.embedding={static}")
    (_, table), *_ = build.token_tables(load_model(tmp_path / "bert")[0]).items()
    ids = tokenizer.vocab_size
    # BERT's special tokens have ids of their own behind those of the run.
    assert len(table) > ids and torch.allclose(table[:ids], own[:ids], rtol=0, atol=1e-20)
    assert done["init_embedding"] == {
        "path": str(static), "sha256": None, "found": ids, "kept": len(table) - ids
    }  # fmt: skip
    said = f"{ids} of {len(table)} rows of the token table are its vectors, {len(table) - ids} keep their first values"
    assert any(said in note for note in done["notes"])
    assert done["tokenizer"]["from"] == "init_from.embedding"
    assert "init_embedding" in (tmp_path / "bert/config.yaml").read_text()
    with pytest.raises(UserError, match="have 16 numbers each, but those of stacks.main.embedding.table.weight 32"):
        run(tmp_path / "wide", *begun, "model.dim=32", f"init_from.embedding={static}")
    with pytest.raises(
        UserError, match=r"the vectors of init_from.embedding=.* know the tokens of their own tokenizer"
    ):
        compose([*begun, "tokenizer=bpe", f"init_from.embedding={static}"])
    with pytest.raises(UserError, match="brings a token table of its own; leave one of them out"):
        compose([*begun, f"init_from={static}", f"init_from.embedding={static}"])
    assert not (tmp_path / "wide").exists()
    word = next(iter(vectors.names(tokenizer)))
    assert export(static, tmp_path / "one.txt", "word2vec", words=[word]).startswith("1 vectors of 16 numbers")
    with pytest.raises(UserError, match="'cats': no token of the run; of other words objective=fasttext has vectors"):
        export(static, tmp_path / "no.txt", "word2vec", words=["cats"])
    # Under another tokenizer by name, and again from the file that is exported.
    said = export(static, tmp_path / "v.txt", "word2vec")
    assert said == f"{ids} vectors of 16 numbers of step 12; use them as init_from.embedding={tmp_path / 'v.txt'}"
    with pytest.raises(UserError, match="there is something already"):
        export(static, tmp_path / "v.txt", "word2vec")
    other = ("tokenizer=bpe", "tokenizer.vocab_size=300", *still)
    by_name = run(tmp_path / "a", *tiny, *other, f"init_from.embedding={static}", "init_from.tokenizer=new")
    by_file = run(tmp_path / "b", *tiny, *other, f"init_from.embedding={tmp_path / 'v.txt'}")
    assert 0 < by_name["init_embedding"]["found"] < 300 and by_file["init_embedding"]["sha256"] is not None
    ways = [load_model(tmp_path / n)[0].state_dict() for n in "ab"]
    assert all(torch.equal(ways[0][n], ways[1][n]) for n in ways[0])
    # What is gone is not asked for again: a run goes on from its own checkpoint.
    (tmp_path / "v.txt").unlink()
    kept = json.loads((tmp_path / "b/run.json").read_text())
    assert kept["init_embedding"]["path"] == str(tmp_path / "v.txt")


@pytest.mark.slow
def test_runs_of_glove_and_fasttext_give_their_vectors(tiny, tmp_path):
    run(tmp_path / "glove", *tiny, "objective=glove", "objective.window=3", "data.num_workers=1", "budget.steps=4")
    model, tokenizer = load_model(tmp_path / "glove")
    own, _ = vectors.of_run(tmp_path / "glove")
    both = model.heads["context"].table.weight + model.stacks["main"].embedding.table.weight
    assert torch.equal(own, both)
    run(tmp_path / "fasttext", *tiny, "objective=fasttext", "heads.context.buckets=64", "budget.steps=4")
    (tmp_path / "words").write_text("a\nnever seen\n\na\n")
    to = tmp_path / "v.txt"
    words = [f"run={tmp_path / 'fasttext'}", f"to={to}", "format=word2vec", f"words={tmp_path / 'words'}"]
    assert cli.run(["export", *words]) == 0
    assert [line.split(" ")[0] for line in to.read_text().splitlines()] == ["2", "a", "never\\u0020seen"]
    table, _ = vectors.of_run(tmp_path / "fasttext")
    (row,) = vectors.read(to, {"a"}, "").values()
    assert torch.equal(row, table[tokenizer.inner.token_to_id("a")])
    assert cli.run(["export", *words[:2], f"words={tmp_path / 'words'}"]) != 0
