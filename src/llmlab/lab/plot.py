"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from llmlab.training import metrics

NAME = "loss.png"


def loss_curve(folder: Path) -> Path | None:
    """loss.png from metrics.csv; None where there is nothing to draw. matplotlib is imported here, without a display."""
    rows = metrics.read(folder / metrics.METRICS)
    train = [(r["tokens"], r["loss"]) for r in rows if r.get("loss") is not None]
    validation = [(r["tokens"], r["val_loss"]) for r in rows if r.get("val_loss") is not None]
    if not train and not validation:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), lw=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), marker="o", ms=3, label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats a target)")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(folder / NAME))
    return folder / NAME
