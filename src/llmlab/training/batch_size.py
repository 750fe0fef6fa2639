"""The batch size of a run whose data has fewer samples than a batch that nobody typed."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from llmlab.config import learned
from llmlab.data.packing import Packs
from llmlab.data.windows import Windows

if TYPE_CHECKING:
    from llmlab.config.composed import Composed
    from llmlab.data.samples import Samples

BATCH, MICRO = "train.batch_size", "train.micro_batch_size"


def fits(composed: Composed) -> bool:
    """True if the batch gives way to data that has fewer samples."""
    # A rollout goes over its prompts again, so that any number of them fills it.
    return BATCH not in composed.keys and learned.reads(composed.cfg) != "prompts"


def fitted(composed: Composed, samples: Samples, world: int) -> tuple[Composed, tuple[str, ...]]:
    """(the config with a batch that the training samples fill, a note if that is smaller than the one nobody typed).

    world: devices that see different data, which share a batch evenly. As it was where a batch was typed, or none fits.
    """
    train = composed.cfg.train
    n = len(samples)
    if n >= train.batch_size or not fits(composed):
        return composed, ()
    micro = train.micro_batch_size
    if micro is not None and MICRO not in composed.keys and micro * world > n:
        micro = None  # that of an experiment's own batch
    unit = world * (micro or 1)
    if n < unit:
        return composed, ()
    size = n - n % unit
    cfg = copy.deepcopy(composed.cfg)
    cfg.train.batch_size, cfg.train.micro_batch_size = size, micro
    has, more = f"has {n} sample{'s' * (n > 1)}", "more records"
    if isinstance(samples, Windows | Packs):
        has = f"fills {n} window{'s' * (n > 1)} of data.seq_len={samples.seq_len}"
        more = "more text or a smaller data.seq_len"
    shared = f", shared by {world} devices" if world > 1 else ""
    whose = f"that of experiment={cfg.experiment_name}" if cfg.experiment_name else "the default"
    return replace(composed, cfg=cfg), (
        f"{BATCH}={size} in place of {train.batch_size} ({whose}): the training part {has}{shared}; {more} would fill it",
    )
