#!/usr/bin/env bash
# scipy 1.17.1: the noncentral t distribution is nan in a tail, for one n and not for its neighbours, where the value is 0 to
# machine precision; the power of a two-sided t-test written as the textbook has it is then nan for the clearest effects.
#
# Behaviour. stats.nct.cdf(-c, df, nc) with a large noncentrality nc is nan for some (df, nc) and a correct tiny number for
# others, without a warning. The power of a paired t-test with n pairs and effect d is P(T > c) + P(T < -c), with
# T ~ nct(n - 1, d sqrt(n)), so it is nan too, where it is 1. stats.nct.sf(c, ...) alone is 1.0 there.
#
# Output seen (d = 3, level 0.05; c = t.isf(0.025, n - 1)):
#   n    sf(c)         cdf(-c)   their sum
#   4    0.967         9.1e-13   0.967
#   10   1.000             nan     nan
#   20   1.000             nan     nan
#   30   1.000         4.3e-58   1.000
#   60   1.000             nan     nan
#   101  1.000        3.9e-185   1.000
#   bisection for a power of 0.8 up to n = 200, d = 3: 143, power(4) = 0.967
#
# One would have guessed that a distribution function is nan only for parameters out of its domain, and that a tail too small
# to be computed comes out as 0. It matters because every comparison with nan is false: a search for the least n with power
# >= 0.8 takes nan for "not enough" and goes on to larger n, so that the clearest effects are told the largest samples.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import math
import warnings

from scipy import stats

warnings.simplefilter("error")  # there is none


def tails(n, d):
    c, nc = stats.t.isf(0.025, n - 1), d * math.sqrt(n)
    return float(stats.nct.sf(c, n - 1, nc)), float(stats.nct.cdf(-c, n - 1, nc))


def enough(d, low=1, high=200):
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(tails(middle, d)) >= 0.8 else (middle, high)
    return high


print("n    sf(c)         cdf(-c)   their sum")
seen = {n: tails(n, 3) for n in (4, 10, 20, 30, 60, 101)}
for n, (above, below) in seen.items():
    print(f"{n:<4} {above:5.3f} {below:15.2g} {above + below:7.3f}")
print(f"bisection for a power of 0.8 up to n = 200, d = 3: {enough(3)}, power(4) = {sum(tails(4, 3)):.3f}")
ok = [n for n, (_, below) in seen.items() if math.isnan(below)] == [10, 20, 60]
ok &= all(above > 0.999 for n, (above, _) in seen.items() if n > 4)
ok &= sum(tails(4, 3)) > 0.8 and enough(3) > 4
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
