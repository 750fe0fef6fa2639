"""Each family trained by its own objective beside what knowing how often its targets come gives; RTD beside MLM, as probed.

    python benchmarks/objectives.py [--only WORD] [--jobs 2] [--minutes 40] [--folder runs/objectives] [--page FILE]

Runs are kept in the folder: a second call goes on where the first was stopped, and repeats nothing. Each writes the page anew,
with what there is by then. Two processes of one thread each: at this size that is faster than one of two.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmlab import registry
from llmlab.config.compose import compose
from llmlab.config.model_files import families
from llmlab.data import collate
from llmlab.data.samples import Samples, samples
from llmlab.runs.record import cpu_name, versions
from llmlab.slots import Objective
from llmlab.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
SAMPLES = 256
COMMON = ("size=nano", "train.sample=false", "train.validation_batches=16")
BASE = {"decoder": "llama3", "encoder": "roberta", "encoder_decoder": "t5"}
OPTIONS = {"contrastive": ("model.dropout=0.1",)}  # its two views differ by what was dropped out
# The next token is learnt soon, and most families train by it.
TOKENS = {"clm": "3e5"}
OTHERS = "8e5"
# A pair that has as many FLOPs, three times each, and its probe. FLOPs of 3e5 tokens of electra's own objective.
FLOPS, SEEDS = "1.85e12", (1, 2, 3)
PAIR = {
    "RTD": ("model=electra", "objective=rtd"),
    "MLM": ("model=electra", "objective=mlm_only"),
    "RTD on the 15 % alone": ("model=electra", "objective=rtd", "objective.on=masked"),
}
# The rate of the rung, that of the family, and between them; the first values of other families and those by the width.
RATES, STDS = ("4e-3", "2.4e-3", "1.2e-3"), ("0.02", "0.049")
PROBE = ("data=docstrings", "mode=frozen", "seeds=5")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t at 97.5 %, by the number of values


@dataclass(frozen=True)
class Run:
    """A run that the page has a row or a value of. words: its command line, but for the folder."""

    name: str
    words: tuple[str, ...]
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def record(self) -> dict[str, Any]:
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @property
    def done(self) -> bool:
        return self.record.get("status") == "completed"

    def train(self) -> str:
        """A line on how it went."""
        start = time.perf_counter()
        # A run that was stopped before its first checkpoint has nothing to resume from.
        begun = any((self.path / "checkpoints").glob("*"))
        words = [f"resume={self.path}"] if begun else [*self.words, f"hydra.run.dir={self.path}"]
        if self.path.exists() and not begun:
            self.path.rename(self.path.with_name(f"{self.name}.stopped-{time.time_ns()}"))
        done = llmlab("train", *words)
        if done.returncode:
            return f"{self.name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}"
        return f"{self.name}: {time.perf_counter() - start:.0f} s"

    @cached_property
    def validations(self) -> list[dict[str, str]]:
        with (self.path / "metrics.csv").open(encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["val_loss"]]


def llmlab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmlab", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def alone(objective: str) -> bool:
    """True if it trains on texts and needs nothing but them: a teacher has no default, and a mixture's parts are here."""
    entry = registry.index()["objective", objective]
    has_models = all("words" in model for model in entry.attribute("models").values())
    return entry.attribute("reads") == "text" and not entry.attribute("joins") and has_models


def table(folder: Path) -> Iterator[tuple[str, str, bool, Run]]:
    """(family, objective, is it the family's own, its run): each family by its own objective, then what no family has."""
    seen: set[str] = set()
    found = []
    for family in families():
        objective = str(compose([f"model={family}"], strict=False).cfg.objective["_part_"])
        found.append((family, objective, True, ()))
        seen.add(objective)
    for objective in registry.names("objective"):
        if objective not in seen and alone(objective):
            topologies = registry.index()["objective", objective].attribute("topologies")
            family = next(base for kind, base in BASE.items() if kind in topologies)
            found.append((family, objective, False, (f"objective={objective}", *OPTIONS.get(objective, ()))))
    # First those that are unlike the rest.
    for family, objective, own, words in sorted(found, key=lambda f: f[1] == "clm"):
        budget = f"budget.tokens={TOKENS.get(objective, OTHERS)}"
        name = family if own else f"{family}-{objective}"
        yield family, objective, own, Run(name, (f"model={family}", *words, *COMMON, budget), folder)


def pairs(folder: Path) -> dict[str, list[Run]]:
    return {
        what: [
            Run(f"pair-{i}-{seed}", (*words, *COMMON, f"budget.flops={FLOPS}", f"seed={seed}"), folder)
            for seed in SEEDS
        ]
        for i, (what, words) in enumerate(PAIR.items())
    }


def sweep(folder: Path) -> dict[tuple[str, str], Run]:
    """Runs of BERT by (rate, deviation of first values)."""
    words = ("model=bert", "objective=mlm_only", *COMMON, "budget.steps=400")
    return {
        (lr, std): Run(f"rate-{lr}-{std}", (*words, f"optimizer.lr={lr}", f"init.std={std}"), folder)
        for lr in RATES
        for std in STDS
    }


# ---------------------------------------------------------------- baselines


def baseline(objective: Objective, parts: Sequence[Samples], vocabulary: int, masks: int | None) -> float | None:
    """The cross-entropy (nats) of held-out targets by how often each comes in training; None: its targets are no tokens.

    masks: the id of the mask token. A target that is shown as another token, as a tenth of BERT's are as they are and a tenth
    as random ones, is foretold by that token as often as it is right in training: who knows no context can tell as much.
    """
    counts, right, labels, shown = np.zeros(vocabulary), [0.5, 1.0], np.array([]), np.array([])
    for part in parts:
        counts, before = np.zeros(vocabulary), counts
        found_labels, found_shown = [], []
        for i in range(min(SAMPLES, len(part))):
            rng = np.random.default_rng(i)
            prepared = collate.prepare(objective, collate.drawn(objective, part, i, rng), rng)
            if "labels" not in prepared:
                return None
            targets = np.asarray(prepared["labels"])
            ids = np.asarray(prepared.get("ids", ()))
            # Labels that stand elsewhere than their tokens are foretold by no token at their place.
            beside = masks is not None and ids.shape == targets.shape
            at = ids if beside else np.full(targets.shape, -1 if masks is None else masks)
            found_labels.append(targets[targets >= 0])
            found_shown.append(at[targets >= 0])
        labels, shown = np.concatenate(found_labels), np.concatenate(found_shown)
        np.add.at(counts, labels, 1)
        if part is parts[0] and masks is not None:
            other = shown != masks
            right = [0.5 + float((labels == shown)[other].sum()), 1.0 + float(other.sum())]
    share = (before + 0.5) / (before + 0.5).sum()
    p = share[labels]
    if masks is not None:
        a = right[0] / right[1]
        p = np.where(shown == masks, p, (1 - a) * p + a * (labels == shown))
    return float(-np.log(p).mean()) if len(p) else None


def baseline_of(recipe: Recipe, length: int) -> float | None:
    """The baseline of a run, from its recipe."""
    held_out = samples(
        recipe.corpus, recipe.corpus.validation, recipe.objective, length, token_types=recipe.spec.segments
    )
    # Objectives that move targets (spans, permutations) have masks that are no answer's place.
    masks = recipe.corpus.vocabulary.special.get("mask")
    return baseline(recipe.objective, (recipe.samples, held_out), recipe.spec.sizes.vocab_size, masks)


# ---------------------------------------------------------------- the page


def row(family: str, objective: str, own: bool, run: Run) -> str:
    record, rows = run.record, run.validations
    likelihoods = [n for n, kind in record["measures"].items() if kind in ("nll", "bits") and rows[-1].get(f"val_{n}")]
    accuracies = [n for n, kind in record["measures"].items() if kind == "accuracy" and rows[-1].get(f"val_{n}")]
    # Of an objective of one term its measure is the loss.
    shown = [*likelihoods, *accuracies] if likelihoods else ["loss", *accuracies]
    values = "; ".join(f"{n} {float(rows[0][f'val_{n}']):.3f} → {float(rows[-1][f'val_{n}']):.3f}" for n in shown)
    composed = compose(list(run.words))
    found = baseline_of(Recipe.from_config(composed), composed.cfg.data.seq_len)
    said = "—" if found is None else f"{found:.3f}"
    return (
        f"| {family} | {objective}{'' if own else ' *'} | {values} | {said} | {record['tokens_seen'] / 1e6:.2f} | "
        f"{record['flops_per_token'] / 1e6:.2f} | {record['wall_seconds'] / 60:.1f} |"
    )


def accuracy(run: Run) -> float | None:
    """The probe's accuracy on the mean of hidden states, over its splits; None where it has not been made."""
    file = run.path / "probe.json"
    if not file.exists():
        return None
    means = [p["accuracy"] for p in json.loads(file.read_text(encoding="utf-8"))["probes"] if p["pool"] == "mean"]
    return means[0] if means else None


def interval(values: Sequence[float]) -> str:
    """ "41.3 ± 2.0", the half of a 95 % interval over seeds."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * half(values):.1f}"


def half(values: Sequence[float]) -> float:
    return T95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5


def verdicts(found: dict[str, list[float | None]]) -> Iterator[str]:
    """Lines of a table: each beside MLM, paired by seed."""
    for what, values in found.items():
        there = [v for v in values if v is not None]
        if not there:
            continue
        said = "baseline"
        if what != "MLM":
            gaps = [a - b for a, b in zip(values, found["MLM"], strict=True) if a is not None and b is not None]
            if len(gaps) < 2:
                said = "too few seeds"
            else:
                how = "above" if np.mean(gaps) > 0 else "below"
                said = f"{how} MLM by {interval(np.abs(np.mean(gaps)) + np.array(gaps) - np.mean(gaps))}"
                said += "" if abs(np.mean(gaps)) > half(gaps) else ", not distinguishable"
        yield f"| {what} | {len(there)} | {interval(there)} | {said} |"


def rates(folder: Path) -> Iterator[str]:
    """Lines of a table: the last validation of each run of the sweep."""
    runs = sweep(folder)
    yield "| optimizer.lr | " + " | ".join(f"init.std={std}" for std in STDS) + " |"
    yield "|---" * (1 + len(STDS)) + "|"
    for lr in RATES:
        found = [
            f"{float(r.validations[-1]['val_loss']):.3f}" if (r := runs[lr, std]).done else "not run" for std in STDS
        ]
        yield f"| {lr} | {' | '.join(found)} |"


WHY = """\
Families with norms behind the residual (BERT and its kin, XLNet, BART, GPT-1; with BART's also Pegasus) have a rate of
their own, 2e-4 at width 768 (ELECTRA's, arXiv:2003.10555, table 6) and elsewhere with 1 / width (muP: arXiv:2203.03466),
and but for GPT-1 first values of 0.02 at width 768 and above, and in narrower models with the root of 1 / width. At the
rate of the other families such models stay at the frequencies of single tokens. model=bert objective=mlm_only size=nano,
validation loss after 400 steps; in a plain loop with the same batches it was 6.09 at 4e-3 and 0.049, 5.73 at 1.5e-3 and
0.02, 5.63 at 1.5e-3 and 0.049:"""

PLATEAU = """\
A fifth of the targets are shown as a token: to know how often that is right comes to about 5.70 here, and frequencies alone
to 6.18, so that what is below 5.70 was learnt from context. With learnt positions that takes long. In a model of two layers
of width 64, a text by characters and all targets masked, position=rope is at 2.31 after 400 steps, and position=learned at
3.10 (2.99 after 1,200), where frequencies alone come to 3.21. Other rates, first values, positions that begin as sines,
batches of four times the size, beta2, weight decay, mask rate, shorter texts or norms in front gave no more: 3.06 to 3.18
after 200 to 400 steps. transformers' BertForMaskedLM learns as fast from the same first values and batches: 5.835 over 128
windows of the validation part, where model=bert is at 5.847 over 64, after 300 steps at size=tiny and optimizer.lr=3e-3.
For a small budget add position=rope."""
ELECTRA = """\
model=electra takes no more than 5e-4, its small model's rate (table 6). In a model of two layers of width 64, a text by
characters, the discriminator finds 0.090 of the replaced tokens after 8e5 tokens (accuracy 0.860; 0.853 is the share of
originals), but at 1e-3 it finds 0.015 and at 2.4e-3, by the width, 0.002. Nothing else helped at 2.4e-3 (found up to 0.009): a
rate of 8e-3, a weight of 10, a generator half as wide, tables as wide as the model, batches of a quarter, norms in front,
position=t5_bias. Sines came to 0.036, position=rope to 0.119. With tables as wide as the model it is 0.023 at 1e-3 and 0.009 at
5e-4; at size=nano, by characters, 0.056 after 6e5 tokens at 5e-4 (accuracy 0.857). One seed each: it comes late, with learnt
positions, and for a small budget position=rope is the surer choice."""


def page(folder: Path) -> str:
    about, all_runs = versions(), list(table(folder))
    done = [r for r in all_runs if r[3].done]
    rows = sorted(row(*r) for r in done)
    missing = [r[3].name for r in all_runs if not r[3].done]
    found = {what: [accuracy(run) for run in runs] for what, runs in pairs(folder).items()}
    not_probed = sum(v is None for values in found.values() for v in values)
    return "\n".join(
        [
            "# What each objective learns here",
            "",
            f"Commit {about.get('commit', 'unknown')}, {cpu_name()}, torch {about['torch']}, Python {about['python']};",
            f"size=nano, {float(OTHERS):,.0f} tokens of the default corpus ({float(TOKENS['clm']):,.0f} of objective=clm), one",
            "seed, no option typed but a dropout that contrastive needs. Written by `make evidence`, which goes on where it",
            "was stopped.",
            "",
            "Losses of different objectives can't be compared, as they ask different questions. *Targets alone* is the",
            "cross-entropy of held-out targets by how often each comes in training and, of masked ones that are shown as a",
            "token, by how often that token is right: what is known without any context. * the family has another of its own.",
            "",
            "| family | objective | validation, first to last | targets alone | M tokens | MFLOPs a token | minutes |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            *([textwrap.fill(f"Not reached: {', '.join(missing)}.", 124), ""] if missing else []),
            "## RTD beside MLM",
            "",
            f"model=electra, size=nano, {FLOPS} FLOPs of each; accuracy in % of `llmlab probe {' '.join(PROBE)}`, means of",
            "hidden states, with 95 % intervals over seeds of pretraining, differences paired by seed.",
            "",
            "| objective | seeds | accuracy | verdict |",
            "|---|---|---|---|",
            *verdicts(found),
            "",
            *([f"Not reached: {not_probed} of {sum(map(len, found.values()))} probes.", ""] if not_probed else []),
            "## Rates and first values",
            "",
            WHY,
            "",
            *rates(folder),
            "",
            PLATEAU,
            "",
            ELECTRA,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families and objectives with this in their names")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--minutes", type=float, default=40, help="no run begins after so long (40)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "objectives", help="where runs are kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "objectives.md", help="the file to write")
    a = parser.parse_args()
    end = time.monotonic() + 60 * a.minutes
    swept = list(sweep(a.folder).values())
    paired = [run for runs in pairs(a.folder).values() for run in runs]
    wanted = [r for *about, r in table(a.folder) if a.only in f"{about[0]} {about[1]}"]
    # The pair between what is unlike the rest and the many that learn the next token.
    wanted.sort(key=lambda run: run.words[-1] == f"budget.tokens={TOKENS['clm']}")
    few = next((i for i, run in enumerate(wanted) if TOKENS["clm"] in run.words[-1]), len(wanted))
    todo = [run for run in [*wanted[:few], *([*paired, *swept] if not a.only else []), *wanted[few:]] if not run.done]

    def work(run: Run) -> None:
        if time.monotonic() < end:
            print(run.train(), flush=True)

    with ThreadPoolExecutor(a.jobs) as pool:
        list(pool.map(work, todo))
    probed = [f"run={run.path}" for run in paired if run.done and accuracy(run) is None]
    if probed and not a.only:
        done = llmlab("probe", *probed, *PROBE)
        print(done.stdout if not done.returncode else done.stderr.strip().splitlines()[-1])
    a.page.write_text(page(a.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
