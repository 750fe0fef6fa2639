"""metrics.csv: rows behind a checkpoint are cut, floats are exact, what can't be read is named by its line."""

import pytest

from llmlab.errors import UserError
from llmlab.runs import metrics


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
