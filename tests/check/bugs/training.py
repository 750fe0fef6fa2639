"""Losses, what is computed again, and what is kept."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bugs import around, bug, replaced
from llmlab.model import build
from llmlab.modules import Linear
from llmlab.training import placement
from llmlab_plugins.norm.rmsnorm import RMSNorm
from llmlab_plugins.objective import _loss, clm, mlm
from llmlab_plugins.optimizer.adamw import AdamW


def mean(token_loss, *given, **options):
    loss = token_loss(*given, **options)
    return loss._replace(terms={name: (total / count, count) for name, (total, count) in loss.terms.items()})


@bug("a loss that should be a sum is a mean", first_loss="model=llama3")
def loss_is_a_mean():
    instead = functools.partial(mean, _loss.token_loss)
    return replaced(clm, token_loss=instead), replaced(mlm, token_loss=instead)


@bug("the loss counts for nothing", trains="model=llama3 norm=layernorm", gradients="model=llama3")
def loss_of_nothing():
    def loss(original, self, model, batch):
        found = original(self, model, batch)
        return found._replace(terms={name: (total * 0, count) for name, (total, count) in found.terms.items()})

    return around(clm.CausalLM, "loss", loss)


@bug("the optimizer makes no step", trains="model=llama3 norm=layernorm")
def no_step():
    return replaced(torch.optim.AdamW, step=lambda self: None)


@bug("the optimizer leaves out what does not decay", trains="model=llama3 norm=layernorm")
def undecayed_left_out():
    return around(AdamW, "build", lambda build, self, params: build(self, [p for p in params if p[1].dim() > 1]))


@bug("all tokens count as targets", likelihood="objective=mlm")
def all_tokens_count():
    def loss(original, self, model, batch):
        found = original(self, model, batch)
        return found._replace(terms={"nll": (found.terms["nll"][0], torch.tensor(batch["labels"].numel()))})

    return around(mlm.MaskedLM, "loss", loss)


@bug("labels are not shifted: each token is asked for itself", likelihood="objective=clm", targets="objective=clm")
def labels_not_shifted():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        return {**prepared, "labels": prepared["ids"]}

    return around(clm.CausalLM, "prepare", prepare)


@bug("a second forward of the text is not counted", passes="objective=mlm")
def second_forward():
    def loss(original, self, model, batch):
        model(batch, heads={})
        return original(self, model, batch)

    return around(mlm.MaskedLM, "loss", loss)


@bug("the head is computed at every token, and not at targets only", passes="objective=mlm")
def head_at_every_token():
    def loss(original, self, model, batch):
        output = model(batch, heads={"tokens": None})
        return mlm.token_loss(output, output.heads["tokens"], batch["labels"])

    return around(mlm.MaskedLM, "loss", loss)


@bug("a micro-batch's mean stands for its sum, with a count of one", cut="objective=mlm")
def mean_of_means():
    def loss(original, self, model, batch):
        found = original(self, model, batch)
        total, count = found.terms["nll"]
        return found._replace(terms={"nll": (total / count.clamp(min=1), torch.tensor(1))})

    return around(mlm.MaskedLM, "loss", loss)


@bug("what is masked depends on the samples before", cut="objective=mlm")
def chance_of_its_own():
    def prepare(original, self, sample, rng):
        self.rng = getattr(self, "rng", rng)
        return original(self, sample, self.rng)

    return around(mlm.MaskedLM, "prepare", prepare)


@bug("masked tokens are shown", targets="objective=mlm")
def masked_tokens_shown():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        return {**prepared, "ids": sample["tokens"][: self.seq_len]}

    return around(mlm.MaskedLM, "prepare", prepare)


@bug("the weights of queries get a fiftieth of their gradient", slope="model=qwen2_moe")
def queries_hardly_learn():
    def forward(original, self, x, groups=None):
        if self.role != "q":
            return original(self, x, groups)
        little = self.weight.detach() + 0.02 * (self.weight - self.weight.detach())
        return functional.linear(x, little, self.bias)

    return around(Linear, "forward", forward)


@bug("a norm takes its statistics for constants in the backward", slope="model=llama3")
def statistics_detached():
    def forward(self, x):
        size = (x.float().square().mean(-1, keepdim=True) + self.eps).rsqrt().detach()
        return ((self.offset + self.weight) * x * size).to(x.dtype)

    return replaced(RMSNorm, forward=forward)


@bug("two of five masked tokens are shown", targets="objective=mlm")
def some_masked_tokens_shown():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        asked = prepared["labels"] >= 0
        some = asked & (asked.cumsum() % 5 < 2)
        return {**prepared, "ids": np.where(some, sample["tokens"][: self.seq_len], prepared["ids"])}

    return around(mlm.MaskedLM, "prepare", prepare)


@bug("the last word of a text is asked for itself", targets="objective=clm")
def last_word_shown():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        return {**prepared, "labels": np.append(prepared["labels"][:-1], prepared["ids"][-1])}

    return around(clm.CausalLM, "prepare", prepare)


@bug("what is computed again is computed with other random numbers", checkpointing="block=pre")
def other_random_numbers():
    def recomputed(forward, *given, **options):
        return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **options)

    return replaced(placement, _recomputed=recomputed)


@bug("what is computed again has no gradient", checkpointing="block=pre")
def recomputed_without_gradient():
    def recomputed(forward, *given, **options):
        with torch.no_grad():
            return forward(*given, **options)

    return replaced(placement, _recomputed=recomputed)


@bug("loading leaves what is no parameter as it was", saved="moe=sigmoid")
def buffers_not_loaded():
    def load(model, weights):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])

    return replaced(build, load=load)
