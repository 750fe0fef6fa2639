"""report.html: one file with everything in it, no scripts, right in light and dark, on a phone and on a wide screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from llmlab.report import build, figures, table
from llmlab.report.build import Report
from llmlab.report.rows import Table

# Braces are doubled, as the text goes through str.format, which puts the
# colours in. !important: matplotlib writes a font into each text's own style.
CSS = """
:root {{ color-scheme: light dark; --paper: #ffffff; --card: #f6f8fa; --ink: #1b1f24; --muted: #5c6570; --lines: #d8dde3;
  --good: #11713f; --bad: #b3261e; --warn: #8a5a00; --warn-paper: #fff6e0; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --muted: #9da7b3;
  --lines: #343b44; --good: #5ccb8f; --bad: #ff8f85; --warn: #f0c060; --warn-paper: #2c2515; {dark} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; }}
main {{ max-width: 1320px; margin: 0 auto; padding: 24px 20px 64px; }}
h1 {{ font-size: clamp(1.25rem, 4.5vw, 1.8rem); line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 40px 0 10px; }}
p, ul {{ margin: 8px 0; }} .lead {{ color: var(--muted); }}
.verdicts {{ list-style: none; padding: 0; margin: 18px 0; }}
.verdicts li {{ padding: 8px 14px; border-left: 4px solid var(--muted); background: var(--card); margin: 6px 0;
  overflow-wrap: anywhere; border-radius: 0 6px 6px 0; }}
.verdicts .better {{ border-color: var(--good); }} .verdicts .worse {{ border-color: var(--bad); }}
.notice {{ background: var(--warn-paper); border: 1px solid var(--warn); border-radius: 6px; padding: 8px 14px; margin: 8px 0;
  overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; margin: 12px 0; border: 1px solid var(--lines); border-radius: 6px; }}
table {{ border-collapse: collapse; font-size: 0.875rem; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 7px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--lines); }}
th {{ color: var(--muted); font-weight: 600; white-space: nowrap; }} tr:last-child td {{ border-bottom: 0; }}
.n {{ text-align: right; white-space: nowrap; }} .name {{ min-width: 11em; max-width: 24em; overflow-wrap: anywhere; }}
.wide {{ min-width: 10em; }} td.better, td.worse {{ color: var(--good); font-weight: 600; }} td.worse {{ color: var(--bad); }}
tr.base td {{ background: var(--card); }} tr.out td {{ color: var(--muted); }} a {{ color: inherit; }}
code, pre {{ font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }}
pre {{ background: var(--card); padding: 10px 14px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0; font-size: 0.875rem; }}
.marked {{ display: flex; gap: 8px; }} .marked svg {{ flex: none; margin-top: 0.4em; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 370px), 1fr)); gap: 28px 32px;
  align-items: start; }}
figure {{ margin: 0; min-width: 0; }} figure h3 {{ font-size: 0.95rem; margin: 0 0 4px; overflow-wrap: anywhere; }}
figcaption {{ color: var(--muted); font-size: 0.85rem; }}
figure svg {{ width: 100%; max-width: 500px; height: auto; display: block; }}
figure svg * {{ stroke-linejoin: round; }} figure svg text {{ font-family: inherit !important; }}
details summary {{ cursor: pointer; }} .many th, .variants th {{ white-space: normal; vertical-align: bottom; }}
.variants table {{ font-size: 0.8125rem; }} .variants .name {{ min-width: 13em; }}
.method {{ color: var(--muted); font-size: 0.9rem; }}
"""


def page(report: Report) -> str:
    """The whole file."""
    body = [f'<p class="lead">{escape(table.headline(report))}</p>']
    body += _notices(table.notices(report))
    for part in report.tables:
        body += [f"<h2>{escape(part.title)}</h2>"] if len(report.tables) > 1 else []
        if said := table.sentences(part):
            said_items = (f'<li class="{word.replace(" ", "-")}">{escape(text)}</li>' for word, text in said)
            body.append(f'<ul class="verdicts">{"".join(said_items)}</ul>')
        body += [*_notices(table.notices(report, part)), _variants(part)]
    body += [items(report.notes)] if report.notes else []
    for i, part in enumerate(report.tables):
        body += _figures(part, f"t{i}-" if i else "", part.title if len(report.tables) > 1 else "")
    if grid := table.grid(report):
        head, rows = grid
        body.append(f"<h2>The grid of {escape(head[0])}</h2><p>Means over seeds (how many); * is the chosen one.</p>")
        body.append(table_of(["variant", *head[1:]], rows, numeric=range(1, len(head))))
    if answers := table.answers(report):
        body.append("<h2>Answers</h2><p>To held-out prompts, at the last validation of one run of each.</p>")
        body.append(table_of(*answers, numeric=(3, 4)))
    if commands := table.commands(report):
        # chr(10), since an f-string has no backslash in its braces before Python 3.12.
        body.append(f"<h2>What was asked</h2><pre>{escape(chr(10).join(commands))}</pre>")
    if method := build.method(report):
        body.append(f'<h2>How to read it</h2><div class="method">{items(method)}</div>')
    body.append(_runs(report))
    body += [_keys(report)] if report.keys else []
    return document(report.title, body)


def document(title: str, body: Sequence[str]) -> str:
    """A page with its title and its style."""
    css = CSS.format(light=figures.variables(figures.PALETTE), dark=figures.variables(figures.DARK))
    return (
        # The charset comes first: browsers look for it in the first 1,024 bytes only.
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *body])
        + "\n</main>\n</body>\n</html>\n"
    )


def _notices(lines: Sequence[str]) -> list[str]:
    return [f'<p class="notice">{escape(line)}</p>' for line in lines]


def _variants(part: Table) -> str:
    cells = table.columns(part)
    head = "".join(f'<th class="{"n" if c.numeric else ""}">{escape(c.name)}</th>' for c in cells)
    rows = []
    for i, row in enumerate(part.rows):
        tds = []
        for c in cells:
            kind = "n" if c.numeric else "name" if c.name == "variant" else f"wide {row.verdict.replace(' ', '-')}"
            cell = escape(c.cells[i])
            # An interval, or what is active, goes on a line of its own, since a page is only so wide.
            if c.numeric:
                cell = re.sub(r" (?=[\[(\N{PLUS-MINUS SIGN}])", "<br>", cell)
            if c.name == "variant" and part.baseline and len(part.rows) > 1:
                cell = f'<div class="marked">{_swatch(i)}<span>{cell}</span></div>'
            tds.append(f'<td class="{kind}">{cell}</td>')
        rows.append(f'<tr class="{"base" if row.is_baseline else ""}">{"".join(tds)}</tr>')
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll variants">{whole}</div>'


def _swatch(i: int) -> str:
    """A stretch of the variant's line."""
    colour, dash = figures.style(i)
    name = "--ink" if i == 0 else f"--c{figures.PALETTE.index(colour) + 1}"
    pattern = {
        "-": "",
        "--": ' stroke-dasharray="7 4"',
        ":": ' stroke-dasharray="2 3"',
        "-.": ' stroke-dasharray="7 3 2 3"',
    }
    line = f'<path d="M0 5H28" stroke="var({name})" stroke-width="3"{pattern[dash]}/>'
    # aria-hidden: the name beside it says all that a screen reader could.
    return f'<svg viewBox="0 0 28 10" width="28" height="10" aria-hidden="true">{line}</svg>'


def _figures(part: Table, mark: str, title: str) -> list[str]:
    """mark: before each id, as a page has every id once."""
    drawn = figures.figures(part, mark)
    if not drawn:
        return []
    legend = ""
    if len(part.rows) > 1:
        names = [(i, escape(r.name)) for i, r in enumerate(part.rows) if r.n]
        items = "".join(f'<li class="marked">{_swatch(i)}<span>{name}</span></li>' for i, name in names)
        legend = f'<ul class="legend">{items}</ul>'
    shown = (
        f"<figure><h3>{escape(f.title)}</h3>{f.svg}<figcaption>{escape(f.caption)}</figcaption></figure>" for f in drawn
    )
    head = f"Figures: {title[0].lower()}{title[1:]}" if title else "Figures"
    return [f'<h2>{escape(head)}</h2>{legend}<div class="figures">{"".join(shown)}</div>']


def items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{"n" if i in numeric else "name" if i == 0 else ""}">{escape(c)}</{tag}>'
            for i, c in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _runs(report: Report) -> str:
    head, rows, links = table.lines(report)
    top = "".join(f'<th class="{"n" if 2 <= i <= 5 else ""}">{escape(h)}</th>' for i, h in enumerate(head))
    body = []
    for run, row, link in zip(report.runs, rows, links, strict=True):
        first = f'<td class="name"><a href="{escape(link)}">{escape(row[0])}</a></td>'
        rest = "".join(f'<td class="{"n" if 2 <= i <= 5 else ""}">{escape(c)}</td>' for i, c in enumerate(row) if i)
        body.append(f'<tr class="{"" if run.why is None else "out"}">{first}{rest}</tr>')
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<h2>All runs</h2><div class="scroll">{whole}</div>'


def _keys(report: Report) -> str:
    names = [r.name for r in report.rows]
    rows = [[key, *(values.get(n) or "" for n in names)] for key, values in report.keys.items()]
    shown = table_of(["key", *names], rows)
    if table.folded(report):
        shown = f'<details class="many"><summary>{len(rows)} keys</summary>{shown}</details>'
    return f"<h2>The keys that differ</h2>{shown}"
