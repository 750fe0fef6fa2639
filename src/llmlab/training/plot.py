"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmlab.runs import metrics

NAME = "loss.png"
FEW = 30  # points up to which each is marked: the eye can't tell them from a line's bends


def loss_curve(folder: Path) -> Path:
    """loss.png from metrics.csv: the curves, or why there are none. matplotlib is imported here, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = metrics.read(folder / metrics.METRICS)
    curves = {label: points(rows, column) for label, column in (("training", "loss"), ("validation", "val_loss"))}
    # Not pyplot, which keeps figures in a global list and chooses a backend that may want a display.
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="tokens", ylabel="loss (nats per target)")
    axes.grid(alpha=0.3)
    for label, series in curves.items():
        if series:
            marker = "o" if len(series) <= FEW or label == "validation" else None
            axes.plot(*zip(*series, strict=True), lw=1, label=label, marker=marker, ms=3)
    if any(curves.values()):
        axes.legend()
    if (reason := why_none(*curves.values())) is not None:
        axes.set_title(reason, fontsize=9)
    FigureCanvasAgg(figure).print_png(str(folder / NAME))
    return folder / NAME


def points(rows: Sequence[dict[str, float | None]], column: str) -> list[tuple[float, float]]:
    """(tokens, value) of the rows that have one."""
    pairs = ((row.get("tokens"), row.get(column)) for row in rows)
    return [(tokens, value) for tokens, value in pairs if tokens is not None and value is not None]


def why_none(train: Sequence[object], validation: Sequence[object]) -> str | None:
    """A sentence where neither has the two points that a curve needs."""
    if max(len(train), len(validation)) > 1:
        return None
    one = "1 point" if train or validation else "no point"
    return f"no curve: metrics.csv has {one} of each loss at most (train.log_every=1 writes one at every step)"
