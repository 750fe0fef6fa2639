"""Runs with loggers, and other readers of what they write."""

import csv
import json
import struct

from llmlab.config.compose import compose
from llmlab.runs import checkpoint
from llmlab.training.run import train

RUN = ["model=qwen_moe", "model.n_layers=2", "budget.steps=8", "train.log_every=2", "train.validate_every=4"]
RUN += ["model.dropout=0.1"]


def run(folder, tiny, *overrides):
    last = {o.partition("=")[0]: o for o in (*tiny, *RUN, *overrides)}
    return train(compose(list(last.values())), folder)


def rows(folder):
    """Of metrics.csv, without `seconds`: loggers have clocks of their own."""
    with open(folder / "metrics.csv", newline="") as f:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(f)]


def written(folder):
    """The records of the .wandb files of a run: LevelDB's log format, in blocks of 32 KiB, behind 7 bytes of W&B's own."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last of several
                found.append(wandb_internal_pb2.Record())
                found[-1].ParseFromString(whole)
                whole = b""
    return [(r.WhichOneof("record_type"), getattr(r, r.WhichOneof("record_type"))) for r in found]


def history(folder):
    """{step: {key: value}}"""
    found = {}
    for _, h in (r for r in written(folder) if r[0] == "history"):
        found[h.step.num] = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in h.item}
    return found


def weights(folder):
    return checkpoint.read(folder / "checkpoints" / checkpoint.name(8))
