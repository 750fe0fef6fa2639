"""Loggers beside metrics.csv: they see the rows that it gets, on the first rank only, and can never stop a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmlab.errors import UserError
from llmlab.runs.checkpoint import step_of
from llmlab.training.loggers.guard import Guarded
from llmlab.training.loggers.samples import Samples
from llmlab.training.loggers.sink import Sink

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from llmlab.model.model import Model
    from llmlab.runs.answers import Judged
    from llmlab.runs.record import Record
    from llmlab.training.module import Offline
    from llmlab.training.recipe import Recipe
    from llmlab.training.task import Task

# Above W&B's own limits, so that its way offline fits in: 20 seconds for an attempt online and 5 to end its process.
BEGIN_SECONDS = 45.0


def sinks(cfg: DictConfig, folder: Path, resumed_at: int | None = None) -> dict[str, Sink]:
    """The sinks that `cfg.logger` names. resumed_at: the step that a resumed run goes on from."""
    made: dict[str, Sink] = {}
    chosen = cfg.get("logger") or {}
    if chosen.get("wandb") is not None:
        # Imported where it is chosen: wandb takes 0.6 s, and need not be installed.
        from llmlab.training.loggers.weights_and_biases import WandBSink

        made["wandb"] = WandBSink(chosen["wandb"], folder, sweep_of(cfg, folder))
    if chosen.get("tensorboard") is not None:
        from llmlab.training.loggers.tensorboard import TensorBoardSink

        made["tensorboard"] = TensorBoardSink(chosen["tensorboard"], folder, resumed_at)
    return made


def sweep_of(cfg: DictConfig, folder: Path) -> str | None:
    """The name of the sweep that a run is a point of; where it has none, its folder's."""
    if cfg.get("sweep"):
        return str(cfg.sweep)
    parent = folder.absolute().parent
    return parent.name if (parent / "sweep.json").exists() else None


class Loggers:
    """All that a run reports to; without any, every call returns at once."""

    def __init__(
        self,
        found: Mapping[str, Sink] | None = None,
        samples: Samples | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        self.warn = warn or (lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
        self.sinks = [Guarded(name, sink, self._failed) for name, sink in (found or {}).items()]
        self.samples = samples
        self.known: dict[str, dict[str, Any]] = {}
        self.layers: list[str] | None = None

    def __bool__(self) -> bool:
        return any(not s.off for s in self.sinks)

    def _failed(self, name: str, reason: str) -> None:
        self.known.setdefault(name, {})["failed"] = reason
        self.warn(f"logger={name} is switched off: {reason}; the run goes on, metrics.csv has every row")

    def begin(self, run: Record, cfg: DictConfig, say: Callable[[str], None]) -> None:
        """Open all of them, and keep in the record `run` what they are."""
        if not self.sinks:
            return
        from omegaconf import OmegaConf

        config = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
        self.known = {k: dict(v) for k, v in (run.get("loggers") or {}).items()}
        for sink in self.sinks:
            # A failure of an earlier part of the run: in this one the sink has not failed yet.
            self.known.setdefault(sink.name, {}).pop("failed", None)
            about = sink.ask("begin", dict(run.fields), config, seconds=BEGIN_SECONDS)
            if about is not None:
                line = about.pop("say", None)
                self.known[sink.name].update(about)
                if line:
                    say(f"{sink.name}: {line}")
        run.update(loggers=self.known)

    def row(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.tell("row", step, tokens, dict(values))

    def load(self, step: int, model: Model, load: Tensor) -> None:
        """load (routed layers, E): tokens of each expert in the step. One transfer from the device."""
        if not self:
            return
        if self.layers is None:
            self.layers = routed(model)
        counts = dict(zip(self.layers, load.tolist(), strict=True))
        for sink in self.sinks:
            sink.tell("load", step, counts)

    def sample(self, step: int, module: Offline) -> None:
        """Let the model write, if a sample is due at this step."""
        if not self or self.samples is None or not self.samples.due(step):
            return
        try:
            text = self.samples.take(step, module)
        except Exception as e:
            self.samples = None
            self.warn(f"no samples of text for loggers: {str(e) if isinstance(e, UserError) else _first_line(e)}")
            return
        if text is not None:
            for sink in self.sinks:
                sink.tell("sample", step, *text)

    def answers(self, step: int, judged: Sequence[Judged]) -> None:
        for sink in self.sinks:
            sink.tell("answers", step, list(judged))

    def end(self, run: Record, checkpoint: Path | None = None) -> None:
        """Hand over the record's summary and close; a sink that does not answer in time is left behind."""
        for sink in self.sinks:
            sink.ask("end", dict(run.fields), checkpoint, seconds=sink.sink.end_seconds)
            sink.close()
        if self.sinks:
            run.update(loggers=self.known)
        self.sinks = []


def make_loggers(task: Task, recipe: Recipe, *, validate_every: int, horizon: int) -> Loggers:
    """The loggers of a run, not yet begun."""
    cfg, folder = task.composed.cfg, task.folder
    resumed_at = (step_of(task.point) if task.point else 0) if task.resumes else None
    by_name = sinks(cfg, folder, resumed_at)
    samples = None
    if by_name and cfg.logger.get("samples", 0):
        samples = Samples(folder, recipe, most=cfg.logger.samples, every=validate_every, horizon=horizon)
        samples.cut(resumed_at or 0)
    return Loggers(by_name, samples)


def routed(model: Model) -> list[str]:
    """Names of the rows of the load: the layers with a router in the order in which they run."""
    from llmlab.model.experts import MixtureOfExperts

    names = []
    for key, stack in zip(model.stacks, model.all_stacks(), strict=True):
        for position, i in enumerate(stack.spec.execute):
            if isinstance(stack.layers[i].ffn, MixtureOfExperts):
                names.append(f"{'' if len(model.stacks) == 1 else key + ' '}layer {position:02d}")
    return names


def _first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
