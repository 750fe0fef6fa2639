"""Keys of a config by what they change: nothing that is computed (bookkeeping), or the numbers of a run.

Each key of the schema is of one kind; a test holds a new one to it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from llmlab.record_kinds import KEYS
from llmlab.slot_names import LISTED_SLOTS

# What a run is called, what it reports to, keeps and shows, and how its text is fetched.
NO_NUMBERS = (
    "resume",
    "resume_from",
    "sweep",
    "experiment_name",
    "published",
    "logger",
    "train.keep",
    "train.sample",
    "train.checkpoint_every",
    "data.num_workers",
    # An error, or nothing: what is left out is the same.
    "data.strict",
    "data.broken",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_autolog_hparams",
    "trainer.model_registry",
    "trainer.profiler",
    # Sanity steps validate before the first step, and change no weight.
    "trainer.num_sanity_val_steps",
    "trainer.inference_mode",
    # Nothing is tested or predicted.
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
)
# How closely a run is watched: its curve has other points, its weights and its last validation are the same.
WATCHED = ("train.log_every", "train.validate_every")
# Everything else. Devices and strategies change the last digits, and what a step costs.
NUMBERS = (
    "train.stop_kl", "train.stop_loss",
    "seed", "model", "heads", "layers", "execute", "kinds", "stacks", "models", "tokenizer", "budget", "strategy",
    "placement", "precision", "init_from", "init_tokenizer", "init_embedding", "init_adapter", "train.batch_size",
    "train.micro_batch_size",
    "train.clip", "train.learns", "train.validation_batches", "data.source", "data.path", "data.seq_len", "data.validation",
    "data.split", "data.separate_documents", "data.max_documents", "data.votes", "data.field", "data.fields", "data.bos",
    "data.task", "data.n_records",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.max_steps", "trainer.max_time",
    "trainer.deterministic", "trainer.benchmark", "trainer.detect_anomaly", "trainer.sync_batchnorm",
)  # fmt: skip


# Keys that came after sweeps had been written, and the value at which each says nothing: at it the hash of a point is the one
# that it had without the key, so that a point that is done is not run again. A new key of the schema belongs here; one of a
# dict comes before the dict.
ADDED: dict[str, object] = {
    "models": {},
    "init_embedding": None,
    "init_adapter": None,
    "adapter": None,
    "alignment": None,
    "reward": None,
    "filter": {},
    "tokenizer.template": None,
    "train.learns": None,
    "train.stop_kl": None,
    "train.stop_loss": None,
    **{f"data.fields.{key}": None for key in KEYS},
    "data.fields": {},
    "data.votes": "majority",
    "data.task": None,
    "data.n_records": 1000,
    "alignment.resample": 0,
    # Options of objectives that were there before.
    **{f"objective.{key}": False for key in ("whole_words", "at_end", "both_orders", "projection", "prefix", "mlp")},
    **{
        f"objective.{key}": 0 for key in ("z_loss", "label_smoothing", "duplicates", "lm_weight", "stride", "backwards")
    },
    **{f"objective.{key}": "none" for key in ("pair", "mode")},
    **{f"objective.{key}": [-1] for key in ("layers", "teacher_layers")},
    "alignment.score_margin": 0,
    "objective.max_answer": 30,
    "objective.ngram": 1,
    "objective.short": None,
    "objective.ngrams": None,
    "objective.sharing": "embedding",
    **{
        f"heads.{role}.mixed": False
        for role in ("classes", "labels", "span", "pair", "replaced", "copy", "scalar", "value", "hidden", "vector")
    },
}


def hashed(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config as the hash of a sweep's point has it: without bookkeeping, and without added keys that say nothing.
    Parts whose order counts are a list, as the hash sorts keys."""
    # The caller writes the same dict into its record.
    kept = copy.deepcopy(config)
    for key in NO_NUMBERS:
        for node, last in _held(kept, key):
            del node[last]
    for key, nothing in ADDED.items():
        for node, last in _held(kept, key):
            if node[last] == nothing:
                del node[last]
    for slot in LISTED_SLOTS:
        if slot in kept:
            kept[slot] = list(kept[slot].items())
    return kept


def _held(config: dict[str, Any], key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The dict that holds a dotted key, and the key's last name; nothing where it is not there."""
    *parents, last = key.split(".")
    for parent in parents:
        # A node may be null, as logger.wandb is where it is not chosen.
        config = config.get(parent) or {}
    if last in config:
        yield config, last


def within(key: str, names: tuple[str, ...]) -> bool:
    """True if a dotted key is one of these or lies below one."""
    return any(key == n or key.startswith(f"{n}.") for n in names)


_HYDRA = re.compile(r"hydra[./].*|callbacks(\..*)?")


def makes_no_variant(key: str) -> bool:
    """True if runs that differ in this key alone are runs of one variant: bookkeeping, and the seed, by which they are
    paired."""
    return key == "seed" or within(key, (*NO_NUMBERS, *WATCHED)) or bool(_HYDRA.fullmatch(key))
