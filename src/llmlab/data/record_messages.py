"""Conversations in the shapes in which people keep them, each as a list of messages with a role and a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llmlab.errors import UserError, near

ROLES = ("system", "user", "assistant", "tool")
# ShareGPT's names of who speaks.
ALSO = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "developer": "system"}
# What Alpaca's second prompt writes before an input (Taori et al. 2023).
INPUT = "\n\n### Input:\n"

Value = Callable[[str], Any]  # of a record's key


def messages_of(value: Value) -> list[dict[str, Any]] | None:
    """The messages of a record that has no list of them, from "prompt" and "completion", or from Alpaca's "instruction",
    "input" and "output", behind a "system" where there is one; None: it has neither."""
    system, prompt, completion = value("system"), value("prompt"), value("completion")
    if prompt is None or completion is None:
        instruction, given, completion = value("instruction"), value("input"), value("output")
        if instruction is None or completion is None:
            return None
        prompt = f"{instruction}{INPUT}{given}" if given else instruction
    first = [] if not system else [{"role": "system", "content": system}]
    # Both may be lists of messages themselves (TRL's conversational form).
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answered = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return [*first, *asked, *answered]


def checked_messages(value: object, where: str) -> list[dict[str, str]]:
    """Messages as {"role", "content"}; UserError, which begins with `where`, for what is none."""
    if not (isinstance(value, list) and value):
        raise UserError(f'{where} must be a list of objects with "role" and "content"')
    return [_message(message, f"{where}[{i}]") for i, message in enumerate(value)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise UserError(f'{where} must be an object with "role" and "content", but is {json.dumps(message)[:60]}')
    role, content = (message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value")))
    if not isinstance(role, str):
        raise UserError(f"{where}: there is no role, a text, in it")
    role = ALSO.get(role, role)
    if role not in ROLES:
        raise UserError(f"{where}: there is no role {role!r}; {near(role, ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where}: its content must be a text, but is {json.dumps(content)[:60]}")
    return {"role": role, "content": content}
