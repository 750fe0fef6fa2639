"""Small runs in this process, and what the metrics.csv of two have in common."""

from llmlab.config.compose import compose
from llmlab.training.run import train


def run(folder, *overrides):
    last = {o.partition("=")[0]: o for o in overrides}  # a key may be given once only
    return train(compose(list(last.values())), folder)


def numbers(folder):
    """The lines of metrics.csv without `seconds`, the one column that differs from one time to the next."""
    lines = [line.rpartition(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert lines[0][2] == "seconds"
    assert all(float(seconds) >= 0 for _, _, seconds in lines[1:])
    return [numbers for numbers, _, _ in lines]
