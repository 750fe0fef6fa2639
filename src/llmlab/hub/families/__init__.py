"""Entries of the hub by the `model_type` of config.json."""

from __future__ import annotations

from llmlab.hub.entry import Entry


def entries() -> dict[str, Entry]:
    from llmlab.hub.families import albert, bert, deepseek, gemma3, gpt2, gpt_neox, llama, mistral, qwen, qwen_moe, t5

    modules = (gpt2, gpt_neox, llama, qwen, mistral, qwen_moe, gemma3, deepseek, bert, albert, t5)
    return {name: entry for module in modules for entry in module.ENTRIES for name in entry.model_types}
