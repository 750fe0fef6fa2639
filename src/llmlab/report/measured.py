"""A metric of runs as readers know it: its name, its unit, and which way is better, as the objective's measures say."""

from __future__ import annotations

from collections.abc import Iterable

from llmlab.measures import COMPARED, HIGHER_IS_BETTER, LIKELIHOODS
from llmlab.report.collect import PROBE, Run

BITS = "val_bits_per_byte"
LOSSES = ("val_loss", "loss")


def _kinds(runs: Iterable[Run]) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in runs:
        said = run.record.get("measures")
        found |= (
            said if isinstance(said, dict) else {"nll": "nll", "accuracy": "accuracy"}
        )  # a record of before it was kept
    return found


def of_probe(metric: str) -> bool:
    """True of a metric that compares models whatever they were trained by, on which text and with which tokenizer."""
    return metric.startswith(PROBE)


def common_probes(runs: Iterable[Run]) -> list[str]:
    """The metrics of probes that all of the runs have, frozen features before fine-tuning."""
    each = [{f"{PROBE}{name}" for name in run.probes} for run in runs]
    found = set.intersection(*each) if each else set()
    return sorted(found, key=lambda name: (", frozen " not in name, name))


def higher_is_better(metric: str, runs: Iterable[Run]) -> bool:
    name = metric.removeprefix("val_")
    return of_probe(metric) or name in COMPARED or _kinds(runs).get(name) in HIGHER_IS_BETTER


def unit(metric: str, runs: Iterable[Run]) -> str:
    """Empty where there is none; a loss is in nats where a likelihood is in it."""
    if of_probe(metric):
        return "accuracy"
    if metric.endswith(BITS.removeprefix("val_")):
        return "bits per byte"
    if metric in LOSSES and any(kind in LIKELIHOODS for kind in _kinds(runs).values()):
        return "nats per target"
    return ""


def metric_title(metric: str) -> str:
    if of_probe(metric):  # whose protocol the headline has
        return "probe accuracy"
    return {"val_loss": "validation loss", BITS: "bits per byte"}.get(metric, metric)
