"""What a model keeps between calls, and what its stacks make of all their layers."""

from __future__ import annotations

from bugs import around, bug, replaced
from llmlab.memory import Memory
from llmlab.model import stack
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
        hidden, aux = original(self, *given, **options)
        return hidden, aux._replace(
            loss=aux.loss / len(self.layers)
        ) if aux is not None and aux.loss is not None else aux

    return around(stack.Stack, "forward", forward)


@bug("attention to a source drops nothing out", evaluation="model=t5")
def source_without_dropout():
    def view(ctx, position, state, kernel, lowered, training):
        return View(ctx, position, state, kernel, lowered, training and state is not None)

    return replaced(stack, View=view)
