"""What a token sees, and what it makes of that."""

from __future__ import annotations

from dataclasses import replace

from torch.nn import functional as F

from bugs import after, around, bug, replaced
from llmlab.model import cache, stack
from llmlab.model.view import LayerCache
from llmlab.model.visibility import Visible, VisibleSource
from llmlab_plugins.attention import mla
from llmlab_plugins.attention.mha import MultiHeadAttention
from llmlab_plugins.attention.mla import MultiHeadLatentAttention
from llmlab_plugins.kernel import eager, sdpa
from llmlab_plugins.mask.direction import Causal, Prefix
from llmlab_plugins.window.window import Sliding, Strided


@bug(
    "a sliding window is dropped by the fast path of the default kernel",
    visibility="model=mistral",
    reference="model=mistral",
)
def window_dropped():
    return replaced(Sliding, covers=lambda self, length: True)


@bug("a sliding window reaches one token too far", visibility="model=mistral", pairs="window=sliding")
def window_one_too_wide():
    return replaced(Sliding, allowed=lambda self, q, k, data: k >= q - self.left)


@bug("a window's right side is not looked at", reference="model=modernbert")
def window_right_ignored():
    return replaced(Sliding, allowed=lambda self, q, k, data: k > q - self.left)


@bug("a stride is counted from the start of the text", pairs="window=strided", visibility="window=strided")
def stride_from_the_start():
    def allowed(self, q, k, data):
        return ((q - k).abs() < (self.left or self.stride)) | (k % self.stride == 0)

    return replaced(Strided, allowed=allowed)


@bug("a prefix ends one token late", pairs="mask=prefix")
def prefix_too_long():
    return replaced(Prefix, allowed=lambda self, q, k, data: (k <= q) | (k <= data["prefix_len"][:, None, None]))


@bug("the first of several windows is taken for all layers", visibility="model=gemma2", reference="model=gemma2")
def first_window_for_all():
    def change(built: stack.Stack) -> None:
        built.windows = [built.windows[0]] * len(built.windows)

    return after(stack.Stack, change)


@bug("a causal mask lets a token see the next", causality="kernel=eager", pairs="mask=causal")
def causal_one_too_far():
    return replaced(Causal, allowed=lambda self, q, k, data: k <= q + 1)


@bug("a boolean mask is added as 1 and 0, where 0 and -inf were meant", causality="kernel=eager")
def mask_of_ones():
    def change(original, self, terms, v, lowered, bias, *rest):
        if lowered is not None:
            bias, lowered = lowered.float() if bias is None else bias + lowered.float(), None
        return original(self, terms, v, lowered, bias, *rest)

    return around(eager.Eager, "__call__", change)


@bug("a mask tensor of the fused kernel is of numbers 1 and 0", padding="kernel=sdpa")
def fused_mask_of_ones():
    return replaced(sdpa.Lowered, dense=property(lambda self: self.seen.dense().float()))


@bug("packed documents see each other", documents="model=llama3")
def documents_seen():
    return around(Visible, "dense", lambda dense, self: dense(replace(self, ctx=replace(self.ctx, documents=None))))


@bug("a fast path takes packed documents for one", documents="model=llama3")
def documents_on_the_fast_path():
    def pattern(self):
        return self.mask.pattern if self._plain and not self.ctx.offset else None

    return replaced(Visible, pattern=property(pattern))


@bug("padding is seen", padding="model=gpt2")
def padding_seen():
    return around(Visible, "dense", lambda dense, self: dense(replace(self, ctx=replace(self.ctx, valid=None))))


@bug("a fast path forgets that there is padding", padding="model=bert")
def padding_on_the_fast_path():
    def plain(self):
        return self.ctx.allowed is None and self.window.covers(self.ctx.keys)

    return replaced(Visible, _plain=property(plain))


@bug("the source's padding is seen by cross-attention", visibility="model=t5")
def source_padding_seen():
    return replaced(VisibleSource, pattern="full")


@bug("the scale of the scores is missing", attention="attention=mha", reference="model=llama3")
def scale_missing():
    return after(MultiHeadAttention, lambda built: setattr(built, "score", replace(built.score, scale=1.0)))


@bug("the scale of the scores is applied twice by the fused kernel", kernel="kernel=sdpa")
def scale_twice():
    def change(original, self, terms, v, lowered, bias, score, *rest):
        terms = [term._replace(q_BNTH=term.q_BNTH * score.scale) for term in terms]
        return original(self, terms, v, lowered, bias, score, *rest)

    return around(sdpa.SDPA, "__call__", change)


@bug("a bias on the scores is added twice by the fused kernel", kernel="kernel=sdpa")
def bias_twice():
    def change(original, self, terms, v, lowered, bias, *rest):
        return original(self, terms, v, lowered, None if bias is None else 2 * bias, *rest)

    return around(sdpa.SDPA, "__call__", change)


@bug("the soft cap of the scores is not looked at", attention="model=gemma2", kernel="kernel=eager")
def softcap_ignored():
    def change(original, self, terms, v, lowered, bias, score, *rest):
        return original(self, terms, v, lowered, bias, replace(score, softcap=None), *rest)

    return around(eager.Eager, "__call__", change)


@bug("dropout falls on what is read, not on the weights", kernel_dropout="kernel=eager")
def dropout_on_values():
    def change(original, self, terms, v, lowered, bias, score, sink, training):
        v = F.dropout(v, score.dropout, training)
        return original(self, terms, v, lowered, bias, replace(score, dropout=0.0), sink, training)

    return around(eager.Eager, "__call__", change)


@bug("the fused kernel drops weights in evaluation too", evaluation="kernel=sdpa")
def fused_dropout_in_evaluation():
    def change(original, self, *given):
        return original(self, *given[:-1], True)

    return around(sdpa.SDPA, "__call__", change)


@bug("the sink of the scores takes no weight", kernel="kernel=eager", traits="attention=mha")
def sink_left_out():
    def change(original, self, *given):
        *first, _, training = given
        return original(self, *first, None, training)

    return around(eager.Eager, "__call__", change)


@bug("queries, keys and values are not clipped", traits="attention=mha")
def not_clipped():
    return after(MultiHeadAttention, lambda built: setattr(built, "clip", None))


@bug("query heads are given to the wrong key heads", kernel="kernel=eager")
def heads_of_other_groups():
    return replaced(eager, spread=lambda x, n: x.repeat(1, n // x.shape[1], 1, 1))


@bug("the norms of queries and keys are left out", gradients="model=qwen3")
def qk_norm_left_out():
    return around(MultiHeadAttention, "_heads", lambda heads, self, x, norm: heads(self, x, None))


@bug("a cache tells the position of a token one too low", cache="position=rope")
def cache_one_too_low():
    from llmlab.slots import Position

    def change(ids, self, ctx):
        return ids(self, ctx) - (1 if ctx.offset else 0)

    return around(Position, "ids", change)


@bug("a cache of latents keeps a key that was not turned", cache="attention=mla")
def latent_key_not_turned():
    def rotated(self, q_rope, latent, k_rope, view, layer_cache):
        terms = view.rotate(q_rope, k_rope)
        if layer_cache is None:
            return terms, latent
        latent, k_rope = layer_cache.update(latent, k_rope)
        return [term._replace(k_BKSH=k_rope) for term in terms], latent

    return replaced(MultiHeadLatentAttention, _rotated=rotated)


@bug("a cache forgets which of its keys are padding", cache="model=llama3")
def cached_padding_forgotten():
    def extend(original, self, new, batch, length):
        valid = original(self, new, batch, length)
        return None if valid is None or not self.length else valid.new_ones(valid.shape)

    return around(cache.Cache, "extend_valid", extend)


@bug("a cache that is full begins to overwrite its oldest row", cache="attention=gqa")
def cache_overwrites():
    def update(self, *new):
        if not self.buffers:
            self.buffers = [t.new_zeros(*t.shape[:-2], max(self.capacity, t.shape[-2]), t.shape[-1]) for t in new]
        end = self.length + new[0].shape[-2]
        for buffer, t in zip(self.buffers, new, strict=True):
            buffer[..., max(self.length - 1, 0) : max(self.length - 1, 0) + t.shape[-2], :] = t
        self.length = end
        return self.read()

    return replaced(LayerCache, update=update)


@bug("a memory is read as it was, where the block would have normed it", memory="position=alibi")
def memory_not_normed():
    return replaced(stack.Layer, _read=lambda self, memory: memory)


@bug("the norms of MLA's latents have another eps than in published checkpoints", definition="attention=mla")
def latent_eps():
    return replaced(mla, LATENT_EPS=1e-5)
