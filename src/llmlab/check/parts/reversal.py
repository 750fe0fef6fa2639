"""The check of an objective that what it prepares of a text gives the text back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.check import restoring
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.restoring.reverse import Prepared, words
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import settings
from llmlab.check.twins.observers import texts
from llmlab.check.twins.observers.texts import Text
from llmlab.slots import Objective

N_DRAWS = 50


def reversal(subject: Subject) -> None:
    """What an objective prepares gives the text back, each token once, at every setting, by what it says that it `restores`."""
    spec = tested_part(subject, "objective")
    if spec.attribute("restores") is None:
        raise NotApplicable("it does not say how its samples give the text back (`restores`)")
    for setting in settings.of_part("objective", spec.name):
        special = texts.vocabulary(setting).special
        for name, text in restoring.texts_of(texts.made(setting, texts.SIZE, 40)).items():
            seq_len = len(text.tokens) - 1
            objective = texts.made(setting, texts.SIZE, seq_len)
            before = text.tokens.copy()
            for prepared in texts.draws(objective, text, N_DRAWS):
                _restored(objective, prepared, text, special, f"{setting}, the text {name!r}")
            if not np.array_equal(before, text.tokens):
                raise CheckFailed(f"{setting}: it changes the tokens that it is given")


def _restored(objective: Objective, prepared: Prepared, text: Text, special: Mapping[str, int], where: str) -> None:
    kind = restoring.of(objective)
    back = kind.reverse(prepared, text, special)
    want = text.tokens[: len(back) if kind.left_out is None else len(text.tokens) - kind.left_out]
    if not np.array_equal(back, want):
        raise CheckFailed(f"{where}: {words(want)} comes back as {words(back)}")
    n = kind.targets(prepared)
    counts, wanted = list(objective.targets(dict(prepared)).values()), [n, *kind.further(n)]
    # Of several terms some may be over other targets than labels.
    if counts != wanted and not (kind.others_count and n in counts):
        raise CheckFailed(f"{where}: it counts {counts} targets of {wanted}")
