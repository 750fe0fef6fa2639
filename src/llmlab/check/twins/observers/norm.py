"""Observer of norms. Inputs: `x` of usual size, `small` values at which eps counts, and `large` ones; an output for each."""

from __future__ import annotations

from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.settings import Setting


def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    norm = build(setting, sizes.dim, sizes.norm_eps)
    x = uniform("x", 2, 5, sizes.dim) + 0.3
    inputs = {"x": x, "small": 0.03 * x.flip(-1), "large": 1e4 * x.flip(0)}
    return Observed(given(setting, inputs, norm), arrays({key: norm(value) for key, value in inputs.items()}))
