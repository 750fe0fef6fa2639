"""A model that takes the reference's argument names and returns the reference's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.hub.entry import Config, Head
from llmlab.hub.outputs import Argument, Outputs, tensors
from llmlab.model.model import Model
from llmlab.slots import Output

DECODER = {
    "input_ids": "ids",
    "attention_mask": "valid",
    "token_type_ids": "segments",
    "position_ids": "positions",
}
ENCODER_DECODER = {
    "input_ids": "source_ids",
    "attention_mask": "source_valid",
    "decoder_input_ids": "ids",
    "decoder_attention_mask": "valid",
}

CROSS = {"encoder_hidden_states": "source", "encoder_attention_mask": "source_valid"}  # of a decoder alone


class HubModel(nn.Module):
    """A loaded checkpoint, as `load_hf` returns it: `model` is the llmlab model, `config` the checkpoint's config.json.

    `forward` takes `input_ids` (B, T), `attention_mask`, `token_type_ids`, `position_ids`, and for an encoder-decoder
    `decoder_input_ids`; it returns the outputs of the reference's class by its names.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        head: Head,
        dtypes: dict[str, torch.dtype],
        read: frozenset[str],
        *,
        unread: Mapping[str, Tensor] | None = None,
        beside: Mapping[str, bytes] | None = None,
        begin: int | None = None,
    ):
        super().__init__()
        self.begin = begin  # where decoder_input_ids are missing: they are input_ids, shifted right behind this id
        self.model, self.config, self.head = model, config, head
        self.dtypes, self.read = dtypes, read  # in the file, so that the same goes back out
        self.unread = dict(unread or {})  # of the file, which goes back out though it changes nothing
        self.beside = dict(beside or {})  # the tokenizer's files and the chat template, by name

    def forward(self, input_ids: Tensor, **arguments: Argument) -> Outputs:
        # XLNet's and ChatGLM's masks say what is hidden, pair by pair: no renaming makes a batch of ours of them.
        said = None if self.head.call is None else self.head.call(self, {"input_ids": input_ids, **arguments})
        if said is not None:
            return said
        names = ENCODER_DECODER if len(self.model.stacks) > 1 else DECODER
        if self.model.spec.stacks[-1].cross_attention is not None and names is DECODER:
            names = {**DECODER, **CROSS}
        batch: dict[str, Tensor] = {}
        if unknown := [name for name in arguments if name not in names]:
            raise TypeError(f"{unknown[0]} is not an argument of this model; there are {', '.join(names)}")
        for name, value in tensors({"input_ids": input_ids, **arguments}).items():
            # transformers takes 1 and 0 of any dtype.
            if name.endswith("attention_mask"):
                value = value.bool()
                # Nothing is padded: without a mask a kernel may take its causal path.
                if value.all():
                    continue
            if name == "token_type_ids" and not self.model.sizes.token_types:
                raise TypeError("token_type_ids: this model has no token types")
            batch[names[name]] = value
        # As transformers' shift_tokens_right: the last token of the source falls off.
        if "ids" not in batch and self.begin is not None:
            batch["ids"] = torch.cat([torch.full_like(input_ids[:, :1], self.begin), input_ids[:, :-1]], 1)
        positions = [p for stack in self.model.all_stacks() for p in stack.positions]
        if "positions" in batch:
            # RoBERTa's position_ids are rows of its table, of which the first are of padding; ours count from 0.
            batch["positions"] = batch["positions"] - max(map(_rows_before_the_first, positions), default=0)
        if {"ids", "valid"} <= batch.keys() and not all(p.caches_rotated for p in positions):
            # The reference's length of a row is that of the batch, padding and all; llmlab's own is the row's.
            batch.setdefault(
                "positions", torch.arange(batch["ids"].shape[1]).to(input_ids.device).expand_as(batch["ids"])
            )
        if "ids" not in batch:
            raise TypeError("decoder_input_ids is missing: what the decoder has said so far")
        out = self.model(batch)
        return self.answer(out)

    def answer(self, out: Output) -> Outputs:
        return Outputs({name: self._read(where, out) for name, where in self.head.outputs.items()})

    def _read(self, where: str, out: Output) -> Tensor:
        kind, _, rest = where.partition(":")
        if kind == "hidden":
            return out.hidden
        if kind == "source":
            assert out.source is not None
            return out.source
        role, _, column = rest.partition(":")
        tensor = out.heads[role]
        # One linear gives both ends of a span: column 0 is the start (qa_outputs).
        return tensor[..., int(column)] if column else tensor


def _rows_before_the_first(position: nn.Module) -> int:
    """Rows of a table of positions before that of the first, where one of them is the row of padding; else 0."""
    learned: Any = getattr(position, "learned", position)  # MPNet's has a bias beside
    return learned.offset if getattr(learned, "pad_id", None) is not None else 0
