"""Learning from preferences without a reward model: DPO and its kin, of which each is a loss of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.optima import Case, Optimum, normalised, tilted
from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._answers import IGNORED, Scored, answer_passes, preferred, prepared_answers, scored


class Pairs(NamedTuple):
    """Each pair of a better and a worse answer: `better` and `worse` (pairs,) are what the model learns to tell apart, its
    log-probabilities less those of the reference where there is one."""

    better: Tensor
    worse: Tensor
    beta: float
    margin: float
    smoothing: float

    @property
    def gap(self) -> Tensor:
        return self.beta * (self.better - self.worse) - self.margin


def _sigmoid(p: Pairs) -> Tensor:
    right = -F.logsigmoid(p.gap)
    return right if not p.smoothing else (1 - p.smoothing) * right - p.smoothing * F.logsigmoid(-p.gap)


def _robust(p: Pairs) -> Tensor:
    right, wrong = -F.logsigmoid(p.gap), -F.logsigmoid(-p.gap)
    return ((1 - p.smoothing) * right - p.smoothing * wrong) / (1 - 2 * p.smoothing)


def _ipo(p: Pairs) -> Tensor:
    return (p.better - p.worse - 1 / (2 * p.beta)).square()


def _hinge(p: Pairs) -> Tensor:
    return F.relu(1 - p.gap)


def _apo_zero(p: Pairs) -> Tensor:
    return 1 - (p.beta * p.better).sigmoid() + (p.beta * p.worse).sigmoid()


def _apo_down(p: Pairs) -> Tensor:
    return (p.beta * p.better).sigmoid() + 1 - p.gap.sigmoid()


def _sppo(p: Pairs) -> Tensor:
    return (p.better - 0.5 / p.beta).square() + (p.worse + 0.5 / p.beta).square()


def _odds(p: Pairs) -> Tensor:
    # log of p / (1 - p), p being the geometric mean of an answer's probabilities. expm1, as 1 - exp(x) loses all digits of an
    # answer that is nearly certain.
    better, worse = (x - torch.log(-torch.expm1(x.clamp(max=-1e-7))) for x in (p.better, p.worse))
    return -F.logsigmoid(better - worse)


LOSSES: Mapping[str, Callable[[Pairs], Tensor]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "ipo": _ipo,
    "hinge": _hinge,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sppo": _sppo,
    "odds": _odds,
}


@register("alignment", "orpo", loss="odds", reference=False, average=True, weight=0.1, nll=1.0)
@register("alignment", "cpo", reference=False, nll=1.0, nll_over="answers")
@register("alignment", "simpo", reference=False, average=True, beta=2.0, margin=1.0)
@register("alignment", "sppo", loss="sppo", beta=0.001)
@register("alignment", "apo_down", loss="apo_down")
@register("alignment", "apo_zero", loss="apo_zero")
@register("alignment", "hinge", loss="hinge")
@register("alignment", "robust", loss="robust", label_smoothing=0.1)
@register("alignment", "cdpo", label_smoothing=0.1)
@register("alignment", "ipo", loss="ipo")
@register("alignment", "dpo")
class Preferences:
    """Preferences learnt from log-probabilities of whole answers, with no reward model (DPO: Rafailov et al. 2023).

    dpo: Direct preference optimization, -log sigmoid(beta (better - worse)) (Rafailov et al. 2023, arXiv:2305.18290).
    ipo: The squared distance of better - worse to 1 / (2 beta) (Azar et al. 2023, arXiv:2310.12036).
    cdpo: Labels that are wrong with probability label_smoothing (Mitchell 2023, "A note on DPO with noisy preferences").
    robust: The loss of dpo, made unbiased for such labels (Chowdhury et al. 2024, arXiv:2403.00409).
    hinge: A hinge, max(0, 1 - beta (better - worse)) (RSO: Liu et al. 2023, arXiv:2309.06657).
    apo_zero: Anchored: 1 - sigmoid(beta better) + sigmoid(beta worse) (D'Oosterlinck et al. 2024, arXiv:2408.06266).
    apo_down: Anchored: 1 - sigmoid(beta (better - worse)) + sigmoid(beta better) (D'Oosterlinck et al. 2024, arXiv:2408.06266).
    sppo: Self-play: better and worse go to +-1 / (2 beta) (Wu et al. 2024, arXiv:2405.00675, eta = 1 / beta).
    simpo: Means over tokens without a reference, with a margin (Meng et al. 2024, arXiv:2405.14734).
    cpo: Without a reference, beside the likelihood of the best answer (Xu et al. 2024, arXiv:2401.08417).
    orpo: The odds ratio of both answers, beside the likelihood of the best (Hong et al. 2024, arXiv:2403.07691).

    ipo is of sums of log-probabilities, as its paper writes it; average=true makes them means, as TRL does.
    better and worse are log-probabilities of an answer less those of the reference, a frozen copy of the model as it begins.
    Of K ranked answers all pairs are learnt but for ties, each prompt with one weight. row_ids and row_labels (R, T), of
    records with scores row_scores (R, T).
    """

    reads = "preferences"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"preference": "loss", "accuracy": "accuracy", "margin": "margin", "nll": "nll"}
    collate = "pad"
    when = {"reference": {"models": {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}}}}
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"beta": 0.3},
        {"margin": 0.5},
        {"label_smoothing": 0.2},
        {"nll": 0.5, "nll_over": "tokens"},
        {"nll": 0.5, "nll_over": "answers"},
        {"nll": 0.5, "nll_over": "text"},
        {"weight": 0.5},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        loss: Literal[
            "sigmoid", "robust", "ipo", "hinge", "apo_zero", "apo_down", "sppo", "odds"
        ] = "sigmoid",  # of a pair, from log-probabilities of both answers
        beta: float = 0.1,  # how far the model may go from the reference; large: less
        label_smoothing: float = 0.0,  # share of the preferences that is taken to be wrong
        margin: float = 0.0,  # by which the better answer is to win (gamma of SimPO)
        average: bool = False,  # log-probabilities are means over an answer's tokens
        reference: bool = True,  # they are those of the model less those of the model as it begins
        weight: float = 1.0,  # of the loss of pairs
        nll: float = 0.0,  # weight of the negative log-likelihood of the best answer
        nll_over: Literal[
            "tokens", "answers", "text"
        ] = "tokens",  # its mean is over tokens, over answers of which each is a sum, or over tokens of the prompt too
    ):
        if not beta > 0 or not weight > 0 or nll < 0:
            raise ValueError(
                "alignment.beta and alignment.weight must be more than 0 and alignment.nll at least 0, but they are "
                f"{beta}, {weight} and {nll}"
            )
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"alignment.label_smoothing must be in [0, 0.5), but is {label_smoothing}")
        if label_smoothing and loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"alignment.label_smoothing={label_smoothing} has no effect with loss={loss}; leave it out"
            )
        if margin and loss in ("ipo", "apo_zero", "sppo", "odds"):
            raise ValueError(f"alignment.margin={margin} has no effect with loss={loss}; leave it out")
        self.named, self.of_pairs, self.beta, self.margin, self.smoothing = (
            loss,
            LOSSES[loss],
            beta,
            margin,
            label_smoothing,
        )
        self.average, self.reference, self.size = average, reference, vocabulary.size
        self.weights, self.nll_over = {"preference": weight, **({"nll": nll} if nll else {})}, nll_over
        self.asked = bool(nll) and nll_over == "text"

    def optimum(self, case: Case) -> Optimum | None:
        """Known where all pairs can be met at once: each log-probability is that of the reference plus a score."""
        if self.smoothing or self.margin or "nll" in self.weights or self.named not in ("sigmoid", "ipo"):
            return None
        # A mean over tokens moves by a share of what the sum moves by.
        beta = self.beta / (case.length if self.average else 1)
        if self.named == "ipo":
            # Azar et al. 2023, equation 6 with the identity: how often an answer is preferred to a random one is its reward.
            score, words = case.preferred.mean(1) / beta, f"exp(P(y preferred) / {beta:.4g}) / Z"
        elif self.reference:
            return tilted(case, beta)
        else:
            score, words = case.rewards / beta, f"exp(r(y) / {beta:.4g}) / Z"
        if not self.reference:
            return Optimum(normalised(score), words)
        return Optimum(normalised(case.log_p["reference"] + score), f"pi_ref(y) {words}")

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return prepared_answers(sample)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        tokens = len(prepared["row_labels"][0]) if self.asked else int((prepared["row_labels"][0] != IGNORED).sum())
        likely = {"nll": 1 if self.nll_over == "answers" else tokens} if "nll" in self.weights else {}
        return {"preference": 1, **likely}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        others = answer_passes(prepared, "reference") if self.reference else []
        return [*answer_passes(prepared, asked=self.asked), *others]

    def loss(
        self, model: LanguageModel, batch: Mapping[str, Tensor], *, reference: LanguageModel | None = None
    ) -> Loss:
        found = scored(model, batch, self.size, asked=self.asked)
        learnt = self._learnt(found)
        if reference is not None:
            learnt = learnt - self._learnt(scored(reference, batch, self.size, learn=False))
        there = found.lengths > 0
        i, j, both, _ = preferred(batch)
        better, worse = learnt[:, i], learnt[:, j]
        # Where an answer is missing its sum is 0, which every loss takes: no NaN comes of what is masked.
        each = self.of_pairs(Pairs(better, worse, self.beta, self.margin, self.smoothing))
        prompts = both.any(-1).sum()
        # InstructGPT weighs each prompt by one over its pairs (Ouyang et al. 2022, section 3.5), as those of K answers are not
        # independent.
        share = both / both.sum(-1, keepdim=True).clamp(min=1)
        terms = {"preference": ((each * share).sum(), prompts)}
        if "nll" in self.weights:
            best = -found.sums[:, 0].sum()
            count = there[:, 0].sum() if self.nll_over == "answers" else found.lengths[:, 0].sum().long()
            if found.asked is not None:
                best, count = best - found.asked[0].sum(), count + found.asked[1].sum()
            terms["nll"] = best, count
        return Loss(terms, self.weights, self._logs(better, worse, share, prompts), {"model": auxiliary(found.output)})

    def _learnt(self, found: Scored) -> Tensor:
        return found.means if self.average else found.sums

    def _logs(self, better: Tensor, worse: Tensor, share: Tensor, prompts: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of pairs: how often the better answer is the more likely one, by how much, and both rewards."""
        better, worse = self.beta * better.detach(), self.beta * worse.detach()
        shown = {"accuracy": (better > worse).float(), "margin": better - worse, "better": better, "worse": worse}
        return {name: ((value * share).sum(), prompts) for name, value in shown.items()}
