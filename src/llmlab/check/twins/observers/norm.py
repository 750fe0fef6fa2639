"""Observer of norms. Inputs: `x` of usual size, `small` values at which eps counts, and `large` ones; an output for each.

And `half` (2, D): of x[0, :2] rounded to bfloat16, in which the output is too, with weights in float32, as a run in mixed
precision has them.
"""

from __future__ import annotations

from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.settings import Setting


def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    norm = build(setting, sizes.dim, sizes.norm_eps)
    x = uniform("x", 2, 5, sizes.dim) + 0.3
    inputs = {"x": x, "small": 0.03 * x.flip(-1), "large": 1e4 * x.flip(0)}
    outputs = {key: norm(value) for key, value in inputs.items()}
    seen = given(setting, inputs, norm)
    outputs["half"] = norm.float()(x[0, :2].bfloat16())
    return Observed(seen, arrays(outputs))
