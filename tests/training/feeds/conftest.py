"""A task that can be seen through, and runs of it: answer with the digit of the prompt."""

import csv
import json
import shutil

import pytest

from llmlab.runs import checkpoint


@pytest.fixture(scope="session")
def task(corpus, tmp_path_factory):
    """Overrides of a run; `corpus` keeps what is prepared out of the user's cache."""
    path = tmp_path_factory.mktemp("digits") / "digits.jsonl"
    lines = [{"prompt": f"{'abcdef'[i // 10 % 6] * (1 + i % 3)}{i % 10}=", "answer": str(i % 10)} for i in range(180)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "reward=contains", "data=files", f"data.path={path}", "tokenizer=char", "data.seq_len=8",
        "alignment.max_new=2", "model.dim=32", "model.n_layers=1", "model.n_heads=2", "train.batch_size=16",
        "train.sample=false", "trainer.accelerator=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def column():
    """The numbers of a column of metrics.csv."""

    def read(folder, name):
        return [float(row[name]) for row in csv.DictReader((folder / "metrics.csv").open()) if row[name]]

    return read


@pytest.fixture(scope="session")
def at():
    """The run as it was at a checkpoint, copied."""

    def cut(folder, step, copy):
        shutil.copytree(folder, copy)
        for path in checkpoint.all_of(copy / "checkpoints"):
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        record = json.loads((copy / "run.json").read_text())
        record.update(status="interrupted", steps=step)
        (copy / "run.json").write_text(json.dumps(record))
        return copy

    return cut
