"""What is prepared of a text, and how parameters move."""

from __future__ import annotations

import numpy as np

from bugs import around, bug
from llmlab_plugins.objective import mix, mlm, span_corruption
from llmlab_plugins.objective._masking import Masking, Runs
from llmlab_plugins.optimizer.adamw import AdamW
from llmlab_plugins.schedule import cosine


@bug("twice as many tokens are masked", definition="objective=mlm")
def twice_the_rate():
    def prepare(original, self, sample, rng):
        runs, self.runs = self.runs, Runs(min(1.0, 2 * self.runs.rate), self.runs.longest)
        try:
            return original(self, sample, rng)
        finally:
            self.runs = runs

    return around(mlm.MaskedLM, "prepare", prepare)


@bug("a random token in place of a masked one may be a special one", definition="objective=mlm")
def random_special():
    def prepare(original, self, sample, rng):
        of, ordinary = self.masking, self.masking.ordinary
        of.ordinary = np.arange(len(ordinary) + len(of.special_ids))
        try:
            return original(self, sample, rng)
        finally:
            of.ordinary = ordinary

    return around(mlm.MaskedLM, "prepare", prepare)


@bug("of a span that is taken out a token is told twice and another is lost", reversal="objective=span_corruption")
def token_told_twice():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        labels = prepared["labels"].copy()
        last = len(labels) - 2
        labels[last] = labels[last - 1] if labels[last - 1] not in self.sentinel_ids else prepared["source_ids"][0]
        return {**prepared, "labels": labels, "ids": np.concatenate([prepared["ids"][:1], labels[:-1]])}

    return around(span_corruption.SpanCorruption, "prepare", prepare)


@bug("weight decay falls on norms", definition="optimizer=adamw")
def norms_decay():
    def build(original, self, params):
        return original(self, [(path, p, "other" if role == "norm" else role) for path, p, role in params])

    return around(AdamW, "build", build)


@bug("a cosine goes down to nothing instead of its floor", definition="schedule=cosine")
def no_floor():
    def factor(original, self, step, total):
        warmup = round(self.warmup_share * total) if self.warmup_steps is None else self.warmup_steps
        found = original(self, step, total)
        return found if step < warmup or self.floor == 1 else (found - self.floor) / (1 - self.floor)

    return around(cosine.Cosine, "factor", factor)


@bug("an objective of a mixture loses the weights of its own terms", definition="objective=mix")
def weights_of_terms_lost():
    def together(original, self, found):
        return original(self, [loss._replace(weights={}) for loss in found])

    return around(mix.Mixture, "_together", together)


@bug("each token of a span is masked, replaced or left by a chance of its own", definition="objective=span_mlm")
def fate_of_its_own():
    def corrupt(original, self, tokens, chosen, fate, rng):
        return original(self, tokens, chosen, rng.random(len(tokens)), rng)

    return around(Masking, "corrupt", corrupt)
