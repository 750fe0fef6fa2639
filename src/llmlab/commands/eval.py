"""`llmlab eval`: loss, perplexity and bits per byte of a run on its own held-out text, or on another."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmlab.commands.arguments import either, parse
from llmlab.commands.swap import split, swapped
from llmlab.config import learned
from llmlab.errors import UserError, near
from llmlab.ranks import rank_zero_info
from llmlab.record_kinds import KEYS

if TYPE_CHECKING:
    from llmlab.data.records import Records
    from llmlab.data.windows import Stream
    from llmlab.model.model import Model

SOURCES = ("python_docs", "python_code", "arithmetic", "files")
USAGE = """\
llmlab eval run=FOLDER [data=python_docs|python_code|FOLDER_OR_FILE] [seq_len=N] [batch_size=32] [SLOT=PART ...] [--json]
llmlab eval run=FOLDER data=FILE [data.fields.label=KEY ...]                 of a run on records (.jsonl, .csv, .parquet, ...)
llmlab eval hf=FOLDER data=... [bos=true|false]
llmlab eval run=FOLDER reward=NAME ...       what its answers are worth: llmlab eval reward=exact --help

Without data and path: the run's own validation set. With data=FOLDER_OR_FILE (.txt, .jsonl, .parquet, ...; data.field=KEY
where a row has its text under another key than "text"): all of that text, unfiltered, in the run's tokens, in windows of the
length that it was trained with. hf=FOLDER (or ORG/NAME): a Hugging Face checkpoint in its own tokens, in windows of 1,024
where the model and the text have as many, or of seq_len. Each window begins with bos where the tokenizer's own template
puts it before a text; bos=true or false says so for any.
position=, window= and kernel=, and their options: the same weights with another part, which keeps the options that both
have: seq_len=512 position=dual_chunk kernel=eager reads sequences four times as long as the 128 tokens of training.
Perplexity is given if the objective measures a likelihood, bits per byte if that is the likelihood of the whole text. The
bytes are those of the text itself in UTF-8, whatever the tokenizer drops or rewrites."""


@dataclass
class Arguments:
    run: str | None = None
    hf: str | None = None
    data: str | None = None
    path: str | None = None
    field: str = "text"
    seq_len: int | None = None
    batch_size: int = 32
    bos: bool | None = None
    json: bool = False


def main(argv: Sequence[str]) -> int | None:
    if any(a.startswith(("reward=", "reward.")) for a in argv):
        from llmlab.commands import eval_reward

        return eval_reward.main(argv)
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    keys = ("data.path=", "data.field=", "data.bos=")
    named = [a.removeprefix("data.fields.").partition("=") for a in argv if a.startswith("data.fields.")]
    if wrong := [name for name, _, key in named if name not in KEYS or not key]:
        raise UserError(f"data.fields.{wrong[0]}: type data.fields.FIELD=KEY; {near(wrong[0], KEYS)}")
    argv = [a for a in argv if not a.startswith("data.fields.")]
    argv = [a.removeprefix("data.") if a.startswith(keys) else a for a in argv]
    argv, parts = split(argv)
    a = parse(argv, Arguments, "eval")
    if a.batch_size < 1:
        raise UserError(f"batch_size={a.batch_size} must be at least 1")
    if a.seq_len is not None and a.seq_len < 1:
        raise UserError(f"seq_len={a.seq_len} must be at least 1")
    either(a.run, a.hf, "eval")
    if a.bos is not None and a.hf is None:
        raise UserError("bos= is for hf=: a run's documents begin as they did in its training")
    found = evaluate(
        a.run,
        a.data,
        a.path,
        a.batch_size,
        hf=a.hf,
        seq_len=a.seq_len,
        bos=a.bos,
        parts=parts,
        field=a.field,
        fields={name: key for name, _, key in named},
    )
    if a.json:
        print(json_module.dumps(found))
        return 0
    for name, value in found.items():
        shown = {int: "{:,}", float: "{:.4f}"}.get(type(value), "{}").format(value)
        print(f"{name.replace('_', ' '):>14}  {shown}")
    return 0


def evaluate(
    run: str | None,
    data: str | None = None,
    path: str | None = None,
    batch_size: int = 32,
    *,
    hf: str | None = None,
    seq_len: int | None = None,
    bos: bool | None = None,
    parts: Sequence[str] = (),
    field: str = "text",
    fields: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """{"text", "targets", "loss", ...}: the loss, and what the objective's `measures` say of it: "perplexity" and
    "bits_per_byte" of a likelihood, "bytes" of the text, "accuracy".

    hf: a Hugging Face checkpoint instead of a run; `data` or `path` must then name the text. seq_len: length of a window.
    bos: whether windows begin with it, with hf= (`data.bos`). parts: other parts for the same weights, as typed
    ("position=dual_chunk"). field: the key of a text in a row. fields: the keys of a
    record's fields, of a run that was trained on records; None: as in its training.
    """
    # Imported here: torch takes 1.4 s, and a mistyped key need not wait for it.
    import torch

    from llmlab import measures
    from llmlab.config import schema
    from llmlab.config.companions import judging
    from llmlab.data import Stream, loader, prepare
    from llmlab.data.packing import Packs
    from llmlab.data.question_windows import QuestionWindows
    from llmlab.data.records import RecordSamples
    from llmlab.data.samples import samples
    from llmlab.decoding.generate import limit
    from llmlab.model import batch_keys, finite
    from llmlab.runs import folder, text
    from llmlab.training import answered, companion_records, losses, written
    from llmlab.training.feeds.acting import Actor
    from llmlab.training.recipe import as_dataclass, filters, part_factory
    from llmlab.training.recipe import special as needed
    from llmlab.training.totals import Totals

    if hf is not None and data is None and path is None:
        raise UserError("data is missing: a checkpoint has no text of its own; data=python_docs or data=FOLDER_OR_FILE")
    if data is not None and data not in SOURCES:
        data, path = "files", data
    if hf is None:
        assert run is not None
        model, _ = folder.load_model(run)
        cfg, _ = folder.load(folder.home(run))
        tokenizer = folder.home(run) / "tokenizer.json"
        models = companion_records.finished(folder.checkpoint_of(run), folder.home(run), cfg, model)
    else:
        model, cfg, tokenizer = _foreign(hf)
        cfg.data.bos, models = bos, {}
    model = swapped(model, parts)
    judges = {role: models.pop(role) for role in judging(cfg)}
    settings = as_dataclass(cfg.data, schema.Data)
    special, kind = needed(cfg), learned.reads(cfg)
    own = data is None and path is None
    if own:
        assert run is not None
        home = folder.home(run)
        advice = f"bring it back as it was, or measure what is there now with llmlab eval run={run} data={{text}}"
        made_with = as_dataclass(cfg.tokenizer, schema.Tokenizer)
        record = text.recorded_fields(home)
        corpus = text.corpus(text.Trained(home, settings, made_with, special, record, kind, filters(cfg)), advice)
        streams = [corpus.validation]
    else:
        source = data or "files"
        if source == "files" and path is None:
            raise UserError("data=files needs data.path=FOLDER_OR_FILE")
        file = schema.Tokenizer(kind="file", path=str(tokenizer))
        settings = replace(settings, source=source, path=path, field=field, seq_len=1, max_documents=None)
        if fields:
            settings = replace(settings, fields=schema.Fields(**{**settings.fields, **fields}))
        # Of labelled records the classes have the numbers that they had in training.
        labels = None if run is None else (text.recorded_fields(folder.home(run)).get("data") or {}).get("labels")
        corpus = prepare(settings, file, special, whole=True, reads=kind, labels=labels)
        streams = [corpus.train]
    length_of_windows = seq_len or (_usual(model, streams[0]) if hf is not None else cfg.data.seq_len)
    room = limit(model)
    if room is not None and length_of_windows > room:
        raise UserError(f"seq_len={length_of_windows} is more than the {room} positions that the model knows")
    make = part_factory(cfg, learned.slot(cfg))
    objective = make(corpus.vocabulary, length_of_windows)
    # A run's windows are those of its training; each of a checkpoint's is a text of its own, as its template begins one.
    lead = tuple(corpus.manifest["lead"]) if hf is not None else ()
    shared = len(lead) or 1
    if lead:
        rank_zero_info("and so does each window")
    pieces = [(stream, length_of_windows) for stream in streams]
    likely = measures.covers_text(objective)
    # The last, shorter window is measured too: bits per byte are of all bytes of the text.
    if not own and likely:
        rest = [stream.after(length_of_windows, shared) for stream in streams if isinstance(stream, Stream)]
        pieces += [(end, len(end) - 1) for end in rest if len(end) > shared]
    ends = corpus.vocabulary.special.get("eos")
    # These tokens are no text; eos is, as the end of a document tells that another begins.
    beginnings = tuple(i for i in lead if i != ends)
    totals, compared = Totals(measures.kinds(objective)), dict[str, float]()
    # inference_mode, not no_grad: nothing is trained afterwards, and it also spares counting versions of tensors.
    with torch.inference_mode():
        for stream, size in pieces:
            objective = make(corpus.vocabulary, size)
            windows = samples(
                corpus,
                stream,
                objective,
                size,
                documents=cfg.data.separate_documents,
                token_types=model.spec.segments,
                lead=lead,
                given=beginnings,
            )
            if isinstance(windows, RecordSamples | QuestionWindows | Packs):
                for line in windows.told(f"seq_len={size}"):
                    rank_zero_info(line)
            batches: Iterable[dict[str, Any]]
            if kind == "prompts":
                how = (
                    objective.rollout,
                    part_factory(cfg, "reward")() if cfg.reward is not None else None,
                    corpus.tokenizer,
                    corpus.vocabulary,
                    batch_size,
                )
                batches = Actor(*how).judgements(model, windows, objective, judges)  # type: ignore[arg-type]  # which the kind is
            else:
                batches = loader.validation_loader(windows, objective, micro=batch_size, rank=0, world=1, limit=None)
            for batch in batches:
                _known(batch, model)
                watched = batch_keys.Watched(batch) if not totals.pairs else batch  # the first
                loss = objective.loss(model, watched, **models)
                losses.check(loss, objective, models)
                loss = losses.with_shown(loss, batch)
                totals.add(loss, batch)
                if isinstance(watched, batch_keys.Watched):
                    batch_keys.check(watched, objective)
                # At each batch, as only here the batch that did it is at hand to be run again.
                if not math.isfinite(totals.means()["loss"]):
                    # B023 warns of a lambda that sees a loop's variables change; this one is called before they do.
                    which = finite.first_nonfinite(model, lambda: objective.loss(model, batch, **models))  # noqa: B023
                    so_far = sum(totals.counts().values())
                    raise UserError(f"the loss is {totals.means()['loss']} after {so_far:,} targets: {which}")
        if isinstance(windows, RecordSamples):
            compared = written.scores(model, objective, windows, corpus.tokenizer, corpus.vocabulary, len(windows))
        if kind == "questions":
            compared = answered.scores(model, objective, windows, corpus.tokenizer, batch_size)
    counts = totals.counts()
    if not any(counts.values()):
        raise UserError(f"the text has fewer than seq_len={length_of_windows} tokens; give a longer one, or seq_len=N")
    found: dict[str, Any] = {"text": path or data or "the run's validation set"}
    found |= {"targets" if len(counts) == 1 else f"{name}_targets": n for name, n in counts.items()} | totals.means()
    return found | compared | ({"bytes": totals.bytes} if totals.bytes else {})


def _foreign(hf: str) -> tuple[Any, Any, Any]:
    """(model, config of its family with the objective that it is trained by, tokenizer.json)."""
    from llmlab.config.compose import compose
    from llmlab.hub.load import describe, load_hf
    from llmlab.hub.locate import locate
    from llmlab.hub.text import tokenizer_file

    at = locate(hf)
    file = tokenizer_file(at)
    cfg = compose(describe(at).overrides, strict=False).cfg
    model = load_hf(at).model
    for role in learned.heads(cfg):
        if role not in model.heads:
            raise UserError(f"hf={hf}: it has no head {role}, by which {learned.typed(cfg)} would measure it")
    return model, cfg, file


def _usual(model: Model, stream: Stream | Records) -> int:
    """1,024, or as many positions as the model has, or as the text has tokens."""
    from llmlab.decoding.generate import limit

    return max(1, min(1024, limit(model) or model.sizes.max_positions, len(stream) - 1))


def _known(batch: Mapping[str, Any], model: Model) -> None:
    """A tokenizer may have ids that a checkpoint has no row for."""
    for name in ("ids", "source_ids"):
        # Looked up, such an id is an IndexError on a CPU, and on a GPU an assertion of the device, after which no call works.
        if name in batch and (most := int(batch[name].max())) >= model.sizes.vocab_size:
            raise UserError(f"the tokenizer has the id {most}, but the model knows {model.sizes.vocab_size} tokens")
