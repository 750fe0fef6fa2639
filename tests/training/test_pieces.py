"""The small things around a run, each against what it says."""

import math
import time

import pytest
import torch

from llmlab.errors import UserError
from llmlab.runs import metrics
from llmlab.training import guard, meter
from llmlab.training.budget import horizon
from llmlab.training.clipping import clip_by_norm
from llmlab.training.progress import Progress, duration
from llmlab.training.recipe import Cut
from llmlab.training.step_metrics import StepMetrics, Summary

CPU = torch.device("cpu")


def one(x):
    return x


# ---------------------------------------------------------------- sums and counts of steps


def pair(total, n):
    return torch.tensor(float(total)), torch.tensor(n)


def test_a_summary_is_sums_over_counts():
    found = StepMetrics()
    for micro in ([(6.0, 2, 1.0), (3.0, 1, 4.0)], [(10.0, 4, 0.0), (2.0, 2, 3.0)]):
        targets = {"nll": torch.tensor(sum(n for _, n, _ in micro))}
        for total, n, right in micro:
            found.add({"nll": torch.tensor(total)}, targets, {"accuracy": pair(right, n)})
        found.close(torch.tensor(0.5))
    summary = found.flush(one)
    assert summary.losses == [9 / 3, 12 / 6]
    assert summary.norms == [0.5, 0.5]
    assert summary.loss == 2.5
    assert summary.logs == {"accuracy": 8 / 9}
    assert len(found) == 0


def filled(total):
    found = StepMetrics()
    found.add({"nll": torch.tensor(total)}, {"nll": torch.tensor(4)}, {"nll": pair(total, 2)})
    found.close(torch.tensor(1.0))
    return found


def test_two_terms_have_a_count_each():
    found = StepMetrics()
    counts = {"mlm": torch.tensor(12), "pairs": torch.tensor(4)}
    for mlm, pairs in ((6.0, 1.0), (4.0, 3.0)):
        found.add({"mlm": torch.tensor(mlm), "pairs": torch.tensor(pairs)}, counts, {"mlm": pair(mlm, 3)})
    found.close(torch.tensor(0.25))
    rows = torch.stack([torch.stack(found.rows)] * 2)
    assert found.peek(lambda t: 2 * t) == Summary([20 / 12 + 8 / 4], [0.25], {"mlm": 20 / 12})
    alone = StepMetrics()
    alone.load(found.state(lambda _: rows), 0, 1)
    assert alone.flush(one) == Summary([20 / 12 + 8 / 4], [0.25], {"mlm": 20 / 12})


def test_a_term_that_is_counted_otherwise_than_it_was_divided_is_refused():
    with pytest.raises(UserError, match=r"'nll' of the objective has 2 targets by its `loss` and 4 by its `targets`"):
        filled(2.0).flush(one)  # of one rank of two: the other's are missing


def test_names_may_come_in_another_order():
    found = StepMetrics()
    counts = {"a": torch.tensor(3), "b": torch.tensor(4)}
    for names in ("ab", "ba"):
        sums = {name: torch.tensor({"a": 3.0, "b": 8.0}[name]) for name in names}
        shown = {name: pair(sums[name], {"a": 1.5, "b": 2}[name]) for name in names}
        found.add(sums, {name: counts[name] for name in names}, shown)
    found.close(torch.tensor(1.0))
    assert found.flush(one) == Summary([6 / 3 + 16 / 4], [1.0], {"a": 2.0, "b": 4.0})


@pytest.mark.parametrize("old", [False, True])
def test_steps_of_two_ranks_are_restored_on_two_and_on_one(old):
    ranks = filled(2.0), filled(6.0)
    rows = torch.stack([torch.stack(r.rows) for r in ranks])
    state = ranks[0].state(lambda _: rows)
    if old:  # as checkpoints had it before a loss had several terms
        del state["terms"]
    again = StepMetrics()
    again.load(state, 1, 2)
    assert torch.equal(torch.stack(again.rows), torch.stack(ranks[1].rows))
    alone = StepMetrics()
    alone.load(state, 0, 1)
    assert alone.flush(one) == Summary([2.0], [1.0], {"nll": 2.0})


# ---------------------------------------------------------------- guard


@pytest.mark.parametrize(("losses", "norms", "step"), [([1, math.nan], [1, 1], 20), ([1, 1], [math.inf, 1], 19)])
def test_the_step_that_is_no_number_is_named(losses, norms, step):
    with pytest.raises(guard.Diverged) as error:
        guard.check(Summary(losses, norms, {}), 20, 5.0)
    assert error.value.step == step


def test_an_explosion_is_a_mean_three_times_the_first_loss():
    assert guard.check(Summary([7.0, 6.0], [1.0, 1.0], {}), 2, None) == 7.0
    assert guard.check(Summary([20.0, 21.5], [1.0, 1.0], {}), 4, 7.0) == 7.0
    with pytest.raises(guard.Diverged, match="exploded"):
        guard.check(Summary([20.0, 23.0], [1.0, 1.0], {}), 4, 7.0)
    guard.check(Summary([2.9], [1.0], {}), 4, 0.01)  # a model that starts near 0 may rise to 3


# ---------------------------------------------------------------- clipping


@pytest.mark.parametrize("limit", [None, 0.5, 1000.0])
def test_clipping_is_torchs(limit):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(7))] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    norm = clip_by_norm(ours, limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# ---------------------------------------------------------------- budget and batch


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"tokens": 1000}, 8),
        ({"tokens": 1024}, 8),
        ({"tokens": 1025}, 9),
        ({"steps": 5}, 5),
        ({"flops": 2560.0}, 2),
        ({"minutes": 2.0}, 4),
    ],
)
def test_a_budget_is_covered_by_whole_steps(budget, steps):
    found = horizon(budget, 128, 10.0, lambda minutes: minutes * 200)
    assert (found.steps, found.tokens) == (steps, steps * 128)


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "steps": 5}, {"tokens": 0}, {"flops": math.inf}])
def test_a_budget_that_is_none(budget):
    with pytest.raises(UserError, match=r"budget\."):
        horizon(budget, 128, 10.0, lambda minutes: 0)


def test_a_batch_is_cut_evenly_or_not_at_all():
    assert Cut.make(32, None, 2) == Cut(32, 16, 2, 1)
    assert Cut.make(32, 4, 2) == Cut(32, 4, 2, 4)
    with pytest.raises(UserError, match=r"train.micro_batch_size=5 .* 1, 2, 4, 8"):
        Cut.make(8, 5, 1)
    with pytest.raises(UserError, match=r"trainer.devices=3"):
        Cut.make(8, None, 3)


# ---------------------------------------------------------------- metrics


def test_rows_behind_a_checkpoint_are_cut(tmp_path):
    table, columns = metrics.Table(tmp_path / "m.csv"), ["step", "loss", "val_loss"]
    for row in (
        {"step": 2, "loss": 0.1},
        {"step": 4, "loss": 0.2},
        {"step": 4, "val_loss": 0.3},
        {"step": 6, "loss": 0.4},
    ):
        table.write(row, columns)
    with open(tmp_path / "m.csv", "a") as f:
        f.write("8,0.")  # torn
    metrics.cut(tmp_path / "m.csv", 4, keep_validation=True)
    assert (tmp_path / "m.csv").read_text() == "step,loss,val_loss\n2,0.1,\n4,0.2,\n4,,0.3\n"
    metrics.cut(tmp_path / "m.csv", 4, keep_validation=False)
    assert (tmp_path / "m.csv").read_text() == "step,loss,val_loss\n2,0.1,\n4,0.2,\n"
    assert metrics.read(tmp_path / "m.csv")[1] == {"step": 4.0, "loss": 0.2, "val_loss": None}


def test_floats_are_written_exactly(tmp_path):
    metrics.Table(tmp_path / "m.csv").write({"step": 1, "loss": 0.1 + 0.2}, ["step", "loss"])
    assert metrics.read(tmp_path / "m.csv")[0]["loss"] == 0.1 + 0.2


# ---------------------------------------------------------------- meter


def test_pauses_and_the_warm_up_do_not_count():
    assert meter.Meter(100, 7, 9).begin == 7
    watch = meter.Meter(100, 0, 50)
    assert watch.begin == 3
    watch.mark(2)
    assert watch.tokens_per_second is None
    watch.start(3, CPU)
    time.sleep(0.05)
    watch.pause()
    time.sleep(0.3)
    watch.go()
    time.sleep(0.05)
    watch.mark(5)
    assert 0.1 <= watch.seconds < 0.25
    assert watch.tokens == 200


def test_mfu_is_at_most_one_and_the_peak_is_measured_once(tmp_path, monkeypatch):
    measured = iter([1e9, 2e9, 3e9])
    monkeypatch.setattr(meter, "measure_peak", lambda *_: next(measured))
    assert meter.mfu(0.5e9, 1, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(0.5e9, 1, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(1.0e9, 2, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(1.5e9, 1, CPU, torch.float32, tmp_path) == 0.75  # beaten: measured again
    assert meter.mfu(9e9, 1, CPU, torch.float32, tmp_path) == 1.0


def test_the_measured_peak_is_that_of_a_matmul():
    n = 512
    a = torch.randn(n, n)
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    rate = 5 * 2 * n**3 / (time.perf_counter() - start)
    assert meter.measure_peak(CPU, torch.float32, seconds=0.05) > rate / 4


# ---------------------------------------------------------------- progress


def test_outside_of_a_terminal_a_line_now_and_then(capsys):
    progress = Progress(1000)
    for step in range(1, 500):
        progress.update(step, 2.5, 1000.0, 100)
    progress.say("step 500  validation loss 2.4")
    out = capsys.readouterr().out.splitlines()
    assert out == ["step 1/1,000  loss 2.5000  1,000 tokens/s  1:40 left", "step 500  validation loss 2.4"]


def test_durations():
    assert [duration(s) for s in (4.4, 59.6, 187, 7500)] == ["4 s", "1:00", "3:07", "2:05:00"]


def test_the_way_to_resume_can_be_typed():
    """A shell and Hydra's grammar read the same folder out of it, also with spaces, quotes' neighbours and =."""
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    from llmlab.training.task import typed

    for folder in ("runs/2026-01-01/a", "my runs/lr=3,x", "a [b] {c}", "/tmp/it's"):
        (word,) = shlex.split(typed("resume", folder))
        assert OverridesParser.create().parse_override(word).value() == folder


def test_parts_of_a_record_have_what_the_objective_brings():
    from llmlab.config import layout
    from llmlab.config.compose import compose
    from llmlab.training.run_header import objective_parts

    assert objective_parts(layout.resolve(compose(["model=bert"]))) == {"mask": "bidirectional", "heads.tokens": "mlm"}
    assert objective_parts(layout.resolve(compose(["model=t5"]))) == {
        "stacks.encoder.mask": "bidirectional",
        "stacks.decoder.mask": "causal",
        "heads.tokens": "lm",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("20,1.5", "line 3: has 2 cells, but the first line has 3"),
        ("20,abc,1", "line 3: loss must be a number, but is 'abc'"),
        ("20,\0,1", "line 3: loss must be a number, but is"),
        (f"20,{'9' * 200_000},1", "line 3: field larger than field limit"),
        (f"20,{'a' * 5000},1", "line 3: loss must be a number, but is 'aaa"),
    ],
)
def test_a_row_of_metrics_that_can_not_be_read_is_named(tmp_path, line, said):
    from llmlab.errors import UserError
    from llmlab.runs import metrics

    path = tmp_path / metrics.METRICS
    path.write_text(f"step,loss,val_loss\n10,2.5,\n{line}\n30,1.")
    for use in (metrics.read, lambda p: metrics.cut(p, 20, keep_validation=True)):
        with pytest.raises(UserError, match=said) as e:
            use(path)
        assert str(e.value).startswith(str(path)) and len(str(e.value)) < 300
    path.write_text("step,loss,val_loss\n10,2.5,\n20,2.0,1.5\n30,1.")
    assert metrics.read(path) == [
        {"step": 10, "loss": 2.5, "val_loss": None},
        {"step": 20, "loss": 2.0, "val_loss": 1.5},
    ]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        metrics.read(path)
