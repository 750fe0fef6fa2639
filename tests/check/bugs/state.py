"""What a model begins with and keeps between calls, what its stacks make of all their layers, and what it writes."""

from __future__ import annotations

import torch

from bugs import around, bug, replaced
from llmlab.check import writing_bounds
from llmlab.decoding.sampling import Sampling
from llmlab.memory import Memory
from llmlab.model import roles, stack
from llmlab.model.cache import Cache
from llmlab.model.view import View


@bug("a memory keeps the oldest tokens", memory="model=gpt2")
def memory_keeps_the_oldest():
    def extend(original, self, inputs):
        keep, self.keep = self.keep, None
        original(self, inputs)
        self.keep, self.layers = keep, [x[:, :keep] for x in self.layers]

    return around(Memory, "extend", extend)


@bug("gradients flow into the segment before", memory="model=gpt2")
def memory_has_a_gradient():
    return replaced(Memory, extend=lambda self, inputs: setattr(self, "layers", list(inputs)))


@bug("where a later piece says that nothing is padding, all that is cached counts as padding", cache="model=llama3")
def cached_counts_as_padding():
    def extend_valid(original, self, new, batch, length):
        first = self.valid is None and new is not None
        valid = original(self, new, batch, length)
        if first:
            valid[:, : self.length] = False
        return valid

    return around(Cache, "extend_valid", extend_valid)


@bug("the losses of experts are averaged over layers", balance="model=mixtral")
def losses_averaged():
    def forward(original, self, *given, **options):
        hidden, aux, *rest = original(self, *given, **options)
        if aux is not None and aux.loss is not None:
            aux = aux._replace(loss=aux.loss / len(self.layers))
        return (hidden, aux, *rest)

    return around(stack.Stack, "forward", forward)


@bug("attention to a source drops nothing out", evaluation="model=t5")
def source_without_dropout():
    def view(ctx, position, state, kernel, lowered, training):
        return View(ctx, position, state, kernel, lowered, training and state is not None)

    return replaced(stack, View=view)


@bug("a logit that is negative is divided by the penalty of repetition too", generation="model=llama3")
def penalty_divides():
    def penalised(self, logits, seen):
        return logits.float() if seen is None else torch.where(seen, logits / self.repetition_penalty, logits)

    return replaced(Sampling, _penalised=penalised)


@bug("the token that crosses top_p is left out", generation="model=t5")
def crossing_token_left_out():
    def distribution(original, self, logits, seen=None):
        p = original(self, logits, seen)
        if self.top_p is None:
            return p
        least = p.masked_fill(p == 0, 2.0).amin(-1, keepdim=True)
        kept = p.masked_fill((p == least) & (p < 1), 0.0)
        return kept / kept.sum(-1, keepdim=True)

    return around(Sampling, "distribution", distribution)


@bug("a model that wrote a text is left in eval mode", generation="model=gpt2")
def left_in_eval_mode():
    def generate_all(original, model, *args, **kwargs):
        yield from original(model, *args, **kwargs)
        model.eval()

    return around(writing_bounds, "generate_all", generate_all)


@bug("biases begin with random values", drawn="model=gpt2")
def biases_drawn():
    def role_of(original, module, name):
        return "other" if name == "bias" and not hasattr(module, "constants") else original(module, name)

    return around(roles, "role_of", role_of)
