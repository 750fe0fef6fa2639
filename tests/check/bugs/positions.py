"""Where a token stands."""

from __future__ import annotations

import torch

from bugs import after, around, bug, replaced
from llmlab.model.stack import Stack
from llmlab.slots import Position
from llmlab_plugins.position import absolute, bias
from llmlab_plugins.position._scaling import LongRope, Yarn
from llmlab_plugins.position.absolute import Absolute, Learned, Sinusoidal
from llmlab_plugins.position.bias import Alibi, T5Bias
from llmlab_plugins.position.both import LearnedT5Bias
from llmlab_plugins.position.disentangled import Disentangled
from llmlab_plugins.position.dual_chunk import DualChunk
from llmlab_plugins.position.relative import XLNetRelative
from llmlab_plugins.position.rope import Rope


@bug("ALiBi rewards distant tokens", recency="position=alibi", reference="model=bloom")
def alibi_inverted():
    return around(Alibi, "prepare", lambda prepare, self, q, k: -prepare(self, q, k))


@bug("ALiBi's slopes begin one head late", reference="model=mpt")
def alibi_slopes_off_by_one():
    def slopes(original, n_heads, most=8.0):
        return [1.0, *original(n_heads, most)[:-1]]

    return around(bias, "slopes", slopes)


@bug("ALiBi measures a cached text from its new tokens", cache="position=alibi")
def alibi_from_the_new_tokens():
    return around(Alibi, "prepare", lambda prepare, self, q, k: prepare(self, q - q[..., :1], k))


@bug("rotary pairs are neighbours where they should be half a width apart, and the reverse", reference="model=llama3")
def rope_layout_swapped():
    return after(Rope, lambda built: setattr(built, "interleaved", not built.interleaved))


@bug("rotary angles are turned the other way round for keys", shift="position=rope")
def rope_keys_turned_back():
    def tables(self, q_ids, k_ids):
        q = self._tables(q_ids, self.frequencies(k_ids))
        return q, (q[0], -q[1])

    def rotate(self, q, k, state):
        from llmlab.slots import Term

        return [Term(self._turn(q, *state[0]), self._turn(k, *state[1]))]

    return replaced(Rope, prepare=tables, rotate=rotate)


@bug("all rows of a batch stand where the first does", rows="position=rope")
def positions_of_the_first_row():
    def tables(original, self, ids, frequencies):
        return original(self, ids[:1] if ids.dim() == 2 else ids, frequencies)

    return around(Rope, "_tables", tables)


@bug("layers of all kinds have the first one's rotary base", reference="model=gemma3")
def first_position_for_all():
    return after(Stack, lambda built: setattr(built, "position_of", [built.position_of[0]] * len(built.position_of)))


@bug("all of a head is turned where a share of it should be", reference="model=gpt_neox")
def rope_share_ignored():
    def change(original, self, sizes, /, **options):
        original(self, sizes, **{**options, "fraction": 1.0})

    return around(Rope, "__init__", change)


@bug("learnt positions begin anew with each call over a cache", cache="position=learned")
def learned_positions_restart():
    return replaced(Learned, ids=lambda self, ctx: torch.arange(ctx.length))


@bug("positions go on from one packed document to the next", documents="position=learned")
def positions_not_anew():
    return replaced(Absolute, of_documents=lambda self, ids, *context: ids.clamp(min=0))


@bug("positions count padding", reference="model=opt")
def padding_counted():
    return replaced(absolute, tokens_before=lambda ctx: Position().ids(ctx))


@bug("sines and cosines are taken for each other", reference="model=pegasus")
def sines_for_cosines():
    return around(Sinusoidal, "embed", lambda embed, self, ids: embed(self, ids).roll(self.embed_dim // 2, -1))


@bug("relative distances have the wrong sign", reference="model=t5")
def distance_inverted():
    return around(T5Bias, "bucket", lambda bucket, self, distance: bucket(self, -distance))


@bug("a relative bias takes a cached text's new tokens for its first", cache="position=learned_t5_bias")
def relative_from_the_first():
    def prepare(self, q_ids, k_ids):
        where = torch.arange(k_ids.shape[-1])
        return T5Bias.prepare(self, where[: q_ids.shape[-1]], where)

    return replaced(LearnedT5Bias, prepare=prepare)


@bug("relative scores are those of the distance the other way round", reference="model=xlnet")
def relative_scores_inverted():
    def index(original, self, state, batch):
        return len(state.keys_LNH) - 1 - original(self, state, batch)

    return around(XLNetRelative, "_index", index)


@bug("a distance and its content are scored with rows of the other direction", reference="model=deberta_v3")
def disentangled_rows_turned():
    def prepare(original, self, q_ids, k_ids):
        state = original(self, q_ids, k_ids)
        return state._replace(rows=len(state.vectors_LD) - 1 - state.rows)

    return around(Disentangled, "prepare", prepare)


@bug("the product of a key with a distance is left out", reference="model=deberta_v3")
def position_to_content_lost():
    return after(Disentangled, lambda built: setattr(built, "to_content", False))


@bug("distances of a cached text are taken from its first tokens", cache="position=disentangled")
def disentangled_from_the_first():
    def prepare(original, self, q_ids, k_ids):
        return original(self, k_ids[..., : q_ids.shape[-1]], k_ids)

    return around(Disentangled, "prepare", prepare)


@bug("yarn stretches the pairs that turn often and leaves the others alone", definition="position=rope")
def yarn_ramp_reversed():
    def frequencies(original, self, lengths):
        plain = self.plain(lengths)
        return plain + plain / self.factor - original(self, lengths)

    return around(Yarn, "frequencies", frequencies)


@bug("longrope divides by the factors of short texts whatever the length", definition="position=rope")
def longrope_always_short():
    def frequencies(original, self, lengths):
        return original(self, lengths.clamp(max=self.original_max))

    return around(LongRope, "frequencies", frequencies)


@bug("the query's growth by log n is that of the position after it", definition="position=rope")
def log_n_one_off():
    return around(Rope, "_growth", lambda growth, self, ids: growth(self, ids + 1))


@bug("a chunk's neighbour is farther off than anything in training", definition="position=dual_chunk")
def dual_chunk_not_clamped():
    def prepare(original, self, q_ids, k_ids):
        state = original(self, q_ids, k_ids)
        farther = self._tables(q_ids % self.chunk + self.chunk, self.frequencies(k_ids))
        return state._replace(tables=[state.tables[0], farther, state.tables[2]])

    return around(DualChunk, "prepare", prepare)
