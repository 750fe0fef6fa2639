"""The check of a part's options: at each setting the part passes what it passes by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from llmlab.check import equivalences, learning, visibility
from llmlab.check.combinations import last_of_each_key
from llmlab.check.parts.passes import passes
from llmlab.check.refusal import crash, refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import settings
from llmlab.config import learned

OPTION_CHECKS: dict[str, Callable[[Subject], None]] = {  # the cheap ones that an option has been seen to break
    "causality": visibility.causality,
    "cache": equivalences.cache,
    "padding": equivalences.padding,
    "documents": equivalences.documents,
    "gradients": learning.gradients,
}


def option_words(slot: str, name: str) -> Iterator[list[str]]:
    """The overrides of each setting of a part's options beside the first, which has its `small` options."""
    first, *others = settings.of_part(slot, name)
    for setting in others:
        changed = {key: value for key, value in setting.options.items() if first.options.get(key, ...) != value}
        yield [settings.override(f"{slot}.{key}", value) for key, value in changed.items()]


def options(subject: Subject) -> None:
    """At each setting of its options, a part is causal, cached, padded, packed and trained as by default."""
    slot, name = subject.case.parts[0]
    if not any(word == f"{slot}={name}" for word in subject.case.overrides):
        raise NotApplicable("it is not typed as a choice, so that its options can't be set")
    if learned.reads(subject.composed.cfg) == "prompts":
        raise NotApplicable("the answers that it learns from are the model's own")
    n_checked = 0
    for words in option_words(slot, name):
        typed, shown = last_of_each_key([*subject.case.overrides, *words]), " ".join(words)
        other = Subject(replace(subject.case, overrides=typed))
        try:
            with torch.no_grad():
                other.model(other.batch())
        except Exception as e:
            if refusal(e) is not None:
                continue
            raise CheckFailed(f"{shown}: {crash(e)}") from e
        n_checked += 1
        for check in (*OPTION_CHECKS.values(), *((passes,) if slot == "objective" else ())):
            try:
                check(other)
            except CheckFailed as e:
                raise CheckFailed(f"{shown}: {check.__name__}: {e}") from None
            except NotApplicable:
                continue
    if not n_checked:
        raise NotApplicable("it has no options that a tiny model shows")
