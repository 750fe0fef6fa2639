"""Rope in config.json, in either dialect or both at once: resolved as the reference resolves it, and written back.

The older dialect has `rope_theta` and `rope_scaling`, the newer one `rope_parameters`, in a few families one for each type
of layer. A `rope_scaling` that is not empty stands in the place of `rope_parameters`, theta within either counts before
that at the top, and so does "rope_type" before "type".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from llmlab.errors import UserError
from llmlab.hub.config_ranges import AMOUNT, COUNT, OVER, THETA, Number
from llmlab.hub.config_ranges import SHARE as PART

Config = dict[str, Any]

SCALINGS: dict[str, tuple[str, ...]] = {  # rope_type -> the keys that it alone has
    "default": (),
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "short_factor", "long_factor"),
}
NEEDED = {  # those that the reference does not do without
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
RELATIVE = ("yarn", "longrope")  # whose factor, where it is null, is that of the positions
ORIGINAL, SHARE = "original_max_position_embeddings", "partial_rotary_factor"
NUMBERS = {
    "factor": Number(0.0, 1e6, OVER),
    "low_freq_factor": AMOUNT,
    "high_freq_factor": AMOUNT,
    "beta_fast": AMOUNT,
    "beta_slow": AMOUNT,
    "attention_factor": AMOUNT,
    "mscale": Number(0.0, 1e6),
    "mscale_all_dim": Number(0.0, 1e6),
}


def rope(
    c: Config,
    parameters: Config | None = None,
    *,
    partial: float | None = None,
    theta_key: str = "rope_theta",
    share_key: str = SHARE,
    even: int | None = None,
    **more: float,
) -> Config:
    """Options of our rope from config.json.

    parameters: those of one type of layer (`by_layer`), None for those of all. partial: the share of a head that is rotated
    where config.json does not say it; None: the family rotates all of it. theta_key, share_key: the family's names at the
    top. even: the width of a head, of which the family can't rotate an odd number of dims.
    """
    nested = parameters is not None
    p: Config = dict(parameters_of_all(c) if parameters is None else parameters)
    if blocks := [key for key, value in p.items() if isinstance(value, dict)]:
        raise UserError(f"config.json: rope_parameters by type of layer ({', '.join(blocks)}) are not of this family")
    # standardize_rope_params sets rope_type from type, the older key, only where it lacks.
    kind = p.get("rope_type", p.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise UserError(f"config.json: rope_type={kind!r} is not implemented; known: {', '.join(SCALINGS)}")
    if partial is None:
        for share in (c.get(share_key), p.get(SHARE)):
            if share not in (None, 1):
                raise UserError(f"config.json: {SHARE}={share!r} is not implemented; known: 1.0")
    else:
        share = p.get(SHARE, c.get(share_key, partial))
        if share is None and SHARE not in p and share_key == SHARE and SHARE in c:
            # The reference takes null at the top for "not said", and its own default is gone by then.
            share = 1.0
        more["fraction"] = PART.of(SHARE if SHARE in p else share_key, share)
        if even is not None and (dims := int(even * more["fraction"])) % 2:
            raise UserError(
                f"config.json: {SHARE}={share} of a head of {even} is {dims} dims, which this family can't turn in pairs"
            )
    theta = p.get("rope_theta", c.get(theta_key, 10000.0))
    options: Config = {
        "theta": THETA.of("rope_theta" if "rope_theta" in p else theta_key, theta),
        "scaling": "none" if kind == "default" else kind,
        "factor": 1.0,
        "original_max": None,
    }
    if kind == "default":
        return {**options, **more}
    if missing := [key for key in NEEDED[kind] if key not in p]:
        raise UserError(f"config.json: rope_type={kind} needs {', '.join(missing)}, which is not there")
    longest = COUNT.of("max_position_embeddings", c["max_position_embeddings"])
    original = longest
    if kind in ("llama3", *RELATIVE):
        # At the top it counts for more than within (standardize_rope_params), but not for parameters by type of layer.
        said = c if ORIGINAL in c and not nested else p
        original = COUNT.of(ORIGINAL, said.get(ORIGINAL, longest))
    # As DeepSeek's and Phi-3's files leave it to be computed (_compute_yarn_parameters, _compute_longrope_parameters).
    ratio = longest / original if kind in RELATIVE and p.get("factor") is None else p.get("factor")
    options["factor"] = NUMBERS["factor"].of("factor", ratio)
    # Linear scaling divides positions by a constant; the others go by a length.
    if kind != "linear":
        options["original_max"] = int(original)
    for key in SCALINGS[kind]:
        if p.get(key) is None and key not in NEEDED[kind] and (key != "truncate" or key not in p):
            continue
        if key == "truncate":
            options[key] = bool(p[key])
        elif key.startswith("beta_") and not p[key]:
            # _compute_yarn_parameters: `get("beta_fast") or 32`, so that 0 is "not said".
            continue
        elif key in ("short_factor", "long_factor"):
            options[key] = _divisors(key, p[key])
        else:
            options[key] = NUMBERS[key].of(key, p[key])
    # _compute_yarn_parameters asks config.rope_parameters itself for it, not the block of the layer's type.
    if nested and options.pop("truncate", True) is False:
        _warn("truncate=false in rope_parameters of a type of layer is not read, as by transformers")
    # llama3 divides by their difference, and yarn's ramp would run backwards: transformers only warns.
    _ordered(options, "low_freq_factor", "high_freq_factor", 1.0, 4.0)
    _ordered(options, "beta_slow", "beta_fast", 1.0, 32.0)
    return {**options, **more}


def parameters_of_all(c: Config) -> Config:
    """Rope's parameters as config.json states them for all layers, in either dialect."""
    # `or`, not `is None`: an empty rope_scaling does not displace rope_parameters (convert_rope_params_to_dict).
    return c.get("rope_scaling") or c.get("rope_parameters") or {}


def by_layer(
    c: Config, thetas: Mapping[str, tuple[str, float]], scaled: Iterable[str], *, strict: bool = False
) -> dict[str, Config]:
    """`rope_parameters` of each type of layer. thetas: type -> the older dialect's key for its theta, and the usual one;
    scaled: the types that the older `rope_scaling` is of. strict: the reference refuses a null and any other key.
    """
    given: Config | None = c.get("rope_parameters")
    scaling: Config | None = c.get("rope_scaling")
    blocks: Config = {name: {"rope_type": "default"} for name in thetas} if given is None else dict(given)
    for name in () if scaling is None else scaled:
        assert scaling is not None
        if not isinstance(blocks.get(name), dict):
            raise UserError(f"config.json: rope_scaling is given, but rope_parameters have no {name} that it is of")
        # `update` in the reference: what rope_scaling says counts for more than what was there.
        blocks[name] = {**blocks[name], **scaling}
        # The block says rope_type="default" already, and the older `type` is asked for only where it lacks.
        if "type" in scaling and blocks[name].get("rope_type") == "default" != scaling["type"]:
            _warn(
                f"rope_scaling says type={scaling['type']!r} but no rope_type; {name} is not scaled, as by transformers"
            )
    if flat := sorted(set(blocks) - set(thetas)):
        text = f"rope_parameters are read by type of layer ({', '.join(thetas)}), not {', '.join(flat)}"
        if strict:
            raise UserError(f"config.json: {text}")
        _warn(text)
    out = {}
    for name, (key, usual) in thetas.items():
        block = blocks.get(name)
        if not isinstance(block, dict) and (block is not None or (strict and name in blocks)):
            raise UserError(f"config.json: rope_parameters.{name}={block!r} must be an object")
        out[name] = {"rope_type": "default"} if block is None else dict(block)
        if "rope_theta" not in out[name]:
            out[name]["rope_theta"] = THETA.of(key, c.get(key, usual))
    return out


def rope_parameters(options: Mapping[str, Any], longest: int, *, partial: bool = False) -> Config:
    """The reverse of `rope`, in the newer dialect. longest: the model's positions; partial: not all of a head may turn."""
    kind = options.get("scaling", "none")
    out: Config = {"rope_theta": options.get("theta", 10000.0), "rope_type": "default" if kind == "none" else kind}
    if partial:
        out[SHARE] = options.get("fraction", 1.0)
    if kind == "none":
        return out
    out["factor"] = options["factor"]
    if kind in ("llama3", *RELATIVE):
        out[ORIGINAL] = options["original_max"] or longest
    return out | {n: options[n] for n in SCALINGS[kind] if options.get(n) is not None}


def _divisors(key: str, value: object) -> list[float]:
    if not isinstance(value, list) or not value:
        raise UserError(f"config.json: {key}={value!r} must be a list of numbers")
    return [AMOUNT.of(f"{key}[{i}]", x) for i, x in enumerate(value)]


def _ordered(options: Config, low: str, high: str, usual_low: float, usual_high: float) -> None:
    a, b = options.get(low, usual_low), options.get(high, usual_high)
    if (low in options or high in options) and a >= b:
        raise UserError(f"config.json: {low}={a:g} must be less than {high}={b:g}")


def _warn(text: str) -> None:
    warnings.warn(f"config.json: {text}", stacklevel=3)
