"""logger=wandb: a run in Weights & Biases, or in its folder for `wandb sync` where there is no key or no network.

Every row carries its optimizer step as W&B's own step, so that rows which a resumed run writes again are dropped there; the
x axes are tokens, and FLOPs of training.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.runs.answers import COLUMNS, Judged
from llmlab.runs.record import relative_path
from llmlab.training.loggers import samples
from llmlab.training.loggers.account import offline_reason

if TYPE_CHECKING:
    from types import ModuleType

    from omegaconf import DictConfig


INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS = 20.0, 60.0, 1800.0
LONGEST_TAG = 64  # W&B refuses longer ones
STORES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")  # else in the home folder


class WandBSink:
    """options: schema.WandB. group: the sweep's name, used where the options give none."""

    def __init__(self, options: DictConfig, folder: Path, group: str | None):
        self.end_seconds = 30.0 + (UPLOAD_SECONDS if options.artifact else FINISH_SECONDS)
        self.options, self.folder, self.group = options, folder, options.get("group") or group
        self.run: Any = None
        self.flops_per_token = 0.0
        self.offline = True
        self.texts: list[samples.Sample] = []
        self._alone = True  # no other run of this process is in W&B
        self._stores: list[str] = []

    def begin(self, record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        for name in STORES:
            if name not in os.environ:
                os.environ[name] = str(self.folder.absolute() / "wandb")
                self._stores.append(name)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # a failing run is none of W&B's business
        import wandb

        self._alone = wandb.run is None  # W&B's process is one for all runs of this one
        self.flops_per_token = record["flops_per_token"]
        known = (record.get("loggers") or {}).get("wandb") or {}
        # Eight characters, as W&B's own; from `secrets`, as the state of `random` is the run's.
        name = known.get("id") or secrets.token_hex(4)
        why = offline_reason(self.options.mode)
        try:
            self._init(wandb, name, record, config, "offline" if why is not None else "online", bool(known.get("id")))
        except Exception as e:
            if why is not None:
                raise
            why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            self._kill()
            self._init(wandb, name, record, config, "offline", False)
        self.offline = why is not None
        run, here = self.run, relative_path(self.folder)
        run.define_metric("tokens")
        run.define_metric("flops")
        # Else plots are by W&B's own step.
        run.define_metric("*", step_metric="tokens")
        self.texts = samples.read(self.folder / samples.NAME)
        see = f"wandb sync {shlex.quote(here)}/wandb/offline-run-*" if self.offline else run.url
        return {
            "id": run.id,
            "project": run.project,
            "entity": run.entity or None,
            "group": self.group,
            "mode": "offline" if self.offline else "online",
            "url": None if self.offline else run.url,
            "folder": os.path.relpath(run.settings.sync_dir, self.folder.absolute()),
            "see": see,
            "say": f"offline{why and ', ' + why}" if why is not None else run.url,
        }

    def _init(
        self,
        wandb: ModuleType,
        name: str,
        record: Mapping[str, Any],
        config: Mapping[str, Any],
        mode: str,
        resumes: bool,
    ) -> None:
        options = self.options
        # W&B nests keys at dots.
        parts = {place.replace(".", "/"): part for place, part in record["parts"].items()}
        tags = [f"{place}={part}" for place, part in record["parts"].items()]
        if self._alone:
            # Before init, whose settings are of one run: else what fails later is said by W&B too.
            wandb.setup(wandb.Settings(silent=True))
        self.run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.name or self.folder.absolute().name,
            id=name,
            group=self.group,
            job_type="train",
            tags=[t for t in dict.fromkeys([*tags, *options.tags]) if 0 < len(t) <= LONGEST_TAG],
            config={
                **config,
                "parts": parts,
                "parameters": record["parameters"],
                "flops_per_token": record["flops_per_token"],
                **({"companions": record["models"]} if record.get("models") else {}),  # `models` is what was chosen
                "hardware": record["hardware"],
            },
            dir=str(self.folder.absolute()),
            mode=mode,
            # "must" would fail for a run that was deleted there.
            resume="allow" if resumes and mode == "online" else None,
            # Outside of notebooks wandb.init by default gives back a run that the user's own code has open
            # ("return_previous", 0.31).
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                # W&B would replace stdout and stderr to copy what is printed.
                console="off",
                save_code=False,
                # run.json has the commit; W&B would upload the diff.
                disable_git=True,
                x_save_requirements=False,  # lists every package that is installed
                # 90 seconds by default, in which no step is trained.
                init_timeout=INIT_SECONDS,
                finish_timeout=UPLOAD_SECONDS if options.artifact else FINISH_SECONDS,
                # By default W&B only prints that it has given up, and the run would seem to be there.
                finish_timeout_raises=True,
            ),
        )

    def row(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        self.run.log({"tokens": tokens, "flops": tokens * self.flops_per_token, **values}, step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        import wandb

        self.texts.append(samples.Sample(step, prompt, text))
        self.run.log({"samples": wandb.Table(columns=["step", "prompt", "text"], data=list(self.texts))}, step=step)

    def answers(self, step: int, judged: Sequence[Judged]) -> None:
        import wandb

        # Of this validation alone: W&B steps through the tables of a run, and one of all would be sent anew each time.
        self.run.log({"answers": wandb.Table(columns=list(COLUMNS), data=[[step, *j] for j in judged])}, step=step)

    def load(self, step: int, counts: Mapping[str, list[int]]) -> None:
        """A histogram a layer, whose bins are the experts, and the busiest expert's load against the mean."""
        import wandb

        # As counts and edges: of a sequence of values W&B would choose 64 bins of its own. More than 512 raise ValueError
        # (wandb 0.31): of more experts, neighbours share a bin.
        bins = {name: wandb.Histogram(np_histogram=_bins(c, wandb.Histogram.MAX_LENGTH)) for name, c in counts.items()}
        busiest = max(max(c) * len(c) / max(sum(c), 1) for c in counts.values())
        self.run.log({**{f"load/{n}": h for n, h in bins.items()}, "load/max_over_mean": busiest}, step=step)

    def end(self, record: Mapping[str, Any], checkpoint: Path | None) -> None:
        import wandb

        keys = ("status", "reason", "steps", "tokens_seen", "wall_seconds", "tokens_per_second", "mfu", "devices")
        summary = {k: record.get(k) for k in (*keys, "peak_memory_bytes", "flops_per_token", "sample", "notes")}
        summary["flops"] = record["flops_per_token"] * record["tokens_seen"]
        # Else the last row comes after the summary and takes its place.
        self.run.log({}, commit=True)
        self.run.summary.update({**record["metrics"], **{k: v for k, v in summary.items() if v is not None}})
        if checkpoint is not None and self.options.artifact:
            artifact = wandb.Artifact(f"run-{self.run.id}", "model", metadata=dict(record["metrics"]))
            artifact.add_dir(str(checkpoint))
            self.run.log_artifact(artifact, aliases=["final"])
        self.run.finish(exit_code=0 if record["status"] == "completed" else 1)
        if self._alone:
            wandb.teardown()
        self._restore()

    def abandon(self) -> None:
        self._restore()
        self._kill()

    def _kill(self) -> None:
        """End W&B's own process, so that nothing waits for it when ours exits."""
        import wandb

        if not self._alone:
            return
        with contextlib.suppress(Exception):
            # Private, as the public `teardown` waits until all data are uploaded.
            wandb.sdk.wandb_setup.singleton()._connection._proc._process.kill()
        closing = threading.Thread(target=_teardown, daemon=True)
        closing.start()
        closing.join(5)

    def _restore(self) -> None:
        while self._stores:
            os.environ.pop(self._stores.pop(), None)


def _teardown() -> None:
    """Forget W&B's process; its hook at exit too."""
    import wandb

    with contextlib.suppress(BaseException):
        wandb.teardown()


def _bins(counts: list[int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of at most so many bins, each of as many experts as the others (the last may have fewer)."""
    starts = np.arange(0, len(counts), -(-len(counts) // most))
    return np.add.reduceat(np.array(counts), starts), np.append(starts, len(counts))
