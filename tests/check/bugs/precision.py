"""What is right in float32 and as it is written, and wrong in bfloat16 or compiled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bugs import around, bug
from llmlab.slots import Term
from llmlab_plugins.ffn.gated import GatedFeedForward
from llmlab_plugins.head.vocabulary import LanguageModelHead
from llmlab_plugins.kernel.sdpa import SDPA
from llmlab_plugins.moe import routers
from llmlab_plugins.position.rope import Rope


def half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


@bug("in bfloat16 a feed-forward gives nothing", bfloat16="ffn=swiglu")
def half_ffn_gives_nothing():
    return around(GatedFeedForward, "forward", lambda ffn, self, x, *rest: ffn(self, x, *rest) * (0 if half(x) else 1))


@bug("in bfloat16 a feed-forward gives twice as much", bfloat16="ffn=swiglu")
def half_ffn_gives_twice():
    return around(GatedFeedForward, "forward", lambda ffn, self, x, *rest: ffn(self, x, *rest) * (2 if half(x) else 1))


@bug("in bfloat16 rotary positions turn nothing", bfloat16="position=rope")
def half_rope_turns_nothing():
    def rotate(original, self, q, k, state):
        return [Term(q, k)] if half(q) else original(self, q, k, state)

    return around(Rope, "rotate", rotate)


@bug("in bfloat16 the fused kernel forgets the scale of the scores", bfloat16="kernel=sdpa")
def half_scale_missing():
    def change(original, self, terms, v, lowered, bias, score, *rest):
        return original(self, terms, v, lowered, bias, replace(score, scale=1.0) if half(v) else score, *rest)

    return around(SDPA, "__call__", change)


@bug("in bfloat16 tokens go to the experts that want them least", bfloat16="moe=topk")
def half_router_negated():
    return around(routers, "logits", lambda logits, gate, x: logits(gate, x) * (-1 if half(x) else 1))


@bug("in bfloat16 a head reads half of what is said", bfloat16="head=lm")
def half_head_reads_half():
    def forward(original, self, hidden, *rest, **more):
        return original(self, hidden * (0.5 if half(hidden) else 1), *rest, **more)

    return around(LanguageModelHead, "forward", forward)


@bug("compiled, the fused kernel forgets the scale of the scores", compiled="kernel=sdpa")
def compiled_scale_missing():
    def change(original, self, terms, v, lowered, bias, score, *rest):
        scale = 1.0 if torch.compiler.is_compiling() else score.scale
        return original(self, terms, v, lowered, bias, replace(score, scale=scale), *rest)

    return around(SDPA, "__call__", change)


@bug("a layer falls apart when it is compiled: a part does what can't be traced", compiled="ffn=swiglu")
def compiled_in_pieces():
    def forward(ffn, self, x, *rest):
        torch._dynamo.graph_break()
        return ffn(self, x, *rest)

    return around(GatedFeedForward, "forward", forward)
