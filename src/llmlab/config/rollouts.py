"""Contradictions between a config and an objective that reads prompts, which generates as it trains. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.config import learned
from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Under FSDP and ZeRO-3 every forward gathers parameters from all ranks, but ranks' answers end at different tokens.
WHOLE = ("single", "ddp", "zero1", "zero2")  # strategies under which each device can generate by itself


def problems(cfg: DictConfig) -> list[str]:
    """A line each."""
    if learned.node(cfg) is None:
        return []
    objective = learned.typed(cfg)
    if not _acts(cfg):
        if cfg.reward is None:
            return []
        return [f"reward={cfg.reward._part_}: {objective} reads no prompts, so nothing would change; leave it out"]
    lines = []
    if cfg.reward is not None and not _judged(cfg):
        lines.append(f"reward={cfg.reward._part_}: {objective} learns from no reward; leave it out")
    nodes = [("model", cfg.model), ("model.attention", cfg.model.attention), ("model.ffn", cfg.model.ffn)]
    for key, node in (*nodes, ("adapter", cfg.adapter or {})):
        if node.get("dropout"):
            lines.append(
                f"{key}.dropout={node.dropout}: {objective} learns from the probabilities with which answers were drawn, "
                "which dropout would change; it must be 0"
            )
    if cfg.strategy.name not in WHOLE:
        lines.append(
            f"strategy={cfg.strategy.name}: {objective} generates with a whole model on each device; choose one of "
            f"{', '.join(WHOLE)}"
        )
    # Each step of a generation has a cache of another length, for which torch.compile makes new graphs until one is
    # dynamic.
    if cfg.placement.compile:
        lines.append(
            f"placement.compile=true: {objective} generates token by token, which isn't compiled; leave it out"
        )
    if cfg.budget.minutes is not None:
        lines.append(
            f"budget.minutes={cfg.budget.minutes:g}: the time of a step of {objective} follows from how long its answers "
            "become; give budget.steps or budget.tokens"
        )
    return lines


def require_reward(cfg: DictConfig) -> None:
    """UserError for a run that has nothing to judge answers by. A model can be built and planned without."""
    if cfg.reward is None and _acts(cfg) and _judged(cfg) and not cfg.resume:
        valid = ", ".join(registry.names("reward"))
        raise UserError(f"reward: {learned.typed(cfg)} needs one; reward=NAME ({valid})")


def _acts(cfg: DictConfig) -> bool:
    return learned.reads(cfg) == "prompts"


def _judged(cfg: DictConfig) -> bool:
    judged: bool = learned.entry(cfg).attribute("judged")
    return judged
