"""The model: one stack, or an encoder and a decoder, and the heads that an objective asks for.

B batch, T tokens, S source tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.memory import Memory
from llmlab.model import adapters, batch_keys, split_table
from llmlab.model.cache import Cache
from llmlab.model.experts import MixtureOfExperts
from llmlab.model.stack import Stack
from llmlab.slots import Aux, Context, Output

PLAIN = {*batch_keys.MODEL, "source", "source_valid", "source_segments", "labels", *batch_keys.STAMPED}


class Shared(NamedTuple):
    """Modules of a model whose tables another one uses; None: it has its own."""

    embedding: nn.Module | None = None
    position: nn.Module | None = None


class Model(nn.Module):
    """Parts assembled as `spec` says. Built on the meta device and filled by `llmlab.model.build`."""

    def __init__(self, spec: ModelSpec, shared: Shared | None = None):
        """shared: modules of another model that the first stack uses; they are no children of this one."""
        super().__init__()
        self.spec, self.sizes = spec, spec.sizes
        kernel = spec.kernel.factory()()
        self.stacks = nn.ModuleDict()
        first: Stack | None = None
        for stack in spec.stacks:
            if first is None and shared is not None:
                built = Stack(stack, kernel, shared.embedding, shared.position)
            else:
                built = Stack(stack, kernel, first.embedding if first and stack.shared_embedding else None)
            self.stacks[stack.name] = built
            first = first or built
        assert first is not None
        if spec.table_delta:
            split_table.split(first.embedding, spec)
        if spec.sizes.tie_embeddings and not attributes.get(first.embedding, "embedding", "table"):
            raise UserError(
                f"model.tie_embeddings: embedding={spec.stacks[0].embedding.name} has no table of tokens that a head could "
                "use; set model.tie_embeddings=false"
            )
        # A head's norm is of the layers' kind: ModernBERT's has no bias, as all of its norms.
        norm = spec.stacks[-1].layers[-1].parts["norm"].factory()
        # As many as are run: a head may have a weight for each, of ALBERT's one layer too.
        sizes = spec.sizes.but(n_layers=len(spec.stacks[-1].execute))
        self.heads = nn.ModuleDict(
            {role: part.factory()(sizes, norm, first.embedding) for role, part in spec.heads.items()}
        )
        reading = (*(stack.mask for stack in spec.stacks), *spec.heads.values())
        self._needs = {name for part in reading for name in part.attribute("needs")}
        adapters.attach(self, spec)
        # Keys of the batches so far, so that difflib looks at each name once and not in every step.
        self._keys: set[str] = set()

    def forward(
        self,
        batch: Mapping[str, Tensor],
        *,
        heads: Mapping[str, Tensor | None] | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> Output:
        """Run the stacks and heads.

        batch: `ids` (B, T) int64; if wanted `valid` (B, T) bool, `documents`, `segments`, `positions` (B, T) int64 (of a
        part that counts several things (B, C, T)), `allowed` (B, T, S) bool, and what the mask needs (`prefix_len` (B,)).
        Tokens that ask for others (XLNet's second stream) stand behind the text, True in `queries` (B, T) bool. An
        encoder-decoder reads `source_ids`, `source_valid` (B, S) too, and `ids` are the decoder's. One stack with
        cross-attention reads `source` (B, S, D), another model's hidden states, and leaves it out without one.
        heads: the roles to compute, None for all; a bool (B, T) beside a role restricts a per-token head to those rows.
        cache: of a decoder, from `new_cache`; it is extended by these T tokens.
        memory: of one stack; its M tokens are seen before these T, S being M + T, and it is extended.
        layers: numbers of hidden states of the last stack that `Output.layers` is to have: 0 is what the first layer reads, i
        what the i-th gives, the last (also -1) `Output.hidden`, behind the stack's last norm as in transformers.
        `Output.hidden` is (B, T, 0) where no head that is asked for reads hidden states and no layers are asked for.
        A batch of `hidden` (B, T, D) without ids is read by the heads alone: hidden states of a model that shares them.
        ValueError for a key that is close to one of these and none of them.
        """
        if "ids" not in batch and "hidden" in batch:
            hidden = batch["hidden"]
            ctx = Context(length=hidden.shape[1], data=batch_keys.read_in(batch, PLAIN))
            return Output(hidden, self._heads(hidden, (), ctx, heads), None, None)
        if not self._keys.issuperset(batch):
            # Whoever reads a Watched batch reports unknown keys itself, and knows those of an objective.
            if not isinstance(batch, batch_keys.Watched):
                batch_keys.check_names(batch.keys() - self._keys, self._needs)
            self._keys.update(batch)
        names = list(self.stacks)
        source, source_valid = batch.get("source"), batch.get("source_valid")
        tokens: list[Tensor] = []
        losses: list[Tensor] = []
        # The encoder runs at the first call; later tokens find its output in the cache.
        if cache is not None and cache.source is not None:
            source, source_valid = cache.source, cache.source_valid
        elif len(names) > 1:
            if "source_ids" not in batch:
                raise ValueError("source_ids is missing: what the encoder reads")
            source_ids = batch["source_ids"]
            ctx = Context(
                source_ids.shape[1], ids=source_ids, valid=source_valid, segments=batch.get("source_segments")
            )
            source, aux, _ = self.stacks[names[0]](source_ids, ctx)
            _collect(aux, losses, tokens)
        elif source is not None and self.spec.stacks[-1].cross_attention is None:
            raise ValueError("source is given, but this model has no cross-attention")
        if cache is not None:
            cache.source, cache.source_valid = source, source_valid
        ids = batch["ids"]
        valid = batch.get("valid")
        if cache is not None and batch.get("documents") is not None:
            raise ValueError("documents can't be given with a cache: a cache continues one text")
        if cache is not None:
            valid = cache.extend_valid(valid, *ids.shape)
        before = 0 if cache is None else cache.length
        if memory is not None:
            if cache is not None or len(names) > 1 or batch.get("documents") is not None:
                raise ValueError("a memory is for one stack, without a cache or documents")
            before = memory.length
            # All of a memory is seen, as in XLNet (mems_mask).
            valid = None if valid is None else torch.cat([valid.new_ones(len(valid), before), valid], 1)
        ctx = Context(
            length=ids.shape[1],
            offset=before,
            ids=ids,
            positions=batch.get("positions"),
            valid=valid,
            documents=batch.get("documents"),
            segments=batch.get("segments"),
            allowed=batch.get("allowed"),
            data=batch_keys.read_in(batch, PLAIN),
        )
        states: tuple[Tensor, ...] = ()
        all_states: tuple[Tensor, ...] = ()
        if heads and not layers and not any(reads_hidden(self.heads[role]) for role in heads if role in self.heads):
            # Nothing that is asked for reads them: static embeddings would else pay for every layer.
            hidden = torch.empty(*ids.shape, 0, device=ids.device)
        else:
            asked = self.heads.values() if heads is None else [self.heads[r] for r in heads if r in self.heads]
            mixed = any(attributes.get(head, "head", "every_layer") for head in asked)
            every = range(len(self.spec.stacks[-1].execute) + 1) if mixed else ()
            hidden, aux, states = self.stacks[names[-1]](
                ids,
                ctx,
                source_BSD=source,
                source_valid_BS=source_valid,
                cache=cache,
                memory=memory,
                layers=(*layers, *every),
            )
            states, all_states = states[: len(layers)], states[len(layers) :]
            _collect(aux, losses, tokens)
        if cache is not None:
            # After the layers: an interrupted forward leaves the length as it was, and `cut` then drops what it wrote.
            cache.length += ids.shape[1]
        out = self._heads(hidden, states, ctx, heads, all_states)
        total = Aux(torch.stack(losses).sum() if losses else None, torch.cat(tokens) if tokens else None)
        return Output(hidden, out, total if losses or tokens else None, source, states)

    def _heads(
        self,
        hidden: Tensor,
        states: Sequence[Tensor],
        ctx: Context,
        heads: Mapping[str, Tensor | None] | None,
        all_states: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        out = {}
        for role, head in self.heads.items():
            if heads is None or role in heads:
                where = heads[role] if heads else None
                every = attributes.get(head, "head", "every_layer")
                if every or (states and attributes.get(head, "head", "layers")):
                    # In this forward and not in one of its own, behind which FSDP2 has freed what the layers need.
                    read = torch.stack(tuple(all_states if every else states))
                    out[role] = head(read if where is None else read[:, where], ctx)
                    continue
                # Rows are picked before the head: logits of 15 % of the tokens cost 15 % (BERT's masked ones).
                out[role] = head(hidden if where is None else hidden[where], ctx)
        return out

    def new_cache(self, capacity: int) -> Cache:
        """A KV cache of the decoding stack for `capacity` positions."""
        return Cache(len(self.spec.stacks[-1].execute), capacity)

    def routers(self) -> list[nn.Module]:
        """The router of each row of `Output.aux.tokens_per_expert`."""
        layers: list[Any] = [stack.layers[i] for stack in self.all_stacks() for i in stack.spec.execute]
        return [layer.ffn.router for layer in layers if isinstance(layer.ffn, MixtureOfExperts)]

    def all_stacks(self) -> list[Stack]:
        return cast("list[Stack]", list(self.stacks.values()))


def reads_hidden(head: nn.Module) -> bool:
    """True if a head reads hidden states, so that layers must run."""
    return bool(attributes.get(head, "head", "hidden"))


def _collect(aux: Aux | None, losses: list[Tensor], tokens: list[Tensor]) -> None:
    if aux is not None and aux.loss is not None:
        losses.append(aux.loss)
    if aux is not None and aux.tokens_per_expert is not None:
        tokens.append(aux.tokens_per_expert)
