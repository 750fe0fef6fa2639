"""The check of a part's options: each choice passes what the default passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from llmlab import registry
from llmlab.check import equivalences, learning, visibility
from llmlab.check.refusal import crash, refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject

CHECKS = (visibility.causality, equivalences.cache, equivalences.padding, equivalences.documents, learning.gradients)


def option_words(slot: str, name: str) -> Iterator[str]:
    """SLOT.OPTION=VALUE for each bool or Literal choice that is no default of the part, nor of kin (other names of its class),
    which are checked as parts."""
    entry = registry.index()[slot, name]
    kin = [
        e for e in registry.index().values() if (e.slot, e.module, e.qualname) == (slot, entry.module, entry.qualname)
    ]
    for key, option in entry.options.items():
        others: tuple = option.choices or ((True, False) if option.type is bool else ())
        for value in others:
            if value not in [e.options[key].default for e in kin]:
                yield f"{slot}.{key}={str(value).lower() if isinstance(value, bool) else value}"


def options(subject: Subject) -> None:
    """With each choice that its options offer, a part is causal, cached, padded, packed and trained as by default."""
    slot, name = subject.case.parts[0]
    if not any(word == f"{slot}={name}" for word in subject.case.overrides):
        raise NotApplicable("it is not typed as a choice, so that its options can't be set")
    n_checked = 0
    for word in option_words(slot, name):
        other = Subject(replace(subject.case, overrides=(*subject.case.overrides, word)))
        try:
            with torch.no_grad():
                other.model(other.batch())
        except Exception as e:
            if refusal(e) is not None:
                continue
            raise CheckFailed(f"{word}: {crash(e)}") from e
        n_checked += 1
        for check in CHECKS:
            try:
                check(other)
            except CheckFailed as e:
                raise CheckFailed(f"{word}: {check.__name__}: {e}") from None
            except NotApplicable:
                continue
    if not n_checked:
        raise NotApplicable("it has no option with a few choices")
