"""The figures of a report, drawn by matplotlib: SVG whose colours are CSS variables, and one PNG for a README.

The SVG is small enough (some 350 points wide) for its text to be readable at the width of a phone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from llmlab.formatting import large, power_of_ten
from llmlab.report.curves import Curve
from llmlab.report.measured import metric_title
from llmlab.report.rows import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D

INK, MUTED, LINES, PAPER = "#1b1f24", "#5c6570", "#d8dde3", "#ffffff"
# Okabe and Ito's palette (jfly.uni-koeln.de/color, 2008) without its yellow; the paler ones a little darker for a white page.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8569a", "#b07a00", "#3594cc", "#7a5230")
# The same hues for a dark page.
DARK = ("#4ba3dd", "#ff8a4a", "#2cc79a", "#e28cc4", "#e6b53c", "#8ecdf2", "#c9a07c")
WIDTH, HEIGHT = 4.4, 3.3  # inches of a figure
# Seven colours alone would come again with the eighth variant; with four dashes 28 differ.
DASHES = ("-", "--", ":", "-.")
LABEL = 44  # characters of a name beside what is drawn; tables, legends of the page and hover titles have all of it
# Bands of more variants would hide each other.
BANDS = 7


class Figure(NamedTuple):
    """An SVG element, what is seen in it, and what it means."""

    name: str
    title: str
    caption: str
    svg: str


def style(i: int) -> tuple[str, str]:
    """(colour, dash) of row i; the baseline is in ink."""
    if i == 0:
        return INK, "-"
    return PALETTE[(i - 1) % len(PALETTE)], DASHES[(i - 1) // len(PALETTE) % len(DASHES)]


def figures(table: Table, mark: str = "") -> list[Figure]:
    """The figures that the table has numbers for; none where nothing is comparable. mark: what their ids begin with."""
    what = _what(table)
    if table.baseline is None:
        return []
    found = []
    if _compared(table):
        n = len(_compared(table))
        height = max(HEIGHT if n > 2 else 2.2, 0.9 + 0.42 * n)
        text = (
            "The difference of each variant to the baseline, paired by seed: its mean, its corrected interval, and "
            "a dot for each seed. Where the interval leaves out 0, a difference is called; an arrow says that it goes on."
        )
        found.append(
            _figure(mark + "differences", f"Difference in {what} to {table.baseline}", text, table, _forest, height)
        )
    if any(r.curve for r in table.rows):
        band = "the mean over seeds, with a band from the lowest seed to the highest"
        over = " Bands may overlap where the verdict is clear: it compares runs of the same seed."
        text = f"{_drawn(table)} over tokens: {band}." + (over if any(r.n > 1 for r in table.rows) else "")
        found.append(_figure(mark + "tokens", f"{_drawn(table)} over tokens", text, table, _over_tokens))
        if any(r.flops_per_token for r in table.rows):
            text = "The same over training FLOPs: what a variant costs a token stretches its curve."
            found.append(_figure(mark + "flops", f"{_drawn(table)} over FLOPs", text, table, _over_flops))
    if any(r.difference for r in table.rows):
        text = "How the difference came about: each variant minus the baseline of the same seed, mean and range over seeds."
        found.append(
            _figure(mark + "paired", f"Paired difference in {_drawn(table).lower()}", text, table, _over_differences)
        )
    if sum(r.mean is not None and r.flops > 0 for r in table.rows) > 1:
        text = (
            "Each variant at what it cost in all, with the range of its seeds. The line is the Pareto front: "
            "no other variant is both cheaper and better than those on it."
        )
        found.append(_figure(mark + "pareto", f"Final {what} against FLOPs", text, table, _scatter))
    return found


def picture(table: Table) -> bytes | None:
    """The main figure as PNG: curves, differences, loss against FLOPs; None where there is nothing to draw."""
    panels = [(f"{_drawn(table)} over tokens", _over_tokens)] if any(r.curve for r in table.rows) else []
    if _compared(table):
        panels.append((f"Difference to {_label(table.baseline or '', 24)}", _forest))
    if sum(r.mean is not None and r.flops > 0 for r in table.rows) > 1:
        panels.append((f"Final {_what(table)} against FLOPs", _scatter))
    if not panels:
        return None
    # Not pyplot, which keeps every figure in a table of the process until it is closed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with drawing():
        # Handles of their own: all panels show the same variants, and one without a curve has no line to name.
        handles = [_handle(i, row) for i, row in enumerate(table.rows) if row.n]
        longest = max((len(str(h.get_label())) for h in handles), default=0)
        across = max(1, min(len(handles), 4, round(len(panels) * WIDTH / (0.5 + 0.085 * longest))))
        height = max(4.0 + 0.25 * max(0, len(table.rows) - 6), 3.4 + 0.25 * math.ceil(len(handles) / across))
        figure = Canvas(figsize=(WIDTH * len(panels), height), dpi=150, layout="constrained", facecolor=PAPER)
        # squeeze=False: with a single panel `subplots` returns the axes itself, not an array of one.
        for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes, table)
            axes.set_title(title, fontsize=11, loc="left")
        if len(table.rows) > 1:
            # "outside" makes room for a legend of the figure, under a constrained layout alone.
            figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
        buffer = io.BytesIO()
        # Without None the file would hold matplotlib's version.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def variables(palette: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {c};" for i, c in enumerate(palette, 1))


# ---------------------------------------------------------------- drawing


def _what(table: Table) -> str:
    return metric_title(table.metric)


def _drawn(table: Table) -> str:
    return "Training loss" if table.drawn == "loss" else _what(table).capitalize()


def _compared(table: Table) -> list[tuple[int, Row]]:
    return [(i, r) for i, r in enumerate(table.rows) if r.comparison is not None and r.comparison.mean is not None]


@contextmanager
def drawing() -> Iterator[None]:
    # Imported here: matplotlib takes 0.3 s, which only a report that draws should cost.
    import matplotlib as mpl

    with mpl.rc_context():
        # A user's matplotlibrc would make another file of the same runs.
        mpl.rcdefaults()
        # Text that stays text ("none") follows the page's fonts, and is found by a search; ids are random without a
        # salt. An offset beside the axis ("+3.1") would stand for the first digits of losses that are close.
        mpl.rcParams.update({
            "svg.fonttype": "none", "svg.hashsalt": "llmlab", "font.size": 10, "axes.spines.top": False,
            "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "text.color": INK,
            "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": LINES, "axes.grid": True, "axes.axisbelow": True,
            "axes.facecolor": "none", "grid.linewidth": 0.8, "lines.linewidth": 1.6, "axes.formatter.useoffset": False,
        })  # fmt: skip
        yield


def _figure(
    name: str,
    title: str,
    caption: str,
    table: Table,
    draw: Callable[[Axes, Table], dict[str, str]],
    height: float = HEIGHT,
) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with drawing():
        figure = Canvas(figsize=(WIDTH, height), layout="constrained", facecolor="none")
        titles = draw(figure.add_subplot(), table)
        buffer = io.StringIO()
        # Without None the file would hold the time at which it was drawn, and differ from run to run.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return Figure(name, title, caption, _inline(buffer.getvalue(), name, title, titles))


def _inline(svg: str, name: str, title: str, titles: dict[str, str]) -> str:
    """matplotlib's file -> an element for HTML: own ids, colours as variables, hover titles."""
    # matplotlib begins with an XML declaration and a doctype, neither of which may stand inside HTML.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    # matplotlib's style is for "*": within a page it would be for all of the page.
    svg = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    # Only tags are changed: a label is a variant's name, and may hold `id="` or a colour.
    svg = re.sub(r"<\w[^>]*>", lambda tag: _own(tag[0], name), svg)
    # Without its width and height in points an SVG takes those of the
    # page. role=img: a screen reader reads the title, not each tick.
    opened = re.match(r"<svg [^>]*?(viewBox=\"[^\"]+\")[^>]*>", svg)
    assert opened is not None
    svg = f'<svg {opened[1]} role="img" aria-label="{escape(title)}">{svg[opened.end() :]}'
    # A gid becomes the id of the group around what was drawn; its <title> is what browsers show on hover.
    for key, text in titles.items():
        svg = svg.replace(f'<g id="{name}-{key}">', f'<g id="{name}-{key}"><title>{escape(text)}</title>', 1)
    return svg.strip()


def _own(tag: str, name: str) -> str:
    """A tag with ids of its own figure, and with colours that follow the page."""
    # Several figures stand in one page, and their ids (clip paths, glyphs, gids) would be each other's.
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r"url\(#", f"url(#{name}-", tag)
    tag = re.sub(r'href="#', f'href="#{name}-', tag)
    # A fixed colour would be the same on a light and on a dark page.
    named = {INK: "--ink", MUTED: "--muted", LINES: "--lines", PAPER: "--paper"}
    named |= {c: f"--c{i}" for i, c in enumerate(PALETTE, 1)}
    # matplotlib writes colours as lower-case hex, whatever they were given as.
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var({named[m[0]]})" if m[0] in named else m[0], tag)


def _label(name: str, width: int = LABEL) -> str:
    """A name that leaves room for what is drawn; a dollar sign begins no formula."""
    cut = name if len(name) <= width else name[: width - 1].rstrip(", ") + "\N{HORIZONTAL ELLIPSIS}"
    return cut.replace("$", r"\$")


def _handle(i: int, row: Row) -> Line2D:
    from matplotlib.lines import Line2D

    colour, dash = style(i)
    return Line2D([], [], color=colour, ls=dash, marker="o", ms=4, label=_label(row.name))


def _curves(axes: Axes, table: Table, curves: list[tuple[int, Row, Curve, float]]) -> dict[str, str]:
    """curves: (row's number, row, curve, units of x a token)."""
    titles = {}
    for i, row, curve, scale in curves:
        colour, dash = style(i)
        x = [t * scale for t in curve.tokens]
        if row.n > 1 and len(table.rows) <= BANDS + 1:
            axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
        axes.plot(x, curve.mean, color=colour, ls=dash, zorder=3 + (i == 0), gid=f"line{i}")
        titles[f"line{i}"] = row.name
    return titles


def _zoom(axes: Axes, curves: list[Curve], *shown: float) -> None:
    """The first steep stretch of a loss would squeeze the rest, where variants differ: begin at a fifth of the way."""
    last = max(c.tokens[-1] for c in curves)
    late = [
        v
        for c in curves
        for t, h, low in zip(c.tokens, c.high, c.low, strict=True)
        if t >= 0.2 * last
        for v in (h, low)
    ]
    late += shown
    if late and max(late) > min(late):
        room = 0.06 * (max(late) - min(late))
        axes.set_ylim(min(late) - room, max(late) + room)


def _over_tokens(axes: Axes, table: Table) -> dict[str, str]:
    drawn = [(i, r, r.curve, 1.0) for i, r in enumerate(table.rows) if r.curve]
    axes.set_xlabel("tokens")
    return _losses(axes, table, drawn)


def _over_flops(axes: Axes, table: Table) -> dict[str, str]:
    drawn = [(i, r, r.curve, r.flops_per_token) for i, r in enumerate(table.rows) if r.curve and r.flops_per_token]
    axes.set_xlabel("training FLOPs")
    titles = _losses(axes, table, drawn)
    _few(axes.xaxis, _flops)
    return titles


def _losses(axes: Axes, table: Table, drawn: list[tuple[int, Row, Curve, float]]) -> dict[str, str]:
    titles = _curves(axes, table, drawn)
    _zoom(axes, [c for _, _, c, _ in drawn])
    _few(axes.xaxis, large)
    axes.set_ylabel(_unit(table))
    return titles


def _over_differences(axes: Axes, table: Table) -> dict[str, str]:
    drawn = [(i, r, r.difference, 1.0) for i, r in enumerate(table.rows) if r.difference]
    axes.axhline(0, color=INK, lw=1.2)
    titles = _curves(axes, table, drawn)
    _zoom(axes, [c for _, _, c, _ in drawn], 0.0)
    _few(axes.xaxis, large)
    axes.set(xlabel="tokens", ylabel=f"difference ({_unit(table)})")
    return titles


def _forest(axes: Axes, table: Table) -> dict[str, str]:
    """A line a variant: dots of the seeds, mean, interval. An interval far wider than all else is cut, with an arrow."""
    rows, titles = _compared(table), {}
    dots = [d for _, r in rows for d in r.comparison.differences] + [0.0]  # type: ignore[union-attr]
    span = (max(dots) - min(dots)) or abs(max(dots)) or 1.0
    reach = (min(dots) - 1.5 * span, max(dots) + 1.5 * span)
    shown = list(dots)
    axes.axvline(0, color=INK, lw=1.2)
    for y, (i, row) in enumerate(rows):
        c, (colour, _) = row.comparison, style(i)
        assert c is not None and c.mean is not None  # as `_compared` chose them
        if c.low is not None and c.high is not None:
            ends = max(c.low, reach[0]), min(c.high, reach[1])
            shown += ends
            # "butt", as matplotlib's default, "projecting", makes a line longer than its ends by half of its width.
            axes.plot(ends, [y, y], color=colour, lw=2.2, solid_capstyle="butt", gid=f"interval{i}")
            for end, inside, mark in ((ends[0], c.low, "<"), (ends[1], c.high, ">")):
                if end != inside:
                    axes.plot([end], [y], marker=mark, color=colour, ms=5)
        axes.plot(c.differences, [y + 0.17] * c.n, ls="none", marker="o", ms=3.5, mfc="none", mec=colour, mew=1)
        axes.plot([c.mean], [y], ls="none", marker="D", ms=6, color=colour, gid=f"mean{i}", zorder=5)
        titles[f"mean{i}"] = titles[f"interval{i}"] = f"{row.name}: {row.short}"
        # x is a share of the axes, so that names stand at the left edge whatever the range is.
        axes.annotate(
            _label(row.name), (0, y), xycoords=("axes fraction", "data"), xytext=(2, 6), textcoords="offset points",
            color=colour, fontsize=9, va="bottom", annotation_clip=False,
        )  # fmt: skip
    room = 0.06 * (max(shown) - min(shown) or 1.0)
    # The y axis upside down: matplotlib's first row would be at the bottom.
    axes.set(xlim=(min(shown) - room, max(shown) + room), ylim=(len(rows) - 0.5, -0.75), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    side = "left" if not table.higher_is_better else "right"
    axes.set_xlabel(f"difference ({table.unit})" + f"; better is to the {side}" if table.unit else "difference")
    _few(axes.xaxis)
    return titles


def _scatter(axes: Axes, table: Table) -> dict[str, str]:
    points = [(r.flops, r.mean, i, r) for i, r in enumerate(table.rows) if r.mean is not None and r.flops > 0]
    titles = {}
    front = pareto([(x, y) for x, y, _, _ in points], table.higher_is_better)
    if len(front) > 1:
        # Steps, for between two points of the front nothing was measured that would be better than the cheaper one.
        axes.plot(*zip(*front, strict=True), color=MUTED, lw=1, ls="--", drawstyle="steps-post", zorder=1)
    for x, y, i, row in points:
        colour, values = style(i)[0], list(row.values.values())
        axes.plot([x, x], [min(values), max(values)], color=colour, lw=1.6, alpha=0.6)
        axes.plot(
            [x], [y], marker="os^Dv"[(i - 1) // len(PALETTE) % 5 if i else 0], ms=7, color=colour, gid=f"point{i}"
        )
        titles[f"point{i}"] = f"{row.name}: {y:.{table.digits}f} at {power_of_ten(x)} FLOPs"
    xs = [x for x, *_ in points]
    if max(xs) / min(xs) > 4:
        axes.set_xscale("log")
    else:
        room = 0.1 * (max(xs) - min(xs)) or 0.05 * max(xs)
        axes.set_xlim(min(xs) - room, max(xs) + room)
    _few(axes.xaxis, _flops)
    axes.set(xlabel="training FLOPs", ylabel=_unit(table))
    return titles


def pareto(points: list[tuple[float, float]], higher: bool = False) -> list[tuple[float, float]]:
    """The points that no other beats in both cost and value (the Pareto front), from the cheapest."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if higher else p[1])):
        if not front or (y > front[-1][1] if higher else y < front[-1][1]):
            front.append((x, y))
    return front


def _unit(table: Table) -> str:
    return "nats per target" if table.drawn == "loss" else table.unit or table.metric


def _flops(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _few(axis: Axis, write: Callable[[float], str] | None = None) -> None:
    """Few ticks, for text that is large against the figure."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    log = axis.get_scale() == "log"
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6) if log else MaxNLocator(5))
    # On a logarithmic axis of about one decade matplotlib labels minor ticks too, over each other at this size.
    axis.set_minor_formatter(NullFormatter())
    if write is not None:
        # matplotlib makes a FuncFormatter of a function and calls it with the value and the tick's number.
        axis.set_major_formatter(lambda x, _: "0" if x == 0 else write(x))
