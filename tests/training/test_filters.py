"""A run on filtered documents: its record, its header, and the same text again where it is resumed and measured."""

import json
import shutil

import pytest
from small_runs import numbers

from llmlab.commands.cli import run as llmlab
from llmlab.commands.eval import evaluate
from llmlab.data import cache
from llmlab.errors import UserError
from llmlab.runs import checkpoint

LEAST = 500


@pytest.fixture(scope="module")
def texts(corpus, tmp_path_factory):
    """The corpus, with two documents more that are others but for white space, and two that are short."""
    folder = tmp_path_factory.mktemp("filtered") / "texts"
    shutil.copytree(corpus, folder)
    for name in ("1", "2"):
        (folder / f"again_{name}.txt").write_text((folder / f"{name}.txt").read_text().replace(" ", "\n"))
        (folder / f"short_{name}.txt").write_text("it is " + "short " * int(name))
    return folder


@pytest.fixture(scope="module")
def trained(texts, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filtered_run") / "run"
    usual = [o for o in tiny if not o.startswith(("data", "train.validation_batches"))]
    words = [f"data={texts}", *usual, "data.seq_len=16", f"hydra.run.dir={folder}"]
    words += ["filter=[length,duplicates]", f"filter.length.least={LEAST}", "train.checkpoint_every=6"]
    assert llmlab(["train", *words]) == 0
    return folder


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_record_says_what_was_dropped(trained, corpus, texts):
    record = read(trained)
    assert record["parts"]["filter.length"] == "length" and record["data"]["documents"] == 30
    found = record["data"]["read"]
    assert (found["files"], found["documents"], found["skipped"]) == (34, 30, [])
    assert [(f["filter"], f["seen"], f["dropped"]) for f in found["filters"]] == [
        ("length", 34, 2),
        ("duplicates", 32, 2),
    ]
    assert found["filters"][0]["examples"][0] == {
        "name": "short_1.txt",
        "reason": f"shorter than {LEAST} characters",
        "text": "it is short ",
    }
    listed = (cache.root() / "corpora" / record["data"]["corpus"] / "documents.txt").read_text().splitlines()
    assert {line.split(" ", 1)[1] for line in listed} == {f"{i}.txt" for i in range(30)}


def test_it_is_measured_and_goes_on_with_the_same_filters(trained, texts, tmp_path, capsys):
    whole = read(trained)
    assert evaluate(str(trained))["loss"] == pytest.approx(whole["metrics"]["val_loss"], abs=1e-5)
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints" / checkpoint.name(12))
    assert llmlab(["train", f"resume={copy}"]) == 0
    assert numbers(copy) == numbers(trained)
    assert read(copy)["data"]["read"] == whole["data"]["read"]
    assert llmlab(["train", f"resume={copy}", "filter=length"]) == 1
    assert "filter=length" in capsys.readouterr().err
    other = evaluate(str(trained), "files", str(texts / "short_1.txt"), seq_len=4)  # which its filters would drop
    assert other["bytes"] == len("it is short ") - 1
    (texts / "zz.txt").write_text("dropped")
    assert evaluate(str(trained))["loss"] == pytest.approx(whole["metrics"]["val_loss"], abs=1e-5)
    (texts / "zz.txt").write_text("long enough to be kept " * 50)
    with pytest.raises(
        UserError, match=r"it had 30 documents; 1 added; filter=\[length,duplicates\] decides which are kept"
    ):
        evaluate(str(trained))
