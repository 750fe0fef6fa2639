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
    "bart": StandIn("span_corruption", "text infilling and sentence permutation (Lewis et al. 2020, arXiv:1910.13461)"),
    "bert": StandIn("mlm", "masked language modelling and next-sentence prediction (Devlin et al. 2019, arXiv:1810.04805)"),
    "chatglm1": StandIn("clm", "autoregressive blank infilling (Zeng et al. 2022, arXiv:2210.02414)"),
    "distilbert": StandIn("mlm", "distillation from BERT with masked language modelling (Sanh et al. 2019, arXiv:1910.01108)"),
    "gemma3": StandIn("clm", "distillation of a larger model's next-token probabilities (Gemma Team 2025, arXiv:2503.19786)"),
    "glm_130b": StandIn("clm", "autoregressive blank infilling (Zeng et al. 2022, arXiv:2210.02414)"),
    "glm_2022": StandIn("clm", "autoregressive blank infilling (Du et al. 2022, arXiv:2103.10360)"),
    "mpnet": StandIn("mlm", "masked and permuted language modelling (Song et al. 2020, arXiv:2004.09297)"),
    "pegasus": StandIn("span_corruption", "gap-sentence generation (Zhang et al. 2020, arXiv:1912.08777)"),
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
