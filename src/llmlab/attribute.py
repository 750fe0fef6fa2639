"""What is said of an attribute that a part may declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attribute:
    """One attribute. A default stands for parts that do not declare it."""

    type: Any
    default: Any
    doc: str
    choices: tuple[str, ...] = ()  # of every string in its value, where they are closed
    part_of: str = ""  # the slot whose parts the strings in its value name
    own: bool = (
        False  # True: one that a base in another file declares is not this class's, so that it need not repeat it
    )
    literal: bool = True  # False: its value can't be written as a literal, so it is taken from the class alone
