"""`llmlab probe`: finished models scored on labelled texts by one protocol, so that different objectives can be compared."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmlab.commands.arguments import parse
from llmlab.errors import UserError, near
from llmlab.record_kinds import KINDS
from llmlab.runs import newest

if TYPE_CHECKING:
    from llmlab.probing.run import Probed, Result
    from llmlab.probing.scores import Interval

USAGE = """\
llmlab probe run=RUN [run=RUN2 ...] [hf=FOLDER ...] [data=docstrings|brown|FILE] [mode=frozen|finetune] [--json]

Accuracy of each model on labelled texts. run: a run, one of its checkpoints, or a folder of runs, as of a sweep: all below
it that are complete. data: docstrings of Python's library by their package, which need no download and
whose texts, without labels, the default corpus has too; brown, 500 documents by genre (llmlab fetch brown); or your own
FILE or FOLDER (.jsonl, .csv, .parquet, ... with text, label and maybe text_b; data.fields.label=KEY where a key is another).
  mode=frozen      logistic regression on hidden states of the last layer, standardised, of the frozen model: their mean over
                   a text, and that of its last token (of [CLS], where an encoder's tokenizer has it); of skipgram and cbow
                   the mean of token vectors. The strength of the penalty is chosen by cross-validation on the training
                   texts. Beside it: the most frequent class, and logistic regression on the tf-idf of the same tokens.
                   Needs scikit-learn: pip install 'llmlab[probe]'
  mode=finetune    all weights learn, under a new head (epochs=5, batch_size=16, AdamW); of several lr=... the best on a
                   fifth of the training texts is taken, of each split anew (lr=5e-5 lr=3e-4 lr=1e-3)
  seeds=5          splits into training and test texts, stratified, the same for all models
  test=0.25        share of the texts that is scored
  seq_len=N        a text is cut to N tokens; default: the shortest length that one of the models was trained with
Intervals are of 95 %, over splits, corrected for the texts that they share (Nadeau and Bengio 2003); differences are paired by
split, against the first model. They tell nothing of other seeds of pretraining: `llmlab report` compares over those.
Each result is kept in the run's folder (probe.json), and is a column of `llmlab report`."""

MODES = ("frozen", "finetune")
KEYS = tuple(dict.fromkeys(key for f in KINDS["labelled"].fields for key in f.keys))


@dataclass
class Arguments:
    run: list[str] = field(default_factory=list)
    hf: list[str] = field(default_factory=list)
    data: str = "docstrings"
    mode: str = "frozen"
    seeds: int = 5
    test: float = 0.25
    seq_len: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    lr: list[float] = field(default_factory=list)
    json: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    named = [w.removeprefix("data.fields.").partition("=") for w in argv if w.startswith("data.fields.")]
    if wrong := [name for name, _, key in named if name not in KEYS or not key]:
        raise UserError(f"data.fields.{wrong[0]}: type data.fields.FIELD=KEY; {near(wrong[0], KEYS)}")
    a = parse([w for w in argv if not w.startswith("data.fields.")], Arguments, "probe")
    _check(a)
    # Imported here: torch takes 1.4 s, and a mistyped key need not wait for it.
    from llmlab.data.progress import progress
    from llmlab.probing import finetune, frozen, run, texts

    if a.mode == "frozen":
        frozen.check_installed()
    usual = finetune.Recipe()
    size = a.batch_size or usual.batch_size
    recipe = finetune.Recipe(a.epochs or usual.epochs, size, tuple(a.lr) or usual.rates)
    mode: Any = a.mode
    protocol = run.Protocol(mode, a.seeds, a.test, a.seq_len, a.batch_size or 32, recipe)
    labelled = texts.open_set(a.data, {name: key for name, _, key in named})
    runs = [path for given in a.run for path in run.runs_of(newest.resolve_run(given))]
    if twice := [n for n in runs if runs.count(n) > 1]:
        raise UserError(f"{twice[0]} is named twice; leave one of them out")
    subjects = [*map(run.of_run, runs), *map(run.of_checkpoint, a.hf)]
    with progress("probing") as bar:
        probed = run.probe(subjects, labelled, protocol, bar)
    print(json_module.dumps(as_json(probed), indent=1) if a.json else "\n".join(shown(probed)))
    # Behind what is shown, which would be lost with a folder that can't be written.
    run.keep(probed)
    return 0


def _check(a: Arguments) -> None:
    if not a.run and not a.hf:
        raise UserError("run is missing; llmlab probe run=FOLDER, or hf=FOLDER for a Hugging Face checkpoint")
    if a.mode not in MODES:
        raise UserError(f"mode={a.mode}: there is no such mode; {near(a.mode, MODES)}")
    if twice := [n for n in [*a.run, *a.hf] if [*a.run, *a.hf].count(n) > 1]:
        raise UserError(f"{twice[0]} is named twice; leave one of them out")
    for name in ("seeds", "seq_len", "batch_size", "epochs"):
        if (value := getattr(a, name)) is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if not 0 < a.test < 1:
        raise UserError(f"test={a.test:g} must be more than 0 and less than 1")
    if wrong := [rate for rate in a.lr if not 0 < rate < 1]:
        raise UserError(f"lr={wrong[0]:g} must be more than 0 and less than 1")
    if a.mode == "frozen" and (a.lr or a.epochs is not None):
        raise UserError(f"{'lr' if a.lr else 'epochs'}= is for mode=finetune; leave it out")


def as_json(probed: Probed) -> dict[str, Any]:
    from llmlab.probing.scores import difference

    first, splits = probed.results[0], probed.splits

    def plain(found: Interval) -> dict[str, Any]:
        return {"mean": found.mean, "half": found.half}

    def of(result: Result) -> dict[str, Any]:
        scores = {}
        for name, values in result.accuracies.items():
            scores[name] = {"accuracies": list(values), **plain(probed.interval(values))}
            if result is not first and (other := counterpart(first, name)) is not None:
                scores[name]["difference"] = plain(difference(values, other, splits[0]))
        baselines = {name: plain(probed.interval(values)) for name, values in result.baselines.items()}
        s = result.subject
        about = {"model": s.name, "flops": s.flops, "note": s.note, "cut": result.cut}
        return {**about, "features": scores, "baselines": baselines}

    labelled, protocol = probed.labelled, probed.protocol
    return {
        "data": labelled.name,
        "fingerprint": labelled.fingerprint,
        "classes": list(labelled.classes),
        "train": len(splits[0].train),
        "test": len(splits[0].test),
        "mode": protocol.mode,
        "seeds": protocol.seeds,
        "seq_len": probed.seq_len,
        "repeated": labelled.repeated,
        "notes": list(labelled.notes),
        "models": [of(result) for result in probed.results],
    }


def counterpart(first: Result, pool: str) -> Sequence[float] | None:
    """Accuracies of the first model that those of a pool are compared with: its mean with a mean, and with any other the
    token that stands for a text there."""
    if pool in first.accuracies:
        return first.accuracies[pool]
    means = ("mean", "embedding")
    # Of a fine-tuned model there is one vector, whichever it is.
    alike = [
        v for name, v in first.accuracies.items() if (name in means) == (pool in means) or len(first.accuracies) == 1
    ]
    return alike[0] if alike else None


def shown(probed: Probed) -> list[str]:
    """The lines of a table: baselines, then each model."""
    from llmlab.formatting import power_of_ten
    from llmlab.probing.scores import difference

    splits, first = probed.splits, probed.results[0]
    n, kinds = len(probed.labelled.records), len(probed.labelled.classes)
    head = (
        f"{probed.labelled.name}: {n:,} texts of {kinds} classes, {len(splits[0].train):,} to learn from "
        f"and {len(splits[0].test):,} to score in each of {len(splits)} splits; accuracy in %, mean and 95 % interval"
    )
    several = len(probed.results) > 1
    rows = [["model", "features", "accuracy", *(["difference"] if several else []), "pretraining FLOPs"]]

    def row(name: str, what: str, found: Interval, gap: str = "", flops: str = "") -> None:
        rows.append([name, what, percent(found), *([gap] if several else []), flops])

    row("most frequent class", "", probed.interval(first.baselines["majority"]))
    # Models of one tokenizer read the same tokens.
    bags: dict[tuple[float, ...], list[str]] = {}
    for result in probed.results:
        if (values := result.baselines.get("bag_of_tokens")) is not None:
            bags.setdefault(tuple(values), []).append(result.subject.name)
    for values, (name, *others) in bags.items():
        more = f" and {len(others)} more" if others else ""
        row("bag of tokens" if len(bags) == 1 else f"tokens of {name}{more}", "tf-idf", probed.interval(values))
    for result in probed.results:
        flops = "" if result.subject.flops is None else power_of_ten(result.subject.flops)
        for pool, values in result.accuracies.items():
            gap, other = "", counterpart(first, pool)
            if result is not first and other is not None:
                gap = percent(difference(values, other, splits[0]), sign=True)
            what = f"fine-tuned ({pool})" if probed.protocol.mode == "finetune" else pool
            row(result.subject.name, what, probed.interval(values), gap, flops)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    cut = {result.cut for result in probed.results}
    most = f"{min(cut):,}" if len(cut) == 1 else f"{min(cut):,} to {max(cut):,}"
    note = [f"{most} of the texts are longer than seq_len={probed.seq_len} and were cut"] if max(cut) else []
    if probed.labelled.repeated:
        note.append(f"{probed.labelled.repeated:,} more texts were left out, as they are there already")
    note += [*probed.labelled.notes, *(r.subject.note for r in probed.results if r.subject.note is not None)]
    return [head, *note, "", *lines]


def percent(found: Interval, sign: bool = False) -> str:
    """ "41.3 ± 2.0"."""
    half = "" if found.half is None else f" \N{PLUS-MINUS SIGN} {100 * found.half:.1f}"
    return f"{100 * found.mean:{'+' if sign else ''}.1f}{half}"
