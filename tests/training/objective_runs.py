"""A tiny run of every registered objective, found by the registry: its words, and the files that it reads.

As a script, which `ranks.start` runs, it trains a step of each of several runs and writes their gradients.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from llmlab import registry
from llmlab.config.model_files import conf_dir, families

SMALL = (
    *("tokenizer=char", "data=files", "data.seq_len=16", "model.dim=16", "model.n_heads=2", "model.n_layers=1"),
    *("train.batch_size=8", "train.validation_batches=1", "train.sample=false", "trainer.accelerator=cpu"),
    *("budget.steps=4", "train.checkpoint_every=2", "train.log_every=1", "train.keep=9"),
    "kernel=eager",  # whose products torch's counter sees, those that a mask hides too
)
# A model for each kind that an objective can train, where it is not the own objective of one family alone.
MODELS = {"decoder": ("model=gpt2",), "encoder": ("model=bert",), "encoder_decoder": ("model=t5", "model.n_layers=2")}
WORDS: dict[str, tuple[str, ...]] = {
    "clm": ("model=gpt2",),
    "mtp": ("model=gpt2",),  # DeepSeek-V3 balances its experts over a micro-batch
    # The three vectors that each layer scores beside distances are not counted: 1 % where there are 16 tokens.
    "plm": ("model.dim=32", "data.seq_len=32"),
    "rtd": ("model=electra", "model.dim=32"),
    "replace_mlm": ("model=electra", "model.dim=32"),
    "distill": ("models.teacher=[model.n_layers=2]", "objective.hidden=cosine"),
    # At its 0.05 float32's own errors are twice as large as what is allowed.
    "contrastive": ("objective.temperature=1",),
    "reinforce": ("reward=contains", "objective.max_new=4"),
    "multiple_choice": ("init.std=0.3",),  # with small weights the scores of choices hardly differ
    "gap_sentences": ("data.seq_len=32",),
    "alignment=reward": ("init.std=0.3",),  # with small weights the scores of answers hardly differ
    "alignment=rejection": ("reward=contains", "alignment.max_new=4", "alignment.ended=false"),
    "alignment=distill": ("models.teacher=[model.n_layers=2]", "alignment.max_new=4"),
}
# Other losses and samples than the default's, by what is typed for them.
MORE = {
    "mlm": (("objective.pair=nsp",), ("objective.pair=sop",)),
    "mtp": (("objective.depth=2",),),
    "mix": (
        ("objective.of=[clm,span_corruption]",),
        ("model=t5", "model.n_layers=2", "objective.of=[denoise,span_corruption]"),
    ),
    "contrastive": (("objective.positives=pairs", "objective.pool=mean"),),
    "rtd": (("objective.on=masked",),),
    "plm": (("objective.memory=8",),),
    "classify": (("model=gpt1", "objective.lm_weight=0.5", "heads.classes.pool=last"),),
    "alignment=reward": (
        ("model.dim=8", "heads.scalar.mixed=true"),
    ),  # where a mix is more than 1 % of what is computed
}
# Methods of the other slot: one of the two that read records, and those whose rollouts no other test has on two ranks.
METHODS = ("alignment=reward", "alignment=rejection", "alignment=distill")
USERS = "masked_pairs"  # of user_objectives.py: two terms, each with a number of targets of its own


def cases() -> dict[str, list[str]]:
    """{objective, or objective and what is typed for it: the words of its run, but for its data}."""
    names = [USERS, *sorted(e.name for e in registry.index().values() if e.slot == "objective"), *METHODS]
    return {
        " ".join([name, *more]): _words(name, more)
        for name in dict.fromkeys(names)
        for more in [(), *MORE.get(name, ())]
    }


def _words(name: str, more: tuple[str, ...]) -> list[str]:
    kinds = ("encoder",) if name == USERS else _declared(name, "topologies")
    own = [f"model={family}" for family in families() if f"override /objective: {name}\n" in _file(family)]
    usual = MODELS[kinds[0] if kinds else "decoder"]
    model = (*usual, *own) if len(own) == 1 else usual
    typed = (*SMALL, *model, name if "=" in name else f"objective={name}", *WORDS.get(name, ()), *more)
    return list({w.partition("=")[0]: w for w in typed}.values())


def _file(family: str) -> str:
    return (conf_dir() / f"model/{family}.yaml").read_text()


def joint(case: str) -> bool:
    """True where the loss of a sample depends on the others in its micro-batch, on all ranks."""
    name = case.split()[0]
    return name != USERS and _declared(name, "joint")


def data(case: str, texts: Path) -> str:
    """What a case reads of the files of `write`."""
    kind = "similar" if "positives=pairs" in case else _declared(case.split()[0], "reads")
    return f"data.path={texts / ('texts' if kind == 'text' else f'{kind}.jsonl')}"


def _declared(name: str, attribute: str):
    slot, _, alone = name.rpartition("=")
    return registry.index()[slot or "objective", alone].attribute(attribute)


def acts(case: str) -> bool:
    """True where the model writes what it learns from."""
    name = case.split()[0]
    return name != USERS and _declared(name, "reads") == "prompts"


def write(folder: Path) -> Path:
    """Texts of some sentences, and a file of each kind of record.

    The texts of a record that are read beside each other are of one length: no cost counts what pads them.
    """
    chance = random.Random(0)

    def text(least: int = 1, most: int = 3) -> str:
        return " ".join(chance.choice(("ace", "bad", "cab", "fed")) for _ in range(chance.randint(least, most)))

    def alike(*keys: str) -> dict[str, str]:
        n = chance.randint(1, 3)
        return {key: text(n, n) for key in keys}

    rows = {
        "labelled": lambda i: alike("text", "text_b") | {"label": "x" if i % 4 else "y"},
        "tagged": lambda i: {"words": (said := text().split()), "labels": ["xy"[i % 2]] * len(said)},
        "questions": lambda i: {"question": "ace", "context": "cab bad", "answer": ("cab", "bad")[i % 2]},
        "choices": lambda i: {
            "question": text(),
            "choices": [text(1, 1) for _ in range(2 + i % 2)],
            "answer": i % 2,
        },
        "similar": lambda i: alike("text", "positive", *(() if i % 3 else ("negative",))),
        "pairs": lambda i: {"source": text(), "target": text(1, 2)},
        "prompts": lambda i: {"prompt": text(), "answer": "a"},
        "chat": lambda i: {"messages": [{"role": r, "content": text()} for r in ("user", "assistant")]},
        "preferences": lambda i: {"prompt": text(1, 1), "answers": [(best := text()), best[::-1], text()][:2]},
    }
    for kind, row in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    (folder / "texts").mkdir()
    for i in range(30):
        (folder / f"texts/{i}.txt").write_text(" ".join(f"{text(2, 5)}." for _ in range(12)))
    return folder


def step_on_each_rank(folder: Path, ranks: int, runs: list[tuple[str, list[str], list[str]]]) -> None:
    """`runs`: (case, strategies, words). The gradients of CASE under STRATEGY are in CASE-STRATEGY.pt."""
    import torch
    from gradients import of
    from ranks import port

    from llmlab.config.compose import compose
    from llmlab.training.recipe import Recipe

    rank, n = os.environ["LOCAL_RANK"], 0
    for case, strategies, words in runs:
        composed = compose(words)
        made = Recipe.from_config(composed)
        for strategy in strategies:
            # ZeRO ends the process group, and the next one needs a port of its own.
            os.environ["MASTER_PORT"] = port(folder, n, rank)
            os.environ["WORLD_SIZE"] = str(ranks)  # which Lightning deletes at the end of a run
            composed.cfg.strategy.name = strategy
            found = of(composed, folder / f"{case}-{strategy}", made)
            if rank == "0":
                torch.save(found, folder / f"{case}-{strategy}.pt")
            n += 1
    (folder / f"done-0-{rank}").touch()


if __name__ == "__main__":
    step_on_each_rank(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
