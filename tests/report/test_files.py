"""The report's files, what a terminal shows, and bad input."""

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from losses import SEEDS, change

from llmlab.commands import report as command
from llmlab.errors import UserError
from llmlab.formatting import large, power_of_ten
from llmlab.report import figures, markdown, terminal, verdict
from llmlab.report.write import write


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("report.*"))}


def test_the_same_folders_give_the_same_bytes(swept, runs, tmp_path, monkeypatch, capsys):
    """From any current folder, in any order, however often, and whatever the user's matplotlib is set to."""
    more = runs.make(
        tmp_path / "more", 2.5, seed=1, changes={"attention": runs.PART["mha"]}, overrides=("attention=mha",)
    )
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    write([swept, more], out=out)
    first = files(out)
    assert set(first) == {"report.html", "report.json", "report.md", "report.png"}
    monkeypatch.chdir(swept)
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\n")
    code = "from llmlab.commands.cli import main; main()"
    words_ = ["report", os.path.relpath(more), ".", f"out={out}", "--json"]
    env = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code, *words_], env=env, capture_output=True, text=True, check=True)
    assert files(out) == first
    assert done.stdout.encode() == first["report.json"]
    capsys.readouterr()


def test_the_range_of_the_seeds_needed_stands_in_every_file(swept, tmp_path, capsys):
    write([swept], out=tmp_path)
    (row,) = [r for r in json.loads((tmp_path / "report.json").read_text())["rows"] if r["name"] == "attention=gqa"]
    c = row["comparison"]
    high = "or more" if c["needed_high"] is None else f"to {c['needed_high']}"
    said = f"about {c['needed']} would be needed ({c['needed_low']} {high})"
    for text in ((tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text(), capsys.readouterr().out):
        assert said in " ".join(text.split())


def test_a_resumed_sweep_ends_with_the_same_report(swept, built):
    """When runs began, how often they were resumed and how long they took is in no report."""
    before = built(swept).plain()
    change(swept, "attention=*", resumed=2, began="2026-03-01T00:00:00+00:00", wall_seconds=99.0)
    assert built(swept).plain() == before


class Page(HTMLParser):
    """What a page fetches, its ids, and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open, self.loads = [], [], [], []
        self.texts, self.labels = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.labels += [attrs["aria-label"]] if "aria-label" in attrs else []
        self.loads += [attrs[k] for k in ("src", "srcset") if k in attrs] + (
            [tag] if tag in ("script", "link", "img") else []
        )
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data.strip())

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html(swept, capsys):
    command.main([str(swept)])
    text = (swept / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and page.loads == [] and "@import" not in text and "url(http" not in text
    assert len(page.ids) == len(set(page.ids)) > 20
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used and used <= set(page.ids)
    assert len(page.links) == 20 and all((swept / link / "run.json").is_file() for link in page.links)
    assert text.count("<figure>") == 5 and "<title>attention=mla: " in text
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text))
    assert not drawn, "colours that do not change with the page"
    named = set(re.findall(r"var\((--\w+)\)", text))
    assert all(text.count(f"{name}: ") == 2 for name in named), "a variable for light and one for dark"
    capsys.readouterr()


def test_json_and_markdown(swept, built, capsys):
    command.main([str(swept), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((swept / "report.json").read_text())
    assert found["baseline"] == "attention=mha" and len(found["runs"]) == 20 and found["schema"] == 1
    row = found["rows"][2]
    assert row["comparison"]["seeds"] == list(SEEDS) and len(row["curve"]["mean"]) == 10
    lines = (swept / "report.md").read_text().splitlines()
    tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)]
    assert len(tables) == 3
    for i in tables:
        rows = lines[i - 1 : i + 1 + next(n for n, line in enumerate([*lines[i + 1 :], ""]) if not line)]
        assert len({len(re.findall(r"(?<!\\)\|", r)) for r in rows}) == 1
    assert "![attention=mha,gqa,mla,mqa: curves, differences, and loss against FLOPs](report.png)" in lines
    assert "[attention=gqa,seed=1](attention=gqa,seed=1)" in "\n".join(lines)
    assert markdown.text(built(swept), None).count("**better**") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_terminal(swept, built, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    report = built(swept)
    terminal.show(report, [swept / "report.html"])
    out = capsys.readouterr().out
    lines = [
        line for line in out.splitlines() if not line.startswith(("report: ", "not counted: "))
    ]  # paths stay whole
    assert max(map(len, lines)) <= width
    assert "attention=mla is better than attention=mha" in " ".join(out.split())
    names = {c.name for c in terminal.columns(report.tables[0], width)}
    assert {"variant", "validation loss", "difference", "verdict"} <= names
    assert ("memory" in names) == (width == 200)


# The first is the baseline, whose name is in the titles of figures.
NAMES = (r'C:\1 "b" id="c" $d$ <e>|*', r"x&y", r"C:\data", "#0072b2", "[a](b) ~~c~~ $d$ e_f_g", "&lt;")
FOLDERS = ("a|b (1)", "c&d", "[e](f)", "run", "g", "h")


def test_names_can_hold_anything(runs, tmp_path, capsys):
    """In titles, labels, hover titles, cells, links and sentences."""
    from markdown_it import MarkdownIt

    for i, (name, folder) in enumerate(zip(NAMES, FOLDERS, strict=True)):
        typed = {"overrides": (f"init_from={name}",), "changes": {"init_from": name}}
        runs.make(tmp_path / folder, 2.0 + i / 9, rows=3, **typed)
    write([tmp_path], out=tmp_path / "out", baseline=f"init_from={NAMES[0]}", show=False)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    links = [f"../{name}" for name in ("%5Be%5D%28f%29", "a%7Cb%20%281%29", "c%26d", "g", "h", "run")]
    assert page.links == links
    assert f"Difference in validation loss to init_from={NAMES[0]}" in page.labels
    assert {f"init_from={n}" for n in NAMES} <= set(page.texts)  # legend, labels and hover titles
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    shown = Page(MarkdownIt("js-default").render(text))
    assert shown.open == [] and shown.links == links
    assert {f"init_from={n}" for n in NAMES[1:]} | set(FOLDERS) <= set(shown.texts)
    assert any(f"against init_from={NAMES[0]}, on" in t for t in shown.texts)
    assert not re.search(r"(?<!\\)[$]", text.split("```")[0]), "a formula on GitHub"
    capsys.readouterr()


def test_where_it_is_written(swept, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs.make(tmp_path / "one", 2.0)
    command.main(["one"])
    assert "validation loss" in capsys.readouterr().out
    assert len(files(tmp_path / "report")) == 4
    command.main(["one", "out=elsewhere/deep"])
    assert len(files(tmp_path / "elsewhere" / "deep")) == 4
    capsys.readouterr()


def test_only_failed_runs(runs, tmp_path, capsys):
    write([runs.sweep(tmp_path / "s", {"mha": {1: None}, "mla": {1: None}})], out=tmp_path / "s")
    out = " ".join(capsys.readouterr().out.split())
    assert "The baseline, attention=mha, has no complete run" in out
    assert "not counted: attention=mla,seed=1: failed: the loss is not a number" in out
    assert not (tmp_path / "s" / "report.png").exists()


def test_a_count_that_a_record_has_as_null_is_nought(runs, tmp_path, capsys):
    nothing = {"tokens_seen": None, "parameters": {"total": None, "active": None}, "flops_per_token": None}
    write([runs.sweep(tmp_path / "s", {"mha": {1: 2.0}, "mla": {1: 2.1}}, **nothing)], out=tmp_path / "s")
    assert "2.0000" in capsys.readouterr().out


def test_pareto():
    points = [(1, 5), (2, 4), (2, 6), (3, 4.5), (4, 3)]
    assert figures.pareto(points) == [(1, 5), (2, 4), (4, 3)]
    assert figures.pareto(points, higher=True) == [(1, 5), (2, 6)]


def test_curves(runs, tmp_path):
    from llmlab.report import curves
    from llmlab.report.collect import collect

    for seed, loss in ((1, 2.0), (2, 2.2)):
        runs.make(tmp_path / str(seed), loss, seed=seed, rows=20)
    by_seed = {r.seed: r for r in collect([tmp_path]).runs}
    curve = curves.mean_curve(by_seed, "val_loss")
    assert (curve.tokens[0], curve.tokens[-1], len(curve.tokens)) == (1280, 12_800, 10)
    assert [curve.mean[-1], curve.low[-1], curve.high[-1]] == pytest.approx([2.1, 2.0, 2.2])
    assert curve.reaches(curve.mean[4]) == pytest.approx(curve.tokens[4]) and curve.reaches(0) is None
    paired = curves.difference({1: by_seed[2]}, {1: by_seed[1]}, "val_loss")
    assert paired.mean == pytest.approx([0.2] * 10)
    long = [(float(i), float(i % 2)) for i in range(5000)]
    thin = curves.band([long])
    assert len(thin.tokens) == curves.POINTS and thin.mean == pytest.approx([0.5] * curves.POINTS, abs=0.05)
    mixed = curves.band([[(0, 0.0), (10, 10.0)], [(5, 5.0), (20, 20.0)]])
    assert (mixed.tokens, mixed.mean) == ([5, 10], [5, 10])


def test_numbers_as_they_are_read():
    assert [power_of_ten(v) for v in (2.614e12, 1.0e6, 999)] == ["2.61e12", "1.00e6", "999"]
    assert [large(v) for v in (1.068e6, 7e9, 54_560)] == ["1.07M", "7B", "54,560"]
    assert [verdict.p(v) for v in (0.00001, 0.00042, 0.0314, None)] == ["<0.0001", "0.0004", "0.031", ""]
    assert [verdict.percent(v) for v in (-0.0123, 0.0, 0.00004)] == ["−1.2 %", "+0.0 %", "+0.004 %"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a folder with runs: llmlab report FOLDER..."),
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "empty: there is no run folder (one with a run.json) in it or below it"),
        (["sweep", "report.metric=val_los"], "report.metric=val_los: no completed run has it; did you mean val_loss"),
        (["sweep", "report.baseline=attention=mlaa"], "there is no such variant; did you mean attention=mla"),
        (["sweep", "report.basline=x"], "report.basline: there is no such key of llmlab report"),
        (["sweep", "baselin=x"], "did you mean report.baseline"),
        (["sweep", "--jsn"], "--jsn: must be KEY=VALUE"),
        (
            ["sweep", "report.tune=optimizer.lrr"],
            "report.tune=optimizer.lrr: no run has such a key; did you mean optimizer.lr",
        ),
        (["sweep", "out=sweep/sweep.json"], "out=sweep/sweep.json: no folder can be made there"),
    ],
)
def test_bad_input(words, message, runs, tmp_path, monkeypatch, capsys):
    from llmlab.commands import cli

    runs.sweep(tmp_path / "sweep", {"mha": {1: 2.0}, "mla": {1: 2.1}})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", *words]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""
    assert not list(tmp_path.rglob("report.*"))


def test_a_sweep_file_that_is_torn(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": {1: 2.0}})
    (s / "sweep.json").write_text("[")
    with pytest.raises(UserError, match=r"sweep.json: .*; delete it, or run the sweep again"):
        built(s)


@pytest.mark.slow  # a hundred run folders of 2,000 rows are written first
def test_a_hundred_runs(runs, tmp_path, capsys):
    losses = {f"v{i}": {s: 2.0 + i / 100 + s / 10 for s in range(1, 11)} for i in range(10)}
    s = runs.sweep(
        tmp_path / "s",
        losses,
    )
    for file in s.rglob("metrics.csv"):
        head, *rows = file.read_text().splitlines()
        file.write_text("\n".join([head, *(rows * 67)[:2000]]) + "\n")
    for i in range(50):
        (s / "attention=v0,seed=1" / "checkpoints" / f"step={i}").mkdir(parents=True)
    began = time.perf_counter()
    write([s], out=s)
    assert time.perf_counter() - began < 20  # 3 s alone on a slow core
    assert (s / "report.html").stat().st_size < 500_000
    capsys.readouterr()
