"""When Python looks for garbage: hardly ever while a command imports what it needs, as usual while it trains.

What is imported stays, and being looked through again and again was a quarter of what a short command took.
"""

from __future__ import annotations

import gc

USUAL = gc.get_threshold()
SELDOM = 100_000  # objects made and not freed, before those are looked through


def seldom() -> None:
    gc.set_threshold(SELDOM, *USUAL[1:])


def as_usual() -> None:
    """As it was before `seldom`, and what there is by now is not looked at any more; nothing if `seldom` was not called."""
    if gc.get_threshold()[0] == SELDOM:
        gc.freeze()
        gc.set_threshold(*USUAL)
