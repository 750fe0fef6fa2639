"""`llmlab eval`: loss, perplexity and bits per byte of a run on its own held-out text, or on another."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmlab.arguments import parse
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.data.windows import Stream

SOURCES = ("python_docs", "python_code", "files")
USAGE = """\
llmlab eval run=FOLDER [data=python_docs|python_code|FOLDER_OR_FILE] [batch_size=32] [--json]

Without data and path: the run's own validation set. With data=FOLDER_OR_FILE (.txt, .md, .jsonl): all of that text,
in the run's tokens. Bits per byte are given where the objective's loss is the text's likelihood."""


@dataclass
class Arguments:
    run: str
    data: str | None = None
    path: str | None = None
    batch_size: int = 32
    json: bool = False


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    argv = [a.removeprefix("data.") if a.startswith("data.path=") else a for a in argv]
    a = parse(argv, Arguments, "eval")
    if a.batch_size < 1:
        raise UserError(f"batch_size={a.batch_size} must be at least 1")
    found = evaluate(a.run, a.data, a.path, a.batch_size)
    if a.json:
        print(json_module.dumps(found))
        return 0
    for name, value in found.items():
        shown = {int: "{:,}", float: "{:.4f}"}.get(type(value), "{}").format(value)
        print(f"{name.replace('_', ' '):>14}  {shown}")
    return 0


def evaluate(run: str, data: str | None = None, path: str | None = None, batch_size: int = 32) -> dict[str, Any]:
    """{"loss", "perplexity", "bits_per_byte" (where it has a meaning), "targets", "bytes", "text"}; loss in nats a target."""
    import torch

    from llmlab.config import schema
    from llmlab.data import Windows, loader, prepare
    from llmlab.lab import folder
    from llmlab.training.recipe import chosen, plain

    model, tokenizer = folder.load_model(run)
    cfg, _ = folder.load(folder.home(run))
    settings = plain(cfg.data, schema.Data)
    special = tuple(tokenizer.special)
    if data is not None and data not in SOURCES:
        data, path = "files", data
    own = data is None and path is None
    if own:
        corpus = prepare(settings, plain(cfg.tokenizer, schema.Tokenizer), tuple(_special(cfg)))
        streams = [corpus.validation]
    else:
        source = data or "files"
        if source == "files" and path is None:
            raise UserError("data=files needs data.path=FOLDER_OR_FILE")
        file = schema.Tokenizer(kind="file", path=str(folder.home(run) / "tokenizer.json"))
        settings = replace(settings, source=source, path=path, split="position", seq_len=1)
        corpus = prepare(settings, file, special)
        streams = [_joined(corpus.train, corpus.validation, special=tokenizer.special)]
    objective = chosen(cfg, "objective")(corpus.vocabulary, cfg.data.seq_len)
    sizes = torch.from_numpy(corpus.token_bytes.copy())
    nll = targets = length = 0.0
    with torch.inference_mode():
        for stream in streams:
            windows = Windows(stream, cfg.data.seq_len, cfg.data.separate_documents)
            for batch in loader.validation_loader(windows, objective, micro=batch_size, rank=0, world=1, limit=None):
                loss = objective.loss(model, batch)
                total, count = loss.logs.get("nll", (loss.sum, loss.count))
                nll, targets = nll + float(total), targets + int(count)
                labels = batch["labels"]
                length += int(sizes[labels.clamp(min=0)].masked_fill(labels < 0, 0).sum())
    if not targets:
        raise UserError(f"the text has fewer than data.seq_len={cfg.data.seq_len} tokens; give a longer one")
    found: dict[str, Any] = {"text": path or data or "the run's validation set", "targets": int(targets)}
    found |= {"loss": nll / targets, "perplexity": math.exp(min(nll / targets, 700.0))}
    if getattr(objective, "bits_per_byte", False) and length:
        found |= {"bits_per_byte": nll / math.log(2) / length, "bytes": int(length)}
    return found


def _joined(first: Stream, second: Stream, special: Mapping[str, int]) -> Stream:
    """One stream of two that were cut from a text by position; a document that the cut went through is whole again."""
    import numpy as np

    from llmlab.data.windows import Stream

    cut = int(first.tokens[-1]) != special.get("eos")
    starts = np.concatenate([first.starts, second.starts[int(cut) :] + len(first)])
    return Stream(np.concatenate([first.tokens, second.tokens]), starts)


def _special(cfg: Any) -> Sequence[str]:
    from llmlab import registry

    return registry.index()["objective", cfg.objective["_part_"]].attrs.get("special", ())
