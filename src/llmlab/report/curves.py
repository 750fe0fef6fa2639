"""Curves of a variant: the mean over seeds and a band from the lowest seed to the highest, over tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmlab.report.collect import Run
from llmlab.report.measured import of_probe

POINTS = 200  # a curve has no more
FEW = 4  # validations; with fewer there is no curve of them, and the training loss is drawn


@dataclass(frozen=True)
class Curve:
    tokens: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    def at(self, tokens: float) -> float:
        import numpy as np

        return float(np.interp(tokens, self.tokens, self.mean))

    def reaches(self, value: float) -> float | None:
        """The tokens at which the mean first is at or below `value`, between points by a straight line; None: never."""
        before: tuple[float, float] | None = None
        for t, v in zip(self.tokens, self.mean, strict=True):
            if v <= value:
                # The first point, or a flat stretch, which has no slope to divide by.
                if before is None or before[1] == v:
                    return t
                return before[0] + (t - before[0]) * (before[1] - value) / (before[1] - v)
            before = (t, v)
        return None


def column(runs: Sequence[Run], metric: str) -> str | None:
    """The column that is drawn: the metric where each run measured it often enough, else the training loss, else nothing."""
    if of_probe(metric):  # of other objectives the training losses are no more of one kind than those of a validation
        return None
    for name in (metric, "loss"):
        # A line takes two points.
        if runs and all(len(r.rows.get(name, ())) >= (FEW if name == metric else 2) for r in runs):
            return name
    return None


def mean_curve(runs: Mapping[int, Run], name: str) -> Curve | None:
    return band([run.rows[name] for _, run in sorted(runs.items()) if run.rows.get(name)])


def difference(runs: Mapping[int, Run], base: Mapping[int, Run], name: str) -> Curve | None:
    """The difference of a variant to the baseline, seed by seed, at the tokens that both measured."""
    series = []
    for seed in sorted(runs.keys() & base.keys()):
        own, other = dict(runs[seed].rows.get(name, ())), dict(base[seed].rows.get(name, ()))
        series.append([(t, own[t] - other[t]) for t in sorted(own.keys() & other.keys())])
    return band([s for s in series if len(s) > 1])


def band(series: Sequence[Sequence[tuple[float, float]]]) -> Curve | None:
    """Series of (tokens, value), one a seed -> a curve of at most 200 points over the stretch that all have."""
    import numpy as np

    if not series:
        return None
    pairs = [np.asarray(_thinned(s), dtype=float).T for s in series]
    tokens = pairs[0][0]
    if any(len(x) != len(tokens) or (x != tokens).any() for x, _ in pairs):
        start, end = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
        tokens = np.unique(np.concatenate([x for x, _ in pairs]))
        # np.interp repeats the end's value outside of a series: a run that ended early would go on as a flat line.
        tokens = tokens[(tokens >= start) & (tokens <= end)]
        tokens = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(len(tokens), POINTS)).round().astype(int))]
    if not len(tokens):
        return None
    values = np.stack([np.interp(tokens, x, y) for x, y in pairs])
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    return Curve(tokens.tolist(), mean.tolist(), low.tolist(), high.tolist())


def _thinned(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 200 points: means over equal stretches of rows, at the tokens of each stretch's last row."""
    if len(series) <= POINTS:
        return list(series)
    edges = [round(i * len(series) / POINTS) for i in range(POINTS + 1)]
    return [(series[b - 1][0], sum(v for _, v in series[a:b]) / (b - a)) for a, b in itertools.pairwise(edges)]
