"""Embeddings, norms, blocks, feed-forwards and heads."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from bugs import after, around, bug, replaced
from llmlab.model import build
from llmlab_plugins.block.parallel import Parallel
from llmlab_plugins.block.residual import DeepNorm, PreNorm
from llmlab_plugins.embedding.bert import BertEmbedding
from llmlab_plugins.embedding.token import TokenEmbedding
from llmlab_plugins.ffn import plain
from llmlab_plugins.ffn.gated import GatedFeedForward
from llmlab_plugins.head import _pieces
from llmlab_plugins.head.vocabulary import LanguageModelHead, MaskedLMHead
from llmlab_plugins.init.normal import Normal
from llmlab_plugins.norm.layernorm import LayerNorm
from llmlab_plugins.norm.rmsnorm import RMSNorm


@bug("the offset of a norm's weight is lost", reference="model=gemma")
def norm_offset_lost():
    return after(RMSNorm, lambda built: setattr(built, "offset", 0.0))


@bug("a norm takes its statistics over the whole text", causality="norm=rmsnorm")
def norm_over_the_text():
    def forward(self, x):
        mean = x.float().square().mean((-2, -1), keepdim=True)
        return ((self.offset + self.weight) * x * (mean + self.eps).rsqrt()).to(x.dtype)

    return replaced(RMSNorm, forward=forward)


@bug("a norm adds no bias", gradients="model=gpt2")
def norm_without_its_bias():
    return replaced(LayerNorm, forward=lambda self, x: F.layer_norm(x, (self.dim,), self.weight, None, self.eps))


@bug("token vectors are not scaled by the root of the width", reference="model=gemma")
def embedding_not_scaled():
    return after(TokenEmbedding, lambda built: setattr(built, "factor", None))


@bug("segments are left out", reference="model=bert")
def segments_left_out():
    return after(BertEmbedding, lambda built: setattr(built, "segments", None))


@bug("a tied head has a table of its own", tied="model=gpt2")
def tied_untied():
    def change(original, self, sizes, *given, **options):
        original(self, sizes.but(tie_embeddings=False), *given, **options)

    return around(LanguageModelHead, "__init__", change)


@bug("the table of a tied head has the first values of an untied one", first_loss="model=gpt2")
def tied_table_too_large():
    def fill(original, self, tensor, role, *given):
        original(self, tensor, role, *given)
        if role == "embed":
            tensor.mul_(1 / self.std)

    return around(Normal, "fill", fill)


@bug("the logits of a head are twice as large", first_loss="model=t5")
def logits_doubled():
    return around(LanguageModelHead, "forward", lambda forward, *given: 2 * forward(*given))


@bug("first values come from the generator that everything draws from", first_values="init=normal")
def common_generator():
    def fill(original, self, tensor, role, sizes, generator):
        original(self, tensor, role, sizes, torch.default_generator)

    return around(Normal, "fill", fill)


@bug("the norm of a head is left out", gradients="model=bert")
def head_without_its_norm():
    return replaced(MaskedLMHead, transform=lambda self, h: self.act(self.dense(h)))


@bug("tensors of one shape have the same first values", drawn="init=normal")
def one_seed_for_all():
    return replaced(build, key=lambda *parts: 1)


@bug("the soft cap of the logits is not looked at", traits="head=lm", reference="model=gemma2")
def logit_softcap_ignored():
    return after(LanguageModelHead, lambda built: setattr(built, "softcap", None))


@bug("the residual goes on from the norm", reference="model=gpt2")
def residual_from_the_norm():
    return after(PreNorm, lambda built: setattr(built, "normed_residual", True))


@bug("a block loses what its sublayers say of experts", wiring="block=pre", balance="model=mixtral")
def block_loses_losses():
    return around(PreNorm, "wire", lambda wire, *given: (wire(*given)[0], None))


@bug("DeepNorm leaves out its alpha", definition="block=deepnorm")
def deepnorm_without_alpha():
    return after(DeepNorm, lambda built: setattr(built, "alpha", 1.0))


@bug("a layer counts as one residual layer in GPT-2's first values", definition="init=gpt2")
def residual_layers_not_two():
    def fill(original, self, tensor, role, sizes, generator):
        original(self, tensor, role, sizes.but(n_layers=sizes.n_layers / 2), generator)

    return around(Normal, "fill", fill)


@bug("a mean over a text counts its padding", definition="head=pooled")
def padding_in_the_mean():
    return replaced(_pieces, _counts=lambda h, *given: torch.ones(h.shape[:2], dtype=torch.bool))


@bug("parallel sublayers come one after the other", reference="model=phi")
def parallel_in_turn():
    def forward(self, x, sublayers):
        aux = None
        for name in self.names:
            y, said = sublayers[name](getattr(self, self.norm_of[name])(x))
            x, aux = x + self.dropout(y), said or aux
        return x, aux

    return replaced(Parallel, forward=forward)


@bug("the last norm is left out", reference="model=gpt2")
def last_norm_left_out():
    return replaced(PreNorm, final_norm=False)


@bug("the activation is on what is gated, not on the gate", reference="model=llama3")
def gate_on_the_other_side():
    def forward(self, x, groups=None):
        return self.down(self.act(self.up(x, groups)) * self.gate(x, groups), groups)

    return replaced(GatedFeedForward, forward=forward)


@bug("the exact GELU is the one by tanh", reference="model=bert")
def gelu_by_tanh():
    return replaced(plain, ACTIVATIONS={**plain.ACTIVATIONS, "gelu": partial(F.gelu, approximate="tanh")})


@bug("dropout goes on in evaluation", evaluation="block=pre")
def dropout_in_evaluation():
    return replaced(nn.Dropout, forward=lambda self, x: F.dropout(x, self.p, True))


@bug("dropout is off in training", evaluation="block=pre")
def no_dropout_in_training():
    return replaced(nn.Dropout, forward=lambda self, x: x)
