"""Heads that give a score for each of a few classes: of a text, or of a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear

from ._pieces import ACTIVATIONS, Transformed, read


# No bias, as the `score` of transformers' sequence classification
# (modeling_layers.py); a constant cancels in any comparison of two rewards.
@register("head", "scalar", pool="last", act="none", n_classes=1, bias=False)
@register("head", "vector", n_classes=0)
@register("head", "pooled")
class TextHead(Transformed):
    """One answer a text, (B, T, D) -> (B, C), from its first token (BERT: Devlin et al. 2018, arXiv:1810.04805).

    pooled: One answer a text, from its first token (BERT: Devlin et al. 2018, arXiv:1810.04805): (B, T, D) -> (B, C).
    vector: A text's vector, from its first token through a linear and tanh (SimCSE: arXiv:2104.08821): (B, T, D) -> (B, D).
    scalar: One score a text, from its last token (a reward: Ouyang et al. 2022, arXiv:2203.02155): (B, T, D) -> (B, 1).

    What `pool` reads, through act(linear) and a norm if wanted, dropout, then a linear to n_classes; with n_classes 0
    the vector itself, (B, D). With `mixed` it reads sum_j softmax(w)_j h_j times a gain (ELMo: Peters et al. 2018,
    arXiv:1802.05365, equation 1), h_0 being what the first layer reads and h_j what the j-th gives, (n + 1, B, T, D).
    """

    per_token = False
    scores = "text"
    telling = (
        {"n_classes": 3},
        {"n_classes": 0},
        {"pool": "last", "skip": 7},
        {"pool": "mean", "skip": 7},
        {"pool": "last", "only": 5},
        {"pool": "mean", "only": 5},
        {"dropout": 1.0},
        {"dropout": 1.0, "input_dropout": True, "n_classes": 0},
        {"act": "tanh", "dense_bias": False},
        {"mixed": True},
    )
    unused = ("logit_scale", "logit_softcap")

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        n_classes: int = 2,  # 0: the pooled vector itself
        pool: Literal["first", "last", "end", "mean"] = "first",  # last: that is not padding; end: the last of all
        act: Literal["none", "tanh", "gelu", "gelu_tanh", "relu", "silu"] = "tanh",  # behind a linear; none: no linear
        dense_bias: bool = True,  # on that linear
        normed: bool = False,  # a norm behind the activation (ModernBERT)
        bias: bool = True,  # on the scores
        dropout: float | None = None,  # before the scores; None: model.dropout
        input_dropout: bool = False,  # that dropout on what is read, too (RoBERTa)
        skip: int | None = None,  # pool=last or mean: padding is this id, whatever is masked
        only: int | None = None,  # pool=last or mean: among tokens of this id (BART: of the end)
        mixed: bool = False,  # of all layers, by weights that are learnt (ELMo), in place of the last
    ):
        super().__init__()
        self.set_mixed(mixed, sizes)
        self.pool, self.skip, self.only = pool, skip, only
        self.dense = Linear(sizes.dim, sizes.dim, dense_bias, role="other") if act != "none" else None
        self.act = ACTIVATIONS.get(act, nn.Identity())
        self.norm = norm(sizes.dim, sizes.norm_eps) if normed else None
        self.dropout = nn.Dropout(sizes.dropout if dropout is None else dropout)
        self.input_dropout = input_dropout
        self.out = Linear(sizes.dim, n_classes, bias, role="head") if n_classes else None

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        h = read(h if self.mix is None else self.mix(h), ctx, self.pool, self.skip, self.only)
        # RoBERTa's head drops out what it reads, and once more before the scores (RobertaClassificationHead).
        if self.input_dropout:
            h = self.dropout(h)
        h = self.transform(h)
        return h if self.out is None else self.out(self.dropout(h))


# ELECTRA's discriminator has a linear and GELU before its score, and no dropout (ElectraDiscriminatorPredictions).
@register("head", "replaced", n_classes=0, act="gelu", dropout=0.0)
@register("head", "value", n_classes=0, dropout=0.0)
@register("head", "span", dropout=0.0)
@register("head", "token")
class TokenHead(Transformed):
    """One answer a token (Devlin et al. 2018, arXiv:1810.04805): (..., D) -> (..., C), a linear after dropout.

    span: Where an answer starts and ends, as two classes (Devlin et al. 2018, arXiv:1810.04805).
    value: The reward that is expected behind a token (PPO: Schulman et al. 2017, arXiv:1707.06347): (..., D) -> (...).
    replaced: Whether a token was replaced (ELECTRA: Clark et al. 2020, arXiv:2003.10555): (..., D) -> (...).

    Before it act(linear) and a norm, if wanted. With n_classes 0 one score without a dimension of its own. With `mixed` it
    reads sum_j softmax(w)_j h_j times a gain (ELMo: Peters et al. 2018, arXiv:1802.05365, equation 1), h_0 being what the first
    layer reads and h_j what the j-th gives, (n + 1, ..., D).
    """

    per_token = True
    scores = "token"
    telling = (
        {"n_classes": 3},
        {"n_classes": 0},
        {"dropout": 1.0},
        {"act": "gelu", "dense_bias": False},
        {"mixed": True},
    )
    unused = ("logit_scale", "logit_softcap")

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        n_classes: int = 2,  # scores a token; 0: one, (...) instead of (..., 1)
        act: Literal["none", "tanh", "gelu", "gelu_tanh", "relu", "silu"] = "none",  # behind a linear; none: no linear
        dense_bias: bool = True,  # on that linear
        normed: bool = False,  # a norm behind the activation (ModernBERT, DeBERTa)
        bias: bool = True,  # on the scores
        dropout: float | None = None,  # before the scores; None: model.dropout
        mixed: bool = False,  # of all layers, by weights that are learnt (ELMo), in place of the last
    ):
        super().__init__()
        self.set_mixed(mixed, sizes)
        self.squeeze = n_classes == 0
        self.dense = Linear(sizes.dim, sizes.dim, dense_bias, role="other") if act != "none" else None
        self.act = ACTIVATIONS.get(act, nn.Identity())
        self.norm = norm(sizes.dim, sizes.norm_eps) if normed else None
        self.dropout = nn.Dropout(sizes.dropout if dropout is None else dropout)
        self.out = Linear(sizes.dim, n_classes or 1, bias, role="head")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        scores = self.out(self.dropout(self.transform(h if self.mix is None else self.mix(h))))
        # ELECTRA gives (B, T) logits, which binary cross-entropy takes with labels of the same shape.
        return scores.squeeze(-1) if self.squeeze else scores
