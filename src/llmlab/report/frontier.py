"""A figure of reward against KL: the way of a policy beside the greatest reward that any policy has at each KL."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from llmlab.report.figures import HEIGHT, INK, MUTED, PALETTE, PAPER, WIDTH, drawing

Points = Sequence[tuple[float, float]]  # (KL, reward)


class Way(NamedTuple):
    """A policy's way, the frontier of its problem, and where it was to end, if that is known."""

    name: str
    way: Points
    frontier: Points
    end: tuple[float, float] | None


def pictures(ways: Sequence[Way], title: str) -> dict[str, bytes]:
    """The figure as "svg" and as "png"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(1.5 * WIDTH, 1.3 * HEIGHT), dpi=150, layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot()
        reach = max(x for each in ways for x, _ in each.way)
        for i, each in enumerate(ways):
            colour = PALETTE[i % len(PALETTE)]
            x, y = zip(*[p for p in each.frontier if p[0] <= 1.15 * reach] or each.frontier[:1], strict=True)
            axes.plot(x, y, color=colour, lw=1, ls="--")
            axes.plot(*zip(*each.way, strict=True), color=colour, marker=".", ms=4, lw=1.2, label=each.name)
            if each.end is not None:
                axes.plot(*each.end, marker="*", ms=11, color=colour, mec=INK, mew=0.6, zorder=5)
        axes.plot([], [], color=MUTED, lw=1, ls="--", label="greatest reward at a KL")
        if any(each.end is not None for each in ways):
            axes.plot([], [], ls="none", marker="*", ms=9, color=MUTED, label="fixed point")
        axes.set(xlabel="KL to the reference (nats)", ylabel="expected reward")
        axes.set_title(title.replace("$", r"\$"), fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8)
        svg, png = io.BytesIO(), io.BytesIO()
        # None: else the files would hold the time and matplotlib's version.
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}
