"""What the metrics.csv of two runs have in common."""


def numbers(folder):
    """The lines of metrics.csv without `seconds`, the one column that differs from one time to the next."""
    lines = [line.rpartition(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert lines[0][2] == "seconds"
    assert all(float(seconds) >= 0 for _, _, seconds in lines[1:])
    return [numbers for numbers, _, _ in lines]
