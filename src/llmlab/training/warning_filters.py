"""Lines that Lightning and torch print and that say nothing about a run."""

from __future__ import annotations

import logging
import os
import warnings

MESSAGES = (
    ".*does not have many workers.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
    ".*srun.*command is available.*",
    ".*LeafSpec.*is deprecated.*",
    ".*checkpoint directory.*",
    ".*isinstance.*treespec.*",
    ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*GPU available but not used.*",
    ".*using `on_epoch=True`.*sync_dist.*",
    ".*it is recommended to use `self.log.*sync_dist=True.*",
    ".*barrier\\(\\): using the device under current context.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ".*The `batch_size` could not be inferred.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*`broadcast_buffers` is deprecated.*",
    ".*torch.distributed.\\w+` is deprecated.*",
    ".*DeepSpeed handles gradient clipping internally.*",
)


def hush() -> None:
    """Call after lightning was imported: its import sets the levels of its loggers."""
    if os.environ.get("LLMLAB_DEBUG"):
        return
    # By their words, which are a regular expression matched at the beginning: Lightning's categories hold other warnings too.
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
