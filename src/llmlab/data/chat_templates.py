"""Chat templates by name, and the one that records of conversations are written by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.data.template import FILE, Template
from llmlab.errors import UserError, near
from llmlab.files import expanded
from llmlab.json_files import read_text
from llmlab.record_kinds import Kind

if TYPE_CHECKING:
    from llmlab.config.schema import Tokenizer as Config
    from llmlab.data.tokenizer import Tokenizer

DEFAULT = "chatml"
# Kinds of record whose prompt is what a user says, where the tokenizer has a template.
ASKED = ("preferences", "rated", "prompts")
# An answer ends with the tokenizer's eos too, at which a model of it stops whatever it knows of templates.
CHATML = (
    "{{ bos_token | default('') }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% if m['role'] == 'assistant' and eos_token | default('<|im_end|>') != '<|im_end|>' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The two prompts of Taori et al. 2023 (Stanford Alpaca), of which the second is of an instruction with an input; turns after
# the first repeat its headings. A system message stands in place of the preamble.
ALPACA = (
    "{% set one = 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.' %}"
    "{% set two = 'Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.' %}"
    "{{ bos_token | default('') }}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% elif messages and '### Input:' in messages[0]['content'] %}{{ two }}{% else %}{{ one }}{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '\n\n### Instruction:\n' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '\n\n### Response:' + m['content'] + eos_token | default('') }}"
    "{% elif m['role'] == 'tool' %}{{ '\n\n### Input:\n' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\n### Response:' }}{% endif %}"
)
PRESETS = {"chatml": CHATML, "alpaca": ALPACA}
# Tokens that a learnt tokenizer gets for a preset, by name.
SPECIAL = {"chatml": ("im_start", "im_end")}


def name_of(cfg: Config, kind: Kind) -> str | None:
    """The preset that a tokenizer which is learnt gets; None where it gets none."""
    if cfg.kind == "file" or cfg.template is None:
        return DEFAULT if kind.name == "chat" and cfg.kind != "file" else None
    return cfg.template if cfg.template in PRESETS else None


def give(tokenizer: Tokenizer, cfg: Config, kind: Kind) -> Template | None:
    """The template by which records are written, which the tokenizer then has beside it; None: their texts stand alone.

    That of `tokenizer.template`, else the tokenizer's own, else for conversations ChatML.
    """
    if cfg.template is not None:
        tokenizer.beside[FILE] = _ending(source(cfg.template), tokenizer)
    elif not Template.among(tokenizer.beside):
        if kind.name != "chat":
            return None
        tokenizer.beside[FILE] = _ending(PRESETS[DEFAULT], tokenizer)
        if cfg.kind == "file":
            tokenizer.notes.append(
                f"the tokenizer has no chat template; conversations are written by {DEFAULT} (tokenizer.template=NAME)"
            )
    return Template.of(tokenizer, "the tokenizer" if cfg.template is None else f"tokenizer.template={cfg.template}")


def _ending(template: str, tokenizer: Tokenizer) -> str:
    """The template; of ChatML with the tokenizer's eos for a mark that is no token of it, at which nothing would stop."""
    if template != CHATML or tokenizer.inner.token_to_id("<|im_end|>") is not None:
        return template
    return template.replace("'<|im_end|>'", "eos_token")


def source(name: str) -> str:
    """The Jinja source of a preset or of a file. UserError where it is neither."""
    if name in PRESETS:
        return PRESETS[name]
    file = expanded(name)
    if not file.is_file():
        raise UserError(
            f"tokenizer.template={name}: there is no such file, and no such template; {near(name, PRESETS)}"
        )
    return read_text(file)
