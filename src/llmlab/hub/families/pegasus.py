"""Pegasus: BART with norms before the sublayers and computed positions, which its files hold all the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, Head
from llmlab.hub.families import bart
from llmlab.hub.rules import linear

STACKS = ("encoder", "decoder")
DEFAULTS = {k: v for k, v in bart.DEFAULTS.items() if k != "classifier_dropout"}
DEFAULTS |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def read(c: Config) -> list[str]:
    bart.wired(c, before=True)
    return ["model=pegasus", *bart.sizes(c), f"embedding={'scaled' if c['scale_embedding'] else 'token'}"]


def write(spec: ModelSpec) -> Config:
    scale = spec.stacks[0].embedding.options.get("scale", False)
    return {"model_type": "pegasus", **bart.base(spec), "scale_embedding": scale}


def positions(spec: ModelSpec) -> dict[str, Tensor]:
    """Sines, then cosines, of as many positions as config.json states."""
    rows, dim = spec.sizes.max_positions, spec.sizes.dim
    # In float64 and rounded once, as numpy computes them in PegasusSinusoidalPositionalEmbedding.create_weight.
    place = torch.arange(rows, dtype=torch.float64)[:, None]
    angles = place / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    # Halves, not interleaved: with an odd width there is one sine more than cosines (`sentinel`).
    table = torch.cat([angles.sin(), angles[:, : dim // 2].cos()], 1).float()
    return {f"model.{name}.embed_positions.weight": table for name in STACKS}


ENTRIES = [
    Entry(
        model_types=("pegasus",),
        families=("pegasus",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=[
            *bart.RULES,
            # Norms before sublayers leave a sum at the end, so that each stack ends in a norm of its own.
            *(rule for name in STACKS for rule in linear(f"stacks.{name}.norm", f"model.{name}.layer_norm")),
        ],
        architectures={
            # PegasusModel makes no decoder_input_ids of its own.
            "PegasusForConditionalGeneration": replace(bart.GENERATION, begin=None),
            "PegasusModel": Head(lambda c: {}, {"last_hidden_state": "hidden", **bart.SOURCE}, prefix=""),
        },
        prefix="model.",
        optional=("heads.tokens.fixed_bias",),
        ignore=(r"^final_logits_bias$",),
        # The class makes them with _freeze=True, and its files hold them, so that a reader
        # may check them and a writer must add them.
        fixed=positions,
        head_key="lm_head.weight",
        embed_key="model.shared.weight",
    )
]
