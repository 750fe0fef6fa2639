"""Twins of rewards, from their papers, one answer at a time."""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from llmlab.check.twins.observers.reward import FIELDS, N_RECORDS
from llmlab.twins import Given, twin

LACKING = {"reasoning_gym": "tests/data/test_reasoning.py"}


def outputs(given: Given, right: Callable[[str, str], object]) -> dict[str, np.ndarray]:
    """Outputs of a rule: a score is 1.0 where right(answer, the text that it must have)."""
    own = given.inputs[given.options["field"]]
    typed = given.options.get("text")
    pairs = zip(given.inputs["answers"], own, strict=True)
    scores = [
        1.0 if right(str(a), re.sub(r"^\s+|\s+$", "", str(t)) if typed is None else typed) else 0.0 for a, t in pairs
    ]
    needs = [float(typed is None and key == given.options["field"]) for key in FIELDS]
    return {"needs": np.array(needs), **{f"scores/{i}": np.array(scores[i::N_RECORDS]) for i in range(N_RECORDS)}}


@twin("reward", "exact", source="Rajpurkar et al. 2016, section 5 (exact match), up to white space around")
def exact(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.fullmatch(rf"\s*{re.escape(text)}\s*", answer))


@twin("reward", "contains", source="Lambert et al. 2024, section 6: a verifiable reward")
def contains(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.search(re.escape(text), answer))


@twin("reward", "ends_with", source="Lambert et al. 2024, section 6: a verifiable reward")
def ends_with(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.search(re.escape(re.sub(r"\s+$", "", text)) + r"\s*\Z", answer))


def scored(
    given: Given, score: Callable[[str, dict[str, str]], float], needs: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Outputs of a reward that gives score(answer, record)."""
    rows = zip(*(given.inputs[key] for key in ("answers", *FIELDS)), strict=True)
    scores = [score(str(a), {key: str(t) for key, t in zip(FIELDS, fields, strict=True)}) for a, *fields in rows]
    found = {f"scores/{i}": np.array(scores[i::N_RECORDS]) for i in range(N_RECORDS)}
    return {"needs": np.array([float(key in needs) for key in FIELDS]), **found}


# What the patterns of the settings match at the beginning of a text, by hand.
PATTERNS: dict[str, Callable[[str], str | None]] = {
    "(seven|[0-9])": lambda t: "seven" if t[:5] == "seven" else t[0] if t[:1] in tuple("0123456789") else None,
    "([a-z]+)": lambda t: "".join(itertools.takewhile(lambda c: "a" <= c <= "z", t)) or None,
}


@twin("reward", "regex", source="Lambert et al. 2024, section 6: a verifiable reward")
def regex(given: Given) -> dict[str, np.ndarray]:
    o = given.options

    def score(answer: str, record: dict[str, str]) -> float:
        match = PATTERNS[o["pattern"]]
        if o["whole"]:
            found = [answer.strip()] if match(answer.strip()) == answer.strip() != "" else []
        else:
            found = [m for i in range(len(answer)) if (m := match(answer[i:])) is not None][:1]
        return float(bool(found) and (o["field"] is None or found[0] == record[o["field"]].strip()))

    return scored(given, score, () if o["field"] is None else (o["field"],))


def numbers(text: str) -> list[float]:
    """The numbers in a text: from each place where one can begin, the longest that there is."""
    found, at = [], 0
    while at < len(text):
        lengths = [n for n in range(1, len(text) - at + 1) if is_number(text, at, at + n)]
        if lengths:
            found.append(float(text[at : at + lengths[-1]].replace(",", "")))
        at += max(lengths, default=1)
    return found


def is_number(text: str, begin: int, end: int) -> bool:
    piece, before, behind = text[begin:end], text[:begin][-1:], text[end:][:1]
    digits = piece.lstrip("+-")
    if set(piece) - set("0123456789+-.eE,") or not piece[-1].isdigit() or (behind.isdigit() and "," in piece):
        return False
    if digits[0] == "." if digits else True:
        return piece == digits and not before.isdigit() and digits[1:].isdigit()
    if before.isdigit() or before == "." or (piece != digits and (before.isalnum() or before == "_")):
        return False
    whole, *more = re.split("[.eE]", digits, maxsplit=1)[0].split(",")
    if more and (len(whole) > 3 or any(len(m) != 3 for m in more) or behind == ","):
        return False
    try:
        return math.isfinite(float(piece.replace(",", "")))
    except ValueError:
        return False


@twin("reward", "number", source="Cobbe et al. 2021: the last number of an answer")
def number(given: Given) -> dict[str, np.ndarray]:
    o = given.options

    def score(answer: str, record: dict[str, str]) -> float:
        mine, right = numbers(answer)[-1:], numbers(record[o["field"]])[-1]
        return float(bool(mine) and abs(mine[0] - right) <= o["tolerance"])

    return scored(given, score, (o["field"],))


def worth_of_length(answer: str, least: int, most: int | None, unit: str) -> float:
    n = len(answer.split()) if unit == "words" else len(answer.strip())
    short, long = max(least - n, 0), max(n - most, 0) if most is not None else 0
    return -min(1.0, short / least if short else long / most if most and long else 0.0)


@twin("reward", "length", source="a share of what is missing or too much")
def length(given: Given) -> dict[str, np.ndarray]:
    o = given.options
    return scored(given, lambda a, r: worth_of_length(a, o["least"], o["most"], o["unit"]), ())


def runs(text: str) -> bool:
    try:
        exec(text, {})
    except Exception:
        return False
    return True


@twin("reward", "code", source="Hendrycks et al. 2021: the share of the tests that an answer's program passes")
def code(given: Given) -> dict[str, np.ndarray]:
    """No answer gives a name to anything, so that each test can be run alone."""
    o = given.options

    def score(answer: str, record: dict[str, str]) -> float:
        text = record[o["field"]]
        tests = ast.literal_eval(text) if text[:2] == "['" else [text]
        right = [runs(test) for test in tests] if answer.strip() and runs(answer.strip()) else [False]
        return float(all(right)) if o["credit"] == "all" else sum(right) / len(right)

    return scored(given, score, (o["field"],))


@twin("reward", "function", source="the function that it is given, here of Python's operator module")
def function(given: Given) -> dict[str, np.ndarray]:
    # A text is no record.
    return scored(given, lambda a, r: float(given.options["name"] == "operator.ne"), ())


@twin("reward", "sum", source="the weighted sum of what its parts give")
def weighted(given: Given) -> dict[str, np.ndarray]:
    o = given.options
    each = list(zip(o["of"], o["weights"] or [1.0] * len(o["of"]), o["options"] or [{}] * len(o["of"]), strict=True))

    def one(name: str, options: dict[str, object], answer: str, record: dict[str, str]) -> float:
        if name == "length":
            return worth_of_length(answer, 1, options.get("most"), "characters")  # type: ignore[arg-type]
        text = record[str(options.get("field", "answer"))].strip()
        return float(answer.strip() == text if name == "exact" else text in answer)

    needs = tuple(str(options.get("field", "answer")) for name, _, options in each if name in ("exact", "contains"))
    if o["of"][0] == "model":
        of_model, exact = (
            each[0][1] * given.inputs["judged/reward"],
            scored(given, lambda a, r: each[1][1] * one("exact", {}, a, r), needs),
        )
        return {k: v + of_model[int(k[7:]) :: N_RECORDS] if k != "needs" else v for k, v in exact.items()}
    return scored(given, lambda a, r: sum(w * one(n, own, a, r) for n, w, own in each), needs)


@twin("reward", "model", source="Ouyang et al. 2022, section 3.5: the reward model's score is the reward")
def model(given: Given) -> dict[str, np.ndarray]:
    # In float32, as rewards are.
    judged = given.inputs["judged/reward"]
    return {"needs": np.zeros(len(FIELDS)), **{f"scores/{i}": judged[i::N_RECORDS] for i in range(N_RECORDS)}}
