"""Every command, file and program of the README and the guides works as it stands; training is cut to two steps.

A page is read from top to bottom in one folder: files that it shows (their first line is `# NAME`) are written, commands
run, programs too. RUN is a run made before, TEXT a file.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parents[2]
GENERATED = (
    "attributes",
    "conformance",
    "families",
    "mutants",
    "objectives",
)  # they show what is declared and results, no commands
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SHORT = ["trainer.max_steps=2", "train.validation_batches=1", "model.dim=32", "model.n_layers=2", "train.batch_size=8"]
PLACEHOLDERS = {"RUN": "first", "TEXT": "book.txt", "LABELS": "labels.jsonl", "PROMPTS": "prompts.jsonl"}
PLACEHOLDERS |= {"TALKS": "talks.jsonl", "RANKED": "ranked.jsonl"}


def blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", page.read_text(), re.S | re.M)
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.M)) for indent, language, text in found]


def words_of(command: str) -> list[str]:
    """The words of a command, cut short where it trains, a sweep to one seed and two parts a slot."""
    for name, file in PLACEHOLDERS.items():
        command = command.replace(f"={name}", f"={file}")
    words = shlex.split(command)
    if "check" in words:
        # Of the part alone: models that combine it with all others take 14 s, and are those of tests/check/test_command.py.
        words.append("checks=definition,tokens,passes")
    if "experiment=rlhf" in words:
        return [*words, "--help"]  # seven runs, which tests/commands/test_pipeline.py has
    if "train" in words or "train.py" in words:
        if not any(w.startswith("resume=") or w in ("--cfg", "--help") for w in words):
            typed = {w.partition("=")[0] for w in words}
            words += [s for s in SHORT if s.partition("=")[0] not in typed]
        if "-m" in words:
            swept = [w for w in words if re.fullmatch(r"[\w.@]+=[^\[(]*,.*", w)]
            for word in swept:
                kept = 1 if "." in word.partition("=")[0] or word.startswith("seed=") else 2
                words[words.index(word)] = ",".join(word.split(",")[:kept])
    return words


def steps(page: Path) -> list[list[str]]:
    """What a page asks for: ["file", name, text], ["python", text] or ["run", *words]."""
    found: list[list[str]] = []
    for language, text in blocks(page):
        if (name := re.match(r"# ([\w./]+\.(?:py|yaml))\n", text)) is not None:
            found.append(["file", name[1], text])
        elif language == "python":
            found.append(["python", text])
        elif language == "console":
            typed = [["run", *words_of(line)] for line in text.splitlines() if line.strip()]
            found += [step for step in typed if page.stem == "README" or not done_there(step)]
    return found


def done_there(step: list[str]) -> bool:
    """True for commands of many seconds that the README has, too, and that no later one needs: oracles, runs on two ranks."""
    long = "oracle" in step or any(word.startswith("strategy=") for word in step)
    return long and step in steps(PAGES[0])


class Shell:
    """What a page does to a folder: commands see the variables that it exports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def do(self, step: list[str]) -> None:
        kind, *words = step
        if kind == "file":
            (self.folder / words[0]).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / words[0]).write_text(words[1])
        elif kind == "python":
            self.succeeds([sys.executable, "-c", words[0]], self.env, words[0])
        elif words[0] == "export":
            self.env |= [words[1].split("=", 1)]
        else:
            self.type(words)

    def type(self, words: list[str]) -> None:
        line, env = shlex.join(words), dict(self.env)
        while "=" in words[0]:
            env |= [words.pop(0).split("=", 1)]
        if words[0] == "llmlab":
            words = [sys.executable, "-m", *words]
        elif words[0] == "python":
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
        assert self.succeeds(words, env, line).strip(), f"nothing is said: {line}"

    def succeeds(self, words: list[str], env: dict[str, str], line: str) -> str:
        how = {"capture_output": True, "text": True, "timeout": 300}
        done = warm.run(words, cwd=self.folder, env=env, inherited=True, **how)
        assert done.returncode == 0, f"exit code {done.returncode}: {line}\n{done.stdout[-4000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A folder with a run and a text."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "book.txt").write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 400)
    labelled = [{"text": f"{word} film {i}", "label": word} for i in range(40) for word in ("good", "bad")]
    (folder / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labelled))
    prompts = [{"prompt": f"Film {i} is", "answer": "good"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in prompts))
    talks = [{"prompt": f"Film {i}?", "completion": "good"} for i in range(40)]
    ranked = [{"prompt": f"Film {i}?", "chosen": "good", "rejected": "bad"} for i in range(40)]
    for name, rows in (("talks", talks), ("ranked", ranked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    # As a user's first is: a process of its own, none that is forked.
    train = [sys.executable, ROOT / "train.py", *SHORT, "hydra.run.dir=first"]
    done = subprocess.run(train, cwd=folder, env=Shell(folder).env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow  # dozens of short runs, sweeps and several ranks: up to a minute
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in GENERATED], ids=lambda p: p.stem)
def test_page(page, first, tmp_path):
    shell = Shell(tmp_path / "page")
    shutil.copytree(first, shell.folder)
    todo = steps(page)
    assert todo, f"{page} shows nothing that could be run"
    for step in todo:
        shell.do(step)


def test_links():
    """Every link between pages leads somewhere, and every page is linked from the README."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in PAGES[1:] if f"docs/{p.name}" not in readme] == []
