"""Kernels: what they take for one text, what they drop and what they give back."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from bugs import around, bug, replaced
from llmlab_plugins.kernel import eager, flex, varlen


def bounds(begins, causal):
    """Of documents (B, T) as varlen packs them, when they begin where `begins` says."""
    where = F.pad(begins.flatten().nonzero().squeeze(1), (0, 1), value=begins.numel())
    return varlen.Packed(where.int(), begins.shape[1], causal)


@bug("packed documents go on from one row of a batch to the next", kernel="kernel=varlen")
def packed_across_rows():
    def pack(original, documents, causal):
        begins = F.pad(documents.flatten().diff() != 0, (1, 0), value=True)
        return original(documents, causal) and bounds(begins.view_as(documents), causal)

    return around(varlen, "pack", pack)


@bug("a document that is interrupted by another is packed as two", kernel="kernel=varlen")
def packed_in_pieces():
    return replaced(varlen, pack=lambda d, causal: bounds(F.pad(d.diff(dim=-1) != 0, (1, 0), value=True), causal))


@bug("packed documents are causal whatever the mask", kernel="kernel=varlen")
def packed_as_causal():
    return around(varlen, "pack", lambda pack, documents, causal: pack(documents, True))


@bug("packed values get no gradient but in their first dim", kernel_gradients="kernel=varlen")
def packed_values_without_gradient():
    def change(original, q, k, v, *rest):
        return original(q, k, torch.cat([v[..., :1], v[..., 1:].detach()], -1), *rest)

    return around(varlen, "packed_attention", change)


@bug("a bias that a kernel adds itself gets no gradient", kernel_gradients="kernel=flex")
def bias_without_gradient():
    return around(flex, "scored", lambda scored, bias, cap: scored(None if bias is None else bias.detach(), cap))


@bug("keys get no gradient from the scores", kernel_gradients="kernel=eager")
def keys_without_gradient():
    def products(original, terms):
        return original([term._replace(k_BKSH=term.k_BKSH.detach()) for term in terms])

    return around(eager, "products", products)


def of_one(x, p, training, axis):
    """Dropout that takes the same along an axis."""
    return x * F.dropout(torch.ones_like(x.narrow(axis, 0, 1)), p, training)


@bug("dropout takes the same weights in all heads", kernel_dropout="kernel=eager")
def dropout_of_one_head():
    return replaced(eager, F=SimpleNamespace(dropout=lambda x, p, training: of_one(x, p, training, 1)))


@bug("dropout takes the same weights in all rows of a batch", kernel_dropout="kernel=eager")
def dropout_of_one_row():
    return replaced(eager, F=SimpleNamespace(dropout=lambda x, p, training: of_one(x, p, training, 0)))
