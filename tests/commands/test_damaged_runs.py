"""Run folders of which one thing is damaged: every command goes on or says in a line what is wrong, and hangs on nothing."""

import json
import os
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from small_runs import numbers

from llmlab import files
from llmlab.commands import cli, runs
from llmlab.errors import UserError
from llmlab.runs import checkpoint, lock, metrics, record

LAST = "checkpoints/step=00000008"
ONCE = ["config.yaml", "model.json", "tokenizer.json", "special.json"]  # written when a run begins
FILES = [
    "run.json",
    *ONCE,
    "metrics.csv",
    ".lock",
    f"{LAST}/manifest.json",
    f"{LAST}/state.pt",
    f"{LAST}/model.safetensors",
]
COMMANDS = ("train", "eval", "generate", "export", "runs")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that was cut short."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    cut = ["trainer.max_steps=8", "train.checkpoint_every=4", f"hydra.run.dir={folder}"]
    assert cli.run(["train", *tiny, *cut]) == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "run")
    return Path("run")


@contextmanager
def at_most(seconds):
    def late(*_):
        raise TimeoutError(f"nothing came in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(capsys, command):
    """(exit code, its error or what it wrote) of a command on the folder."""
    shutil.rmtree("out", ignore_errors=True)
    words = {
        "train": ["resume=run", "trainer.max_steps=9", "trainer.enable_progress_bar=false"],
        "eval": ["run=run"],
        "generate": ["run=run", "prompt=the", "max_new=2"],
        "export": ["run=run", "to=out"],
        "runs": ["."],
    }
    capsys.readouterr()
    with at_most(60):
        code = cli.run([command, *words[command]])
    out, err = capsys.readouterr()
    errors = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), err
    assert "LLMLAB_DEBUG" not in err, f"{command}: {err}"
    return code, errors[0] if errors else out + err


def gone(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "removed": gone,
    "a folder": lambda p: (gone(p), p.mkdir()),
    "a pipe": lambda p: (gone(p), os.mkfifo(p)),
    "a link to nothing": lambda p: (gone(p), p.symlink_to("nothing")),
    "empty": lambda p: p.write_bytes(b""),
    "truncated": lambda p: os.truncate(p, p.stat().st_size // 2),
    "binary": lambda p: p.write_bytes(bytes(range(256)) * 2),
    "null": lambda p: p.write_text("null"),
    "a list": lambda p: p.write_text("[]"),
    "very deep": lambda p: p.write_text('{"a": ' * 5000),
    "a bit": flipped,
}


@pytest.mark.slow  # some 500 commands
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_said_in_a_line(file, whole, folder, capsys):
    """What was written once is refused by whatever reads it; of a checkpoint the one before is taken."""
    for name, damage in DAMAGES.items():
        if file in (".lock", "metrics.csv") and name not in ("removed", "a folder", "a pipe", "a link to nothing"):
            continue  # the rows of metrics.csv are for tests of their own
        damage(folder / file)
        told = {c: ask(capsys, c) for c in ("eval", "generate", "export", "runs")}
        if file.startswith("checkpoints"):
            assert told["eval"][0] == 0 and "step=00000008 is not used" in told["eval"][1], name
        elif file == "run.json":
            assert name == "a bit" or all(told[c][0] == 1 for c in ("eval", "generate", "export"))
        elif file in ONCE:
            read = {
                "config.yaml": "eval",
                "model.json": "generate",
                "tokenizer.json": "export",
                "special.json": "generate",
            }
            code, line = told[read[file]]
            assert code == 1 and f"run/{file}" in line, f"{name}: {line}"
        if not file.startswith("checkpoints") or name in ("a pipe", "a bit"):
            ask(capsys, "train")
        gone(folder)
        shutil.copytree(whole, folder)


WRONG = (None, [], "x", -1, 1e300)


@pytest.mark.parametrize("name", [metrics.METRICS, metrics.TIMING])
def test_rows_that_a_run_can_not_go_on_from_are_said_before_anything_is_written(name, folder, capsys):
    """Of another step than a whole one, or of no step: the rows behind the checkpoint could not be told from the others."""
    path = folder / name
    if name == metrics.TIMING:  # too short a run has none
        path.write_text("step,tokens_per_second\n4,900.0\n8,1000.0\n")
    before, known = path.read_bytes(), (folder / record.NAME).read_bytes()
    said = {
        b"\n8,": [
            b"\nnan,",
            b"\ninf,",
            b"\n-8,",
            b"\n8.5,",
            b"\n,",
            b"\neight,",
            b"\n\xff,",
            b'\n"8,',
            b"\n" + b"8" * 5000 + b",",
        ],
        b"step,": [b"stap,", b"", b"\0\n"],
    }
    for old, news in said.items():
        for new in news:
            path.write_bytes(before.replace(old, new))
            with pytest.raises(UserError) as e:
                metrics.check(path)
            assert str(e.value).startswith(str(path)) and len(str(e.value)) < 300, new
        code, error = ask(capsys, "train")
        assert code == 1 and str(e.value) in error and error.endswith("from a copy of the run, or remove it")
        assert path.read_bytes() == before.replace(old, new) and (folder / record.NAME).read_bytes() == known
    path.write_bytes(b"\n" + before.replace(b"\n8,", b'\n"8",'))  # as a spreadsheet writes it
    assert ask(capsys, "train")[0] == 0
    metrics.check(path)


@pytest.mark.slow
def test_every_field_of_a_record_may_be_of_the_wrong_kind(folder, capsys):
    fields = json.loads((folder / "run.json").read_text())
    for key in fields:
        others = [{**fields, key: value} for value in WRONG if value != fields[key]]
        for changed in [{k: v for k, v in fields.items() if k != key}, *others]:
            (folder / "run.json").write_text(json.dumps(changed))
            (row,) = runs.find([Path(".")])
            if row["status"] == "unreadable" and "status" in changed:
                assert row["reason"].startswith(f"run/run.json: {key}")
        if key in ("budget", "hardware", "steps", "overrides", "status", "parameters", "flops_per_token"):
            (folder / "run.json").write_text(json.dumps({k: v for k, v in fields.items() if k != key}))
            code, line = ask(capsys, "train")
            assert code == 1 and f"run/run.json: {key}" in line


@pytest.mark.slow
def test_every_part_of_an_older_folders_config_and_model_may_be_wrong(folder, capsys):
    """Without hashes it is the shape that tells."""
    from llmlab.runs import folder as folders

    fields = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({k: v for k, v in fields.items() if k != "files"}))
    for file, read, write in (("config.yaml", yaml.safe_load, yaml.safe_dump), ("model.json", json.loads, json.dumps)):
        sound = (folder / file).read_text()
        content = read(sound)
        for key in content:
            for changed in [{**content, key: v} for v in WRONG[:3]] + [{k: v for k, v in content.items() if k != key}]:
                (folder / file).write_text(write(changed))
                with suppress(UserError):
                    folders.assembled(folder, folders.load(folder)[1])
        (folder / file).write_text(sound)
    sound = (folder / "config.yaml").read_text()
    for key, value in {"data.validation": "a", "train.batch_size": [], "optimizer.lr": "fast", "data": 3}.items():
        content = yaml.safe_load(sound)
        *parents, last = key.split(".")
        (content[parents[0]] if parents else content)[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        code, line = ask(capsys, "eval")
        assert code == 1 and f"run/config.yaml: {key}" in line


def test_checkpoints_under_other_names_are_not_taken(folder, capsys):
    """A later step's, an earlier one under a later name, digits that int() does not know, another run's."""
    at = folder / "checkpoints"
    (at / "step=00000008").rename(at / "step=00000011")
    shutil.copytree(at / "step=00000004", at / "step=00000010")
    for name in ("step=²", "step=", f"step={'9' * 30}", "step=-1"):
        (at / name).mkdir()
    code, told = ask(capsys, "eval")
    assert code == 0
    assert "step=00000011 is not used: it holds step 8, whatever its name says" in told
    assert "step=00000010 is not used: it holds step 4, whatever its name says" in told
    assert "from step 4" in ask(capsys, "train")[1]


def test_a_checkpoint_of_another_model_or_run(folder, whole, tiny, capsys):
    other = ["model.dim=32", "trainer.max_steps=8", "train.checkpoint_every=4", "hydra.run.dir=other"]
    assert cli.run(["train", *(w for w in tiny if not w.startswith("model.dim=")), *other]) == 0
    gone(folder / LAST)
    shutil.copytree(Path("other") / LAST, folder / LAST)
    assert "step=00000008 is not used: it was written by another run" in ask(capsys, "generate")[1]
    gone(folder / "checkpoints/step=00000004")
    for command in ("train", "eval", "generate", "export"):
        code, line = ask(capsys, command)
        assert code == 1 and ("another run" in line or "no sound checkpoint" in line)
    manifest = json.loads((folder / LAST / "manifest.json").read_text())  # an older one does not say of which run it is
    kept = {k: v for k, v in manifest.items() if k not in ("run", "sha256")}
    (folder / LAST / "manifest.json").write_text(checkpoint.sealed(kept) + "\n")
    for command in ("eval", "generate"):
        code, line = ask(capsys, command)
        assert code == 1 and line.startswith(f"checkpoint run/{LAST} is not of the model in run/model.json: ")


def test_a_damaged_tokenizer_is_brought_back_from_the_cache(folder, whole, monkeypatch, capsys):
    for name in ("tokenizer.json", "special.json"):
        flipped(folder / name)
    assert "special.json" in ask(capsys, "generate")[1] or "tokenizer.json" in ask(capsys, "generate")[1]
    told = ask(capsys, "train")[1]
    assert told.count(": brought back from the cache") == 2
    assert (folder / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert ask(capsys, "generate")[0] == 0
    flipped(folder / "tokenizer.json")
    monkeypatch.setenv("LLMLAB_CACHE", str(folder.absolute().parent / "none"))
    code, line = ask(capsys, "train")
    assert (
        code == 1 and "run/tokenizer.json is not as the run wrote it" in line and "the cache no longer has it" in line
    )


def test_a_run_without_a_sound_checkpoint_begins_again_only_if_asked(folder, whole, capsys):
    rows = numbers(folder)
    for path in (folder / "checkpoints").iterdir():
        os.truncate(path / "model.safetensors", 100)
    code, line = ask(capsys, "train")
    assert code == 1 and "none of its 2 checkpoints is sound" in line and "resume=run resume_from=start" in line
    gone(folder / "checkpoints")
    code, line = ask(capsys, "train")
    assert code == 1 and "it ended after 8 steps of 12 without a checkpoint" in line and "resume_from=start" in line
    assert numbers(folder) == rows
    assert cli.run(["train", "resume=run", "resume_from=start", "trainer.max_steps=8"]) == 0
    assert "from the beginning" in capsys.readouterr().out
    assert numbers(folder) == rows
    told = record.read(folder)
    assert (told["status"], told["steps"], told["resumed"]) == ("completed", 8, 1)
    for steps in (8, 9):
        assert cli.run(["train", "resume=run", "resume_from=start", f"trainer.max_steps={steps}"]) == 1
        assert "can go on from step 8; leave it out" in capsys.readouterr().err


def test_what_killed_processes_left_is_cleaned_up(folder, capsys):
    left = [".run.json.tmp-7", ".metrics.csv.tmp-123456", "checkpoints/.step=00000009.tmp-7/model.safetensors"]
    left += ["checkpoints/.step=00000004.removed-7/state.pt"]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    (folder / ".point.json.tmp-7").write_text("a sweep's own")
    assert ask(capsys, "train")[0] == 0
    assert sorted(p.name for p in folder.rglob(".*")) == [".lock", ".point.json.tmp-7"]


# ---------------------------------------------------------------- disks


def no_space(monkeypatch, module, modes):
    """Opening a file in one of these modes fails in a module, as on a full disk."""

    def full(path, mode="r", *rest, **named):
        if mode in modes:
            raise OSError(28, "No space left on device", str(path))
        return open(path, mode, *rest, **named)

    monkeypatch.setattr(module, "open", full, raising=False)


@pytest.mark.parametrize("record_fits", [True, False])
def test_a_disk_that_fills_after_a_checkpoint(record_fits, folder, monkeypatch, capsys):
    """The record is written over where it is, and the line says from where the run goes on."""
    write = metrics.Table.write

    def last(self, *row):
        no_space(monkeypatch, metrics, ("a",))
        no_space(monkeypatch, files, ("wb",) if record_fits else ("wb", "r+b"))
        write(self, *row)

    monkeypatch.setattr(metrics.Table, "write", last)
    assert cli.run(["train", "resume=run", "trainer.max_steps=-1", "train.keep=3"]) == 1
    err = capsys.readouterr().err
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: run/metrics.csv could not be written: No space left on device; ")
    assert "; the checkpoint of step 8 is intact: " in line and line.endswith(" train resume=run goes on")
    told = record.read(folder)
    assert told["status"] == ("failed" if record_fits else "died")
    if record_fits:
        assert "No space left" in told["reason"] and "step 8 is intact" in told["reason"] and told["steps"] >= 8
    else:
        assert "warning: run/run.json could not be written: No space left on device" in err
    assert checkpoint.problem(folder / LAST) is None
    monkeypatch.undo()
    monkeypatch.chdir(folder.absolute().parent)


def test_the_last_picture_on_a_full_disk(folder, monkeypatch, capsys):
    from llmlab.training import plot

    def full(folder):
        raise OSError(28, "No space left on device", "run/loss.png")

    monkeypatch.setattr(plot, "loss_curve", full)
    code, line = ask(capsys, "train")
    assert code == 1 and "run/loss.png could not be written: No space left on device" in line
    assert "the checkpoint of step 9 is intact" in line
    assert record.read(folder)["status"] == "completed"


def test_a_folder_that_can_only_be_read(folder, monkeypatch, capsys):
    def refused(path, mode="r", encoding=None):
        raise OSError(30, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "open", refused, raising=False)
        code, line = ask(capsys, "train")
    assert code == 1
    assert line == "run can't be written (Read-only file system): copy it to where it can, and resume the copy"


def test_a_run_does_not_begin_in_the_folder_of_another(folder, tiny, capsys):
    rows = (folder / "metrics.csv").read_bytes()
    gone(folder / "checkpoints")
    assert cli.run(["train", *tiny, "hydra.run.dir=run"]) == 1
    err = capsys.readouterr().err
    assert "holds a run already; resume=" in err and "run resume_from=start begins it again, or choose another" in err
    assert (folder / "metrics.csv").read_bytes() == rows
