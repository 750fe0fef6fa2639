"""The check of options that a part can't have."""

from __future__ import annotations

from llmlab import registry
from llmlab.check.refusal import crash, refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.settings import Setting


def limits(subject: Subject) -> None:
    """Options that a part says it `refuses` are refused when it is built, in a line that names one of them."""
    slot, name = subject.case.parts[0]
    entry = registry.index()[slot, name]
    if slot not in OBSERVERS or not entry.attribute("refuses"):
        raise NotApplicable("it lists no options that it refuses")
    for options in entry.attribute("refuses"):
        setting = Setting(slot, name, {**entry.attribute("small"), **options})
        try:
            OBSERVERS[slot](setting)
        except Exception as e:
            why = refusal(e)
            if why is None:
                raise CheckFailed(f"{setting}: {crash(e)}") from e
            if not any(f"{slot}.{key}" in why for key in options):
                raise CheckFailed(f"{setting}: the refusal names none of these options: {why}") from e
        else:
            raise CheckFailed(f"{setting} is not refused")
