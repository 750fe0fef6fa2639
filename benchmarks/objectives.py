"""Each family trained by its own objective, and each objective of texts, for some minutes: what it learns beside a baseline.

    python benchmarks/objectives.py [--tokens 1e6] [--only WORD] [--page FILE]

The baseline of a likelihood of tokens is the unigram: the targets' own frequencies, counted in the training part with half a
count more each, and their cross-entropy in the validation part. Others have none: their first value stands beside the last.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmlab import registry
from llmlab.config.compose import compose
from llmlab.config.model_files import families
from llmlab.data.samples import samples
from llmlab.runs.record import cpu_name, versions
from llmlab.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
SAMPLES = 256
COMMON = ["size=nano", "train.sample=false"]
BASE = {"decoder": "llama3", "encoder": "bert", "encoder_decoder": "t5"}


def pairs() -> Iterator[tuple[str, str, bool]]:
    """(family, objective, is it the family's own): each family of the paper's kind, then what no family has for its own."""
    seen = set()
    for family in families():
        objective = str(compose([f"model={family}", *COMMON], strict=False).cfg.objective["_part_"])
        if objective not in ("clm", "mlm", "span_corruption") or family in BASE.values():
            seen.add(objective)
            yield family, objective, True
    for objective in registry.names("objective"):
        entry = registry.index()["objective", objective]
        # A teacher has no default, and would be another run.
        alone = all("words" in model for model in entry.attribute("models").values())
        if objective not in seen and entry.attribute("reads") == "text" and not entry.attribute("joins") and alone:
            yield BASE[(entry.attribute("topologies") or ("decoder",))[0]], objective, False


def unigram(words: list[str]) -> float | None:
    """Cross-entropy (nats) of targets of the validation part under their frequencies in training; None: they are no tokens."""
    composed = compose(words)
    recipe, length = Recipe.from_config(composed), composed.cfg.data.seq_len
    counted = []
    for stream in (recipe.corpus.train, recipe.corpus.validation):
        part = samples(recipe.corpus, stream, recipe.objective, length)
        found = np.zeros(recipe.spec.sizes.vocab_size)
        for i in range(min(SAMPLES, len(part))):
            prepared = recipe.objective.prepare(part[i], np.random.default_rng(i))
            labels = np.asarray(prepared.get("labels", -1)).ravel()
            np.add.at(found, labels[labels >= 0], 1)
        counted.append(found)
    train, validation = counted
    if not validation.sum():
        return None
    p = (train + 0.5) / (train + 0.5).sum()
    return float(-(validation * np.log(p)).sum() / validation.sum())


def trained(words: list[str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """A run's record and the rows of its validations."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "llmlab", "train", *words, f"hydra.run.dir={run}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
        rows = [r for r in csv.DictReader((run / "metrics.csv").open()) if r["val_loss"]]
        return json.loads((run / "run.json").read_text()), rows


def row(family: str, objective: str, own: bool, tokens: str) -> str:
    words = [f"model={family}", f"objective={objective}", *COMMON, f"budget.tokens={tokens}"]
    record, rows = trained(words)
    accuracies = (f"val_{name}" for name, kind in record["measures"].items() if kind == "accuracy")
    measured = [name for name in accuracies if rows[0].get(name)]
    shown = ["val_loss", *measured]
    values = "; ".join(f"{n.removeprefix('val_')} {float(rows[0][n]):.3f} -> {float(rows[-1][n]):.3f}" for n in shown)
    base = unigram(words) if any(k in ("nll", "bits") for k in record["measures"].values()) else None
    said = "—" if base is None else f"{base:.3f}"
    return (
        f"| {family} | {objective}{'' if own else ' *'} | {values} | {said} | {record['flops_per_token'] / 1e6:.2f} | "
        f"{record['wall_seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1e6", help="tokens of each run (1e6)")
    parser.add_argument("--only", default="", help="families and objectives with this in their names")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "objectives.md", help="the file to write")
    a = parser.parse_args()
    about, rows = versions(), []
    for family, objective, own in pairs():
        if a.only in f"{family} {objective}":
            rows.append(row(family, objective, own, a.tokens))
            print(rows[-1], flush=True)
    lines = [
        "# What each objective learns here",
        "",
        f"Commit {about.get('commit', 'unknown')}, {cpu_name()}, torch {about['torch']}, Python {about['python']}; size=nano,",
        f"{float(a.tokens):,.0f} tokens of the default corpus, one seed. Written by `make evidence`. Losses of different",
        "objectives are not comparable, as they ask different questions: `llmlab probe` compares models. * the family has",
        "another objective of its own.",
        "",
        "| family | objective | validation, first to last | unigram | MFLOPs a token | seconds |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    a.page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
