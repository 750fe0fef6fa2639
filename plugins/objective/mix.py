"""Several objectives, of which each sample is trained by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import declared, load, register
from llmlab.slots import Aux, LanguageModel, Loss, Memory, Objective, Output, Pass, Vocabulary, auxiliary

from ._loss import IGNORED

Array = np.ndarray
Prepared = dict[str, Any]


@register("objective", "mix")
class Mixture:
    """An objective drawn for each sample (a mixture of denoisers: UL2, Tay et al. 2022, arXiv:2205.05131, section 3.1).

    The loss is the sum over objectives of their share times their mean over a step's targets; each is shown under its name,
    those of one name together. Those under a causal, a prefix or no mask share mask=prefix. Where others train decoders, or
    with `prefix`, what an encoder would read stands as a prefix before what the decoder writes (UL2's decoder-only models,
    section 4.3.1).
    A sample has the keys of all; what its own objective does not give is filled up. `which` (): the number of its own.
    """

    joins = "of"
    joins_options = "options"
    joins_names = "names"
    mask = "prefix"
    heads: ClassVar[dict[str, str]] = {}
    gives = ("prefix_len",)
    collate = "pad"
    fixed_counts = False
    when: ClassVar[dict[str, dict[str, Any]]] = {"prefix": {"topologies": ("decoder", "encoder")}}
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"of": ("mlm", "clm")},
        {"weights": (3.0, 1.0)},
        {"options": ({"z_loss": 0.2}, {"rate": 0.5})},
        {"names": ("one", "other")},
        {"of": ("denoise", "denoise"), "names": ("one", "other"), "weights": (3.0, 1.0), "prefix": True},
        {"names": ("one", "one")},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        of: tuple[str, ...] = ("clm", "mlm"),  # the objectives
        weights: tuple[float, ...] | None = None,  # in which proportion they are drawn; null: equally often
        options: tuple[dict[str, Any], ...] | None = None,  # of each: [{}, {rate: 0.3}]
        names: tuple[str, ...] | None = None,  # under which they are shown
        prefix: bool = False,  # one stack is trained, also where all of them are for an encoder-decoder
    ):
        self.vocabulary = vocabulary.size
        joined = declared("objective", "mix", {"of": of, "options": options, "names": names, "prefix": prefix})
        self.names = [str(n) for n in names or of]
        shares = np.array(weights or [1.0] * len(of), dtype=np.float64)
        if len(shares) != len(of) or not (shares > 0).all() or not np.isfinite(shares).all():
            raise ValueError(
                f"objective.weights must be {len(of)} numbers above 0, one for each of objective.of, but is {weights}"
            )
        self.shares = shares / shares.sum()
        prefixed = joined.attribute("mask") == "prefix"
        across = joined.attribute("topologies") == ("encoder_decoder",)
        each = [load("objective", n, dict(o)) for n, o in zip(of, options or [{}] * len(of), strict=True)]
        self.parts: list[Objective] = [factory(vocabulary, seq_len) for factory in each]
        # Which of them a target is of, a check can't know.
        self.shown = max(getattr(part, "shown", 0.0) for part in self.parts)
        probed = [_probe(part, seq_len) for part in self.parts]
        self.as_prefix = [not across and "source_ids" in p for p in probed]
        for i, factory in enumerate(each):
            length = seq_len
            # With what the encoder would read, a text is longer than its window: it gets less of it.
            while self.as_prefix[i] and (much := _length(probed[i], self.parts[i], length) - seq_len) > 0:
                # Of padded texts both the source and what is written may be as long as the text.
                length -= (much + 1) // 2 if _is_padded(self.parts[i]) else much
                self.parts[i] = factory(vocabulary, length)
                probed[i] = _probe(self.parts[i], length)
        self.keys = [{k for k in p if k != "documents"} for p in probed]
        self.documents = all("documents" in p for p in probed)
        self.like: Prepared = {k: v for p in probed for k, v in p.items() if k != "documents"}
        self.by_token = {k for p in probed for k in p if np.ndim(p[k]) and p[k].shape[-1] == len(p[_ids(k)])}
        if prefixed:
            self.like["prefix_len"] = np.int64(0)
            probed = [
                {"prefix_len": self._filled("prefix_len", np.asarray(0), len(p["ids"]), part), **p}
                for p, part in zip(probed, self.parts, strict=True)
            ]
        self.examples = [{k: torch.from_numpy(np.asarray(v))[None] for k, v in p.items()} for p in probed]

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        which = int(rng.choice(len(self.parts), p=self.shares))
        part = self.parts[which]
        prepared = part.prepare(sample, rng)
        if not self.documents:
            prepared.pop("documents", None)
        n = len(prepared["ids"])
        for key, like in self.like.items():
            if key not in prepared:
                prepared[key] = self._filled(key, np.asarray(like), n, part)
        return {**prepared, "which": np.int64(which)}

    def _filled(self, key: str, like: Array, n: int, part: Objective) -> Array:
        """What a sample has of a key that its objective does not give."""
        if key == "prefix_len":
            return np.asarray(n if getattr(part, "mask", "causal") == "bidirectional" else 0, dtype=np.int64)
        if key not in self.by_token:
            return np.zeros_like(like)
        length = 1 if key.startswith("source_") else n
        if key == "positions":
            alone = np.arange(length)
            return alone if like.ndim == 1 else np.stack([alone, np.zeros_like(alone)])
        return np.full((*like.shape[:-1], length), IGNORED if key == "labels" else 0, dtype=like.dtype)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, part in enumerate(self.parts):
            own = prepared["which"] == i
            for term, n in part.targets(prepared).items():
                name = self._name(i, term)
                found[name] = found.get(name, 0) + (n if own else 0)
        return found

    def _name(self, i: int, term: str) -> str:
        return self.names[i] if term == "nll" else f"{self.names[i]}_{term}"

    def passes(self, prepared: dict[str, Any]) -> Sequence[Pass]:
        i = int(prepared["which"])
        part, own = self.parts[i], {k: prepared[k] for k in self.keys[i]}
        for key, valid in (("ids", prepared.get("valid")), ("source_ids", prepared.get("source_valid"))):
            if key in own and valid is not None:  # of a row of a batch, in which the longest is padded with it
                own |= {k: v[..., : valid.sum()] for k, v in own.items() if k in self.by_token and _ids(k) == key}
        told = getattr(part, "passes", None)
        if told is not None:
            passes: Sequence[Pass] = told(own)
        else:
            tokens, source = len(own["ids"]), len(own["source_ids"]) if "source_ids" in own else None
            rows = min(tokens, max(part.targets(own).values()))
            heads: Mapping[str, str] = getattr(part, "heads", {"tokens": "lm"})
            passes = [Pass(tokens, source, heads=dict.fromkeys(heads, rows))]
        return [_joined(p) for p in passes] if self.as_prefix[i] else passes

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], **companions: LanguageModel) -> Loss:
        # Read whole, so that no key seems to be read by nobody where its objective has no row.
        columns = {k: batch[k] for k in (*self.like, "documents") if k in batch}
        valid = {"ids": batch["valid"], "source_ids": batch.get("source_valid")}
        which, found = batch["which"], []
        for i, part in enumerate(self.parts):
            rows = which == i
            own = {k: v for k, v in columns.items() if k in self.keys[i] or k in ("prefix_len", "documents")}
            text = _chosen(own, valid, rows, self.by_token)
            scale, here = 1.0, bool(rows.any())
            if not here and _several_ranks():
                # Where layers are gathered from all ranks each must make the same forwards: of an example, which counts
                # nowhere. A row of another objective may have more tokens than there are positions.
                text = {k: v.to(which.device) for k, v in self.examples[i].items() if k in own}
                scale, here = 0.0, True
            runs: LanguageModel = model if here else _Answering(partial(_nothing, self.vocabulary))
            runs = _Answering(partial(_as_prefix, runs)) if self.as_prefix[i] else runs
            others = {role: companions[role] if here else runs for role in getattr(part, "models", {})}
            loss = part.loss(runs, text, **others)
            found.append(_scaled(loss, scale))
        return self._together(found)

    def _together(self, found: Sequence[Loss]) -> Loss:
        """Terms and logs under their objectives' names."""
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        logs: dict[str, tuple[Tensor, Tensor]] = {}
        weights: dict[str, float] = {}
        aux: dict[str, list[Output]] = {}
        no_hidden = torch.zeros(0)
        for i, loss in enumerate(found):
            for name, pair in loss.terms.items():
                _add(terms, key := self._name(i, name), pair)
                weights[key] = weights.get(key, 0.0) + float(self.shares[i]) * loss.weights.get(name, 1.0)
            for name, pair in loss.logs.items():
                _add(logs, self._name(i, name), pair)
            for role, one in loss.aux.items():
                aux.setdefault(role, []).append(Output(no_hidden, {}, one))
        return Loss(terms, weights, logs, {role: auxiliary(*some) for role, some in aux.items()})


# ---------------------------------------------------------------- models as parts of a mixture call them


Answer = Callable[[Mapping[str, Tensor], Mapping[str, Tensor | None], Sequence[int]], Output]


@dataclass(frozen=True)
class _Answering:
    """A model by what it answers to a batch, to the heads that are asked for, with their rows, and to the layers."""

    answer: Answer

    def __call__(
        self,
        batch: Mapping[str, Tensor],
        heads: Mapping[str, Tensor | None] | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> Output:
        return self.answer(batch, heads or {}, layers)


def _nothing(
    vocabulary: int, batch: Mapping[str, Tensor], heads: Mapping[str, Tensor | None], layers: Sequence[int]
) -> Output:
    """The answer to a batch without rows: no scores."""
    shape, device = batch["ids"].shape, batch["ids"].device
    scores = {
        role: torch.zeros(*(shape if rows is None else (0,)), vocabulary, device=device) for role, rows in heads.items()
    }
    nothing = torch.zeros(*shape, 1, device=device)
    return Output(nothing, scores, None, layers=(nothing,) * len(layers))


def _as_prefix(
    model: LanguageModel, batch: Mapping[str, Tensor], heads: Mapping[str, Tensor | None], layers: Sequence[int]
) -> Output:
    """The answer of a model without an encoder: what one would read stands before the decoder's tokens."""
    source, ids = batch["source_ids"], batch["ids"]
    n = source.shape[1]
    text = {"ids": torch.cat([source, ids], 1), "prefix_len": torch.full_like(source[:, 0], n)}
    valid = [batch.get(k, torch.ones_like(t, dtype=torch.bool)) for k, t in (("source_valid", source), ("valid", ids))]
    if "source_valid" in batch or "valid" in batch:
        text["valid"] = torch.cat(valid, 1)
        # Padding may stand between the two.
        text["positions"] = (text["valid"].long().cumsum(1) - 1).clamp(min=0)
    silent = torch.zeros_like(valid[0])
    asked: dict[str, Tensor | None] = {
        role: torch.cat([silent, torch.ones_like(valid[1]) if rows is None else rows], 1)
        for role, rows in heads.items()
    }
    output = model(text, heads=asked, layers=layers)
    scores = {
        role: values.view(*ids.shape, *values.shape[1:]) if heads[role] is None else values
        for role, values in output.heads.items()
    }
    states = tuple(state[:, n:] for state in output.layers)
    return output._replace(hidden=output.hidden[:, n:], heads=scores, layers=states)


def _chosen(
    columns: Mapping[str, Tensor], valid: Mapping[str, Tensor | None], rows: Tensor, by_token: set[str]
) -> dict[str, Tensor]:
    """Rows of a batch, without the padding that all of them have."""
    chosen = {k: v[rows] for k, v in columns.items()}
    for of, mask in valid.items():
        if of not in chosen or mask is None or not rows.any():
            continue
        lengths = mask[rows].sum(1)
        longest = int(lengths.max())
        chosen |= {k: v[..., :longest] for k, v in chosen.items() if k in by_token and _ids(k) == of}
        if int(lengths.min()) < longest:
            chosen[of.replace("ids", "valid")] = mask[rows][:, :longest]
    return chosen


def _probe(part: Objective, seq_len: int) -> Prepared:
    """A sample of some text, which tells what keys the objective gives."""
    tokens = np.arange(seq_len + 1, dtype=np.int64) % 2
    return part.prepare({"tokens": tokens, "documents": np.zeros_like(tokens)}, np.random.default_rng(0))


def _length(probed: Prepared, part: Objective, seq_len: int) -> int:
    """Tokens of a source and what the decoder reads, at most."""
    return 2 * seq_len if _is_padded(part) else len(probed["source_ids"]) + len(probed["ids"])


def _is_padded(part: Objective) -> bool:
    return getattr(part, "collate", "stack") == "pad"


def _ids(key: str) -> str:
    return "source_ids" if key.startswith("source_") else "ids"


def _joined(told: Pass) -> Pass:
    """A pass over a source and a decoder's tokens, as one over both."""
    if told.source is None:
        return told
    heads = {role: told.tokens if n is None else n for role, n in told.heads.items()}
    return replace(told, tokens=told.source + told.tokens, source=None, heads=heads)


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _scaled(loss: Loss, scale: float) -> Loss:
    """A loss that counts, or one that counts nowhere."""
    if scale == 1.0:
        return loss
    terms, logs = ({k: (s * 0, n * 0) for k, (s, n) in pairs.items()} for pairs in (loss.terms, loss.logs))
    return loss._replace(terms=terms, logs=logs, aux=dict.fromkeys(loss.aux, Aux()))


def _add(pairs: dict[str, tuple[Tensor, Tensor]], name: str, pair: tuple[Tensor, Tensor]) -> None:
    before = pairs.get(name)
    pairs[name] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])
