"""Families that train here by another objective than their papers do: their own does not exist, or needs a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from omegaconf import DictConfig


class StandIn(NamedTuple):
    """objective: what the family's file chooses here. paper: what its paper trains by. words: that choose this, where they need
    what a family's file can't name."""

    objective: str
    paper: str
    words: str = ""


TABLE = {
    "distilbert": StandIn("mlm", "distillation from BERT with masked language modelling (Sanh et al. 2019, arXiv:1910.01108)",
                          "objective=distilbert models.teacher=RUN"),
    "gemma3": StandIn("clm", "distillation of a larger model's next-token probabilities (Gemma Team 2025, arXiv:2503.19786)",
                      "objective=distill models.teacher=RUN"),
}  # fmt: skip


def stand_in(cfg: DictConfig) -> StandIn | None:
    """The family's entry, where a run trains by its stand-in: one that chooses another objective says so itself."""
    found = TABLE.get(cfg.model.family)
    if cfg.alignment is not None:
        return None
    return found if found and cfg.objective and cfg.objective["_part_"] == found.objective else None


def note(cfg: DictConfig) -> str | None:
    """A line for the record and for plans."""
    found = stand_in(cfg)
    if found is None:
        return None
    how = f": {found.words}" if found.words else ""
    return f"objective={found.objective} stands in for what {cfg.model.family}'s paper trains by, {found.paper}{how}"
