"""probe.json: what `llmlab probe` measured of a run, in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from llmlab.files import write_atomic
from llmlab.json_files import read_json

NAME, SCHEMA = "probe.json", 1


class Probe(TypedDict):
    """Accuracies of one run on one labelled set, one a split.

    mode: "frozen" or "finetune"; pool: "mean", "first" or "last", the vector of a text; half: of the 95 % interval of the mean
    over splits, None for one; majority, bag_of_tokens: means of the baselines; fingerprint: of the set.
    """

    data: str
    fingerprint: str
    mode: str
    pool: str
    seq_len: int
    test: float
    accuracies: list[float]
    accuracy: float
    half: float | None
    majority: float
    bag_of_tokens: float | None


class File(TypedDict):
    schema: int
    probes: list[Probe]


def read(folder: Path) -> list[Probe]:
    """The probes of a run, none where none was made. UserError for a damaged file."""
    try:
        found: File = read_json(folder / NAME, File)
    except FileNotFoundError:
        return []
    return found["probes"]


def add(folder: Path, probes: list[Probe]) -> None:
    """Write probes beside those that are there, in place of earlier ones of the same protocol."""

    def key(p: Probe) -> tuple:
        return p["data"], p["fingerprint"], p["mode"], p["pool"], p["seq_len"], p["test"]

    kept = {key(p): p for p in [*read(folder), *probes]}
    # Sorted: the order in which probes were made is of no interest.
    file: File = {"schema": SCHEMA, "probes": [kept[k] for k in sorted(kept)]}
    write_atomic(folder / NAME, json.dumps(file, indent=1) + "\n")


def title(probe: Probe, among: Sequence[Probe]) -> str:
    """A name of what was measured, the same for all runs that were measured so: "brown, frozen mean"."""
    # Of two sets of one name, two lengths or shares, each says which it is.
    like = [p for p in among if (p["data"], p["mode"], p["pool"]) == (probe["data"], probe["mode"], probe["pool"])]
    more = "" if len(like) == 1 else f" ({probe['fingerprint'][:6]}, {probe['seq_len']} tokens, test {probe['test']:g})"
    return f"{probe['data']}, {probe['mode']} {probe['pool']}{more}"
