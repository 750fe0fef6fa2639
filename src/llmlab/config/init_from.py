"""Values of init_from on the command line: hf=FOLDER, or the folder of a run. No torch."""

from __future__ import annotations

from llmlab.config.spelling import quoted

PREFIXES = ("hf=", "hf:")


def named(value: str | None) -> str | None:
    """The name after hf= (or hf:) in a value such as that of init_from; None if it has no such prefix."""
    return next((value[len(p) :] for p in PREFIXES if value and value.startswith(p)), None)


def normal(override: str) -> str:
    """An override as Hydra's grammar wants it: init_from=hf=FOLDER quoted, and init_from.tokenizer as the key that it is,
    for init_from is a text and has none below it. Any other as it is."""
    key, _, value = override.partition("=")
    if key.lstrip("+") == "init_from.tokenizer":
        return f"init_tokenizer={value}"
    if key.lstrip("+") != "init_from":
        return override
    if (name := named(value)) is None:  # a checkpoint of a run, RUN/checkpoints/step=00000040
        return f"{key}={quoted(value)}" if "=" in value and value[0] not in "'\"\\" else override
    return f"{key}={quoted(f'hf={name}')}"
