"""The meaning of the numbers in words, and the way numbers are written."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.report.power import CONFIDENCE
from llmlab.report.stats import ALPHA, MOST_SEEDS, Comparison

# The minus sign is as wide as the plus in most fonts, so signed numbers
# stand in line; a hyphen also lets a line break behind it.
MINUS = "\N{MINUS SIGN}"

# How the interval of a difference is corrected: the one sentence that every report has.
METHOD = (
    f"Differences are paired by seed; their intervals are Student's t with n{MINUS}1 degrees of freedom, at the level at "
    f"which Holm's procedure tests each (0.05/m for the smallest of m p-values, 0.05/(m{MINUS}1) for the next, and so on "
    "until one is not significant, whose level holds for all that follow), so an interval leaves out 0 exactly where the "
    "adjusted p is at most 0.05."
)
MEANS = "The \N{PLUS-MINUS SIGN} beside a mean is the uncorrected 95 % interval over its own seeds (Student's t)."
NEEDED = (
    "The number of seeds needed is for 80 % power of the two-sided paired t-test at that level if the effect, mean over "
    f"standard deviation of the differences, is the one observed; in brackets, for the ends of its {100 * CONFIDENCE:g} % "
    "confidence interval (noncentral t), which is wide where few seeds were seen."
)

SOONER = (
    "Where a curve met another's final loss is read in mid-run, when its learning rate had not come down yet: a run made "
    "for that many tokens would be a little better still."
)


def word(c: Comparison | None, higher: bool) -> str:
    """better, worse, identical, not distinguishable, one seed, no common seed."""
    if c is None or c.n == 0:
        return "no common seed"
    if c.n == 1:
        return "one seed"
    if c.identical:
        return "identical"
    if not c.significant:
        return "not distinguishable"
    assert c.mean is not None
    return "better" if (c.mean > 0) == higher else "worse"


def short(c: Comparison | None, verdict: str) -> str:
    """The verdict as a cell of a table."""
    if verdict == "not distinguishable" and c is not None:
        return f"not distinguishable with {count(c.n, 'seed')}; {needed(c)} would be needed{_needed_range(c)}"
    if verdict == "one seed":
        return "one seed: no interval, no verdict"
    if verdict == "identical" and c is not None:
        return f"identical in {count(c.n, 'seed')}"
    return verdict


def sentence(name: str, baseline: str, c: Comparison | None, verdict: str, base_mean: float, digits: int) -> str:
    """The verdict as a sentence with its numbers."""
    if c is None or c.n == 0:
        return f"{name} has no seed in common with {baseline}: run both with the same seeds."
    assert c.mean is not None
    if verdict == "identical":
        return f"{name} is identical to {baseline} in {_all(c.n)}: every loss is equal, to the last digit."
    # Over the absolute value: the loss of a policy is negative, and a share of it must keep the difference's sign.
    by = f"{signed(c.mean, digits)} ({percent(c.mean / abs(base_mean))})" if base_mean else signed(c.mean, digits)
    if c.n == 1:
        return (
            f"{name} differs from {baseline} by {by} in one seed: that gives no interval and no verdict. "
            "Run more seeds, e.g. seed=1,2,3."
        )
    seeds, range_ = count(c.n, "seed"), f"{by}, {interval_level(c)} interval {interval(c, digits)}, {_p(c.adjusted)}"
    if verdict == "not distinguishable":
        return f"{name} is {verdict} from {baseline} with {seeds}; {needed(c)} would be needed{_needed_range(c)}: {range_}."
    return f"{name} is {verdict} than {baseline}: {range_}, {seeds}."


def needed(c: Comparison) -> str:
    return f"more than {MOST_SEEDS}" if c.needed is None else f"about {c.needed}"


def needed_range(c: Comparison) -> str:
    """ "3 to 40", "8 or more" where the upper end is beyond what is looked for, "" where both are or they are equal."""
    if c.needed_low == c.needed_high:
        return ""
    return f"{c.needed_low} or more" if c.needed_high is None else f"{c.needed_low} to {c.needed_high}"


def _needed_range(c: Comparison) -> str:
    return f" ({text})" if (text := needed_range(c)) else ""


def _all(n: int) -> str:
    return "both seeds" if n == 2 else f"all {n} seeds"


def interval_level(c: Comparison) -> str:
    """ "95 %" or, corrected, e.g. "97.5 %"."""
    # Holm's levels are not round: 0.05 / 3 makes an interval of 98.33 %.
    return f"{100 * (1 - (c.level or ALPHA)):.4g} %"


# ---------------------------------------------------------------- numbers


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(share: float) -> str:
    # A share of 0.04 % would be written +0.0 %.
    decimals = 1 if abs(share) >= 0.001 or share == 0 else 3
    return f"{100 * share:+.{decimals}f} %".replace("-", MINUS)


def interval(c: Comparison, digits: int = 4) -> str:
    if c.low is None or c.high is None:
        return ""
    return f"[{signed(c.low, digits)}, {signed(c.high, digits)}]"


def format_number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)


def p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def _p(value: float | None) -> str:
    text = p(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def listed(names: Sequence[str]) -> str:
    """Names, some of which may have commas of their own."""
    return ("; " if any(", " in n for n in names) else ", ").join(names)


def joined_names(names: Sequence[str]) -> str:
    """Words for variants of which the same is said: several with names that would not be told from each other are counted."""
    return f"{len(names)} variants" if len(names) > 1 and any(", " in n for n in names) else listed(names)


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def memory(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.0f} MiB"
