"""logger=tensorboard: event files in the run folder; `tensorboard --logdir` shows those of all runs below a folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.formatting import markdown_table
from llmlab.runs.answers import COLUMNS, Judged
from llmlab.runs.record import relative_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

FOLDER = "tensorboard"


class TensorBoardSink:
    """Scalars by optimizer step, and as tokens/NAME by tokens; texts; load of experts, whose bins are the experts."""

    end_seconds = 90.0

    def __init__(self, options: DictConfig, folder: Path, resumed_at: int | None):
        self.options, self.folder, self.resumed_at = options, folder, resumed_at
        self.writer: Any = None
        self.compared: dict[str, Any] = {}

    def begin(self, record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        where = self.folder / FOLDER
        again = self.resumed_at  # what an earlier part of the run wrote behind it is written again
        # TensorBoard hides what an earlier file has from purge_step on, that step included.
        self.writer = SummaryWriter(
            str(where), flush_secs=self.options.flush_seconds, purge_step=None if again is None else again + 1
        )
        if again is None:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
            self.writer.add_text("config", "```\n" + text + "```", 0)
            self.writer.add_text("command", f"`{record['command']}`", 0)
        self.compared = {**record["parts"], "seed": record["seed"], "parameters": record["parameters"]["total"]}
        self.compared["flops_per_token"] = record["flops_per_token"]
        for role, about in (record.get("models") or {}).items():
            self.compared[f"models/{role}/parameters"] = about["parameters"]["total"]
        see = f"tensorboard --logdir {shlex.quote(relative_path(where))}"
        return {"folder": os.path.relpath(where, self.folder), "see": see}

    def row(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
            if name in ("loss", "val_loss"):
                self.writer.add_scalar(f"tokens/{name}", value, tokens)

    def sample(self, step: int, prompt: str, text: str) -> None:
        quoted = "\n".join(f"    {line}" for line in f"{prompt}{text}".splitlines())
        self.writer.add_text("sample", quoted, step)

    def answers(self, step: int, judged: Sequence[Judged]) -> None:
        table = markdown_table(COLUMNS, [[str(step), *map(str, j)] for j in judged])
        self.writer.add_text("answers", "\n".join(table), step)

    def load(self, step: int, counts: Mapping[str, list[int]]) -> None:
        for name, c in counts.items():
            # Raw: add_histogram would want one value for each token, and choose bins of its own.
            self.writer.add_histogram_raw(
                f"load/{name}",
                min=0,
                max=len(c),
                num=sum(c),
                sum=sum((i + 0.5) * n for i, n in enumerate(c)),
                sum_squares=sum((i + 0.5) ** 2 * n for i, n in enumerate(c)),
                bucket_limits=list(range(1, len(c) + 1)),
                bucket_counts=c,
                global_step=step,
            )

    def end(self, record: Mapping[str, Any], checkpoint: Path | None) -> None:
        from torch.utils.tensorboard.summary import hparams

        losses = {k: v for k, v in record["metrics"].items() if k in ("loss", "val_loss")}
        # Not add_hparams, which writes into a folder named by the time below this one: TensorBoard shows it as another run.
        for summary in hparams(self.compared, losses):
            self.writer.file_writer.add_summary(summary)
        self.writer.close()

    def abandon(self) -> None:
        pass  # its thread is a daemon's
