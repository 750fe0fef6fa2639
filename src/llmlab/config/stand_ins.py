"""Families that train here by another objective than their papers do, until their own exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from omegaconf import DictConfig


class StandIn(NamedTuple):
    """objective: what the family's file chooses here. paper: what its paper trains by."""

    objective: str
    paper: str


TABLE = {
    "albert": StandIn("mlm", "masked n-grams and sentence-order prediction (Lan et al. 2020, arXiv:1909.11942)"),
    "bert": StandIn("mlm", "masked language modelling and next-sentence prediction (Devlin et al. 2019, arXiv:1810.04805)"),
    "deberta_v3": StandIn("mlm", "replaced-token detection (He et al. 2021, arXiv:2111.09543)"),
    "deepseek_v3": StandIn("clm", "next-token and multi-token prediction (DeepSeek-AI 2024, arXiv:2412.19437)"),
    "distilbert": StandIn("mlm", "distillation from BERT with masked language modelling (Sanh et al. 2019, arXiv:1910.01108)"),
    "electra": StandIn("mlm", "replaced-token detection (Clark et al. 2020, arXiv:2003.10555)"),
    "gemma3": StandIn("clm", "distillation of a larger model's next-token probabilities (Gemma Team 2025, arXiv:2503.19786)"),
    "mpnet": StandIn("mlm", "masked and permuted language modelling (Song et al. 2020, arXiv:2004.09297)"),
    "spanbert": StandIn("mlm", "span masking with a span-boundary objective (Joshi et al. 2020, arXiv:1907.10529)"),
    "xlnet": StandIn("mlm", "permutation language modelling (Yang et al. 2019, arXiv:1906.08237)"),
}  # fmt: skip


def stand_in(cfg: DictConfig) -> StandIn | None:
    """The family's entry, where a run trains by its stand-in: one that chooses another objective says so itself."""
    found = TABLE.get(cfg.model.family)
    return found if found and cfg.objective and cfg.objective["_part_"] == found.objective else None


def note(cfg: DictConfig) -> str | None:
    """A line for the record and for plans."""
    found = stand_in(cfg)
    if found is None:
        return None
    return f"objective={found.objective} stands in for what {cfg.model.family}'s paper trains by, {found.paper}"
