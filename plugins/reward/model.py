"""A reward that a finished reward model gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel


@register("reward", "model")
class Model:
    """The score of a reward model (Ouyang et al. 2022, arXiv:2203.02155), models.reward=RUN, of a prompt with its answer.

    It is that of the last token, the end token where the answer has one, as `alignment=reward` learns it. The run needs the
    reward model's tokenizer.
    """

    models: ClassVar[dict[str, Any]] = {"reward": {"heads": {"scalar": "scalar"}, "trains": False}}
    needs = ()

    def score(
        self,
        records: Sequence[Mapping[str, Any]],
        answers: Sequence[str],
        *,
        batch: Mapping[str, Tensor],
        reward: LanguageModel,
    ) -> list[float]:
        scores: list[float] = reward(batch, heads={"scalar": None}).heads["scalar"].float()[:, 0].tolist()
        return scores
