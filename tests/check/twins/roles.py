"""Roles of parameters, numbered as in the observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np

from llmlab.slots import Role


def roles(paths: Iterable[str], role_of: Callable[[str], str]) -> np.ndarray:
    """The number of each parameter's role, in the order of paths. A path that ends in bias has the role bias."""
    known = get_args(Role)
    return np.array([known.index("bias" if path.endswith("bias") else role_of(path)) for path in sorted(paths)])
