"""The lines of a sweep, from the files of its points."""

import io
import json
import time
from pathlib import Path

from llmlab.sweep.board import Board
from llmlab.sweep.plan import Plan, Point


def test_lines_and_the_time_that_is_left(tmp_path):
    """Points take 10 s; of four, one at a time, one is complete before, one ends now, one has run for 4 s."""
    points = tuple(Point(f"seed={i}", (f"seed={i}",), "") for i in range(4))
    plan = Plan("a", tmp_path, (), (), (), (), {"seed": list("0123")}, (), points, jobs=1)
    out = io.StringIO()
    board = Board(plan, "now", {"seed=0"}, out)

    def note(seed, began, ended=None, how="new", invocation="now", **run):
        folder = tmp_path / f"seed={seed}"
        folder.mkdir(exist_ok=True)
        times = {"began": began, "ended": ended, "how": how, "invocation": invocation}
        Path(folder, "point.json").write_text(json.dumps(times))
        Path(folder, "run.json").write_text(json.dumps({"metrics": {}, **run}))

    now = time.time()
    note(0, now - 99, now - 90)
    note(3, now - 99, now - 90, invocation="earlier", status="completed")
    note(1, now - 14)
    board.look()
    note(1, now - 14, now - 4, status="completed", metrics={"val_loss": 1.5})
    note(2, now - 4, how="resume")
    board.look()
    note(2, now - 4, now, how="resume", status="failed", reason="no")
    board.look()
    board.look()
    assert out.getvalue().splitlines() == [
        "[2/4] seed=1  begins",
        "[2/4] seed=1  val loss 1.5000  10 s  (about 20 s left)",
        "[3/4] seed=2  goes on",
        "[3/4] seed=2  failed: no  4 s  (about 7 s left)",
    ]
