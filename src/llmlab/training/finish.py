"""The end of a run: baselines, a sample, the picture, the record, and the panel that shows them."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from llmlab import attributes
from llmlab.config.spec import PartSpec
from llmlab.data import cache
from llmlab.decoding.generate import goes_on
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import read_json
from llmlab.model import build
from llmlab.runs import checkpoint
from llmlab.runs.record import program_name, relative_path
from llmlab.training import answered
from llmlab.training.meter import mfu
from llmlab.training.panel import print_panel
from llmlab.training.placement import COMPUTED
from llmlab.training.sample_text import sample
from llmlab.training.written import scores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.model.model import Model
    from llmlab.runs.record import Record
    from llmlab.training.devices import Devices
    from llmlab.training.loggers import Loggers
    from llmlab.training.module import Offline
    from llmlab.training.recipe import Recipe

ANSWERED = 1000  # held-out questions at most whose answers are compared
WRITTEN = 200  # held-out records at most whose texts are written and compared at the end of a run
SAMPLED = 100  # steps before which what a model writes is noise
WEEK = 7 * 86_400  # seconds
STAMP = "try_next.json"  # in the cache


class Stamp(TypedDict):
    given: float  # seconds since 1970


def complete(
    run: Record,
    progress: dict[str, Any],
    folder: Path,
    cfg: DictConfig,
    recipe: Recipe,
    module: Offline,
    devices: Devices,
    loggers: Loggers,
) -> None:
    """Complete the record (status completed) and print the panel."""
    metrics = progress["metrics"]
    # Only for a validation over all of the held-out text, of which the baselines are.
    if "val_bits_per_byte" in metrics and cfg.train.validation_batches is None:
        for order, bits in recipe.corpus.ngram().items():
            metrics[f"kneser_ney_{'bigram' if order == 2 else 'trigram'}_bits_per_byte"] = bits
    speed = progress["tokens_per_second"]
    if speed:
        dtype = COMPUTED[cfg.precision]
        flops = speed * recipe.cost.flops_per_token
        progress["mfu"] = round(mfu(flops, devices.world, devices.device, dtype, cache.root()), 4)
        progress["tokens_per_second"] = round(speed, 1)
    wanted = progress["steps"] >= SAMPLED if cfg.train.sample is None else cfg.train.sample
    writes = writer(module, folder) if wanted else None
    text = None if writes is None else sample(recipe, writes)
    if writes is not None and (held_out := recipe.held_out) is not None:
        found = scores(writes, recipe.objective, held_out, recipe.corpus.tokenizer, recipe.corpus.vocabulary, WRITTEN)
        found |= answered.scores(writes, recipe.objective, held_out, recipe.corpus.tokenizer, n=ANSWERED)
        metrics.update({f"val_{name}": value for name, value in found.items()})
    run.update(**progress, status="completed", sample=None if text is None else {"prompt": text[0], "text": text[1]})
    from llmlab.training.plot import loss_curve

    loss_curve(folder)
    kept = checkpoint.all_of(folder / checkpoint.FOLDER)
    loggers.end(run, kept[-1] if kept else None)
    if cfg.sweep:  # one of many, and nobody reads along
        return print_panel(run.fields, relative_path(folder), None, [])
    print_panel(
        run.fields, relative_path(folder), text, _next(folder, recipe, run.fields["overrides"]) if once_a_week() else []
    )


def writer(module: Offline, folder: Path) -> Model:
    """The trained model as text can be written with it: where it is sharded or compiled, that of the last checkpoint."""
    if module.strategy.whole and not module.placement.compile:
        assert module.model is not None
        return module.model
    from llmlab.runs.folder import load_model

    return load_model(folder)[0]


def once_a_week() -> bool:
    """True if the advice on what to try next was not given within a week, on this machine; it is then noted as given."""
    stamp, now = cache.root() / STAMP, time.time()
    with suppress(OSError, UserError):
        if 0 <= now - read_json(stamp, Stamp)["given"] < WEEK:
            return False
    # A cache that can't be written must not fail a run that is complete; the advice is then given again.
    with suppress(OSError, UserError):
        cache.root().mkdir(parents=True, exist_ok=True)
        write_atomic(stamp, json.dumps({"given": now}) + "\n")
    return True


def _next(folder: Path, recipe: Recipe, overrides: list[str]) -> list[tuple[str, str]]:
    """Commands that can be typed as they stand."""
    program, run = program_name(), shlex.quote(relative_path(folder))
    first = (f'{program} generate run={run} prompt="The "', "text from this model")
    unmasks = attributes.get(recipe.objective, "objective", "generates") == "unmasking"
    if recipe.spec.topology == "encoder_decoder" or not (unmasks or goes_on(recipe.spec)):
        first = (f"{program} eval run={run} data=python_code", "its loss on other text")
    if recipe.corpus.is_records:
        first = (f"{program} eval run={run}", "its measures on the records that were held out")
    commands = [first, (f"{program} parts", "all that can be chosen")]
    if (other := another_attention(recipe.spec)) is not None:
        same = [o for o in overrides if not o.startswith(("hydra.", "attention", "resume=", "sweep="))]
        again = " ".join(shlex.quote(word) for word in ("train", *same, f"attention={other}"))
        commands.insert(1, (f"{program} {again}", "the same run with another attention"))
    return commands


def another_attention(spec: ModelSpec) -> str | None:
    """One that the model can have instead of its own in every layer, if there is one."""
    current = spec.stacks[-1].layers[-1].parts["attention"].name
    for name in (n for n in ("mla", "mha", "gqa") if n != current):
        # A part that can't have these sizes refuses them with a ValueError.
        with suppress(ValueError):
            build.assemble(_with_attention(spec, PartSpec.with_defaults("attention", name)))
            return name
    return None


def _with_attention(spec: ModelSpec, attention: PartSpec) -> ModelSpec:
    return spec.in_layers(lambda parts: {**parts, "attention": attention})
