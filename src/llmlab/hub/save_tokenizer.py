"""A tokenizer as files of a Hugging Face checkpoint, and the proof that transformers reads the same one from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmlab.data import special
from llmlab.data.template import FILE as TEMPLATE
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError

GENERATION = "generation_config.json"
# transformers 5 builds these classes, each with a normalizer and a split of its own, for models of these types whatever
# tokenizer_class says (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS with an entry of their own in TOKENIZER_MAPPING_NAMES).
REPLACED = {"qwen2": "Qwen2Tokenizer"}
CLASS = "PreTrainedTokenizerFast"  # a tokenizer.json as it is, in transformers 4 and 5
MODULE, OWN = "tokenization_plain", "PlainTokenizer"
SOURCE = f'''\
"""The tokenizer.json beside this file as it is.

For a model of this type transformers 5 would build a tokenizer with another normalizer and another split. An auto_map in
tokenizer_config.json keeps it from that. This file is only imported with trust_remote_code=True; the tokenizer is the same.
"""

from transformers import {CLASS}


class {OWN}({CLASS}):
    pass
'''
# What a tokenizer_config.json says of the class that it was written by, or of files that are not there.
FOREIGN = (
    *("tokenizer_class", "auto_map", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
    *("add_bos_token", "add_eos_token", "name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file"),
    *("fast_tokenizer_files", "init_inputs", "processor_class", "max_len", "backend", "is_local", "local_files_only"),
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 5 o'clock, and they'll say \"I'd've won't\".",
    "  two spaces,   three,\ttabs\t\tand a trailing one ",
    "\n\nlines\r\nof\n\n\n  all kinds\n",
    "1 12 123 1234 12345.678 1,000,000 -7 3e-05 \u0663\u0664 \u00bd \u2162",
    "caf\u00e9 cafe\u0301 \u00c5 \u212b \ufb01 \u01c6 Stra\u00dfe \u0130stanbul i\u0307",  # composed and not, ligatures, case
    "\u6570\u636e\u5e93\u3068\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\ud55c\uad6d\uc5b4\u3002",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u03b3\u03b5\u03b9\u03ac, \u0645\u0631\u062d, \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \u200b\u00a0\u2028\ufeff\x00\x7f end",
    "def f(x_1):\n    return {x**2: [x!=1, x//3]}  # CamelCase snake_case https://a.b/c?d=e&f#g",
)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, positions: int) -> str:
    """Writes the tokenizer into a folder with config.json, whose ids of special tokens become the tokenizer's.

    Reads it back with AutoTokenizer of transformers, where that is installed, and raises UserError where it is another
    one than the model was trained with. Returns a note where it is not installed.
    """
    from llmlab.hub.files import read_config

    config = read_config(folder)
    named = special.read_special(tokenizer.beside, "the run's tokenizer")
    roles = _roles(tokenizer, named)
    ids = {role: i for role, token in roles.items() if (i := tokenizer.inner.token_to_id(token)) is not None}
    _tell_ids(folder, config, ids)
    _tell_generation(folder, tokenizer, config, ids)
    tokenizer.inner.save(str(folder / "tokenizer.json"))
    if TEMPLATE in tokenizer.beside:
        (folder / TEMPLATE).write_text(tokenizer.beside[TEMPLATE], encoding="utf-8")
    about = _about(tokenizer, named, roles, positions)
    kind = str(config.get("model_type"))
    try:
        # Deferred and optional: it takes half a second, and an export without it is only not read back.
        import transformers
    except ImportError:
        _write(folder, about, plain=kind not in REPLACED)
        rule = f"auto_map to a {CLASS}" if kind in REPLACED else f"tokenizer_class={CLASS}"
        return f"not read back, as transformers is not installed; the tokenizer is written with {rule}"
    _write(folder, about)
    wrong = difference(folder, tokenizer, ids)
    # Another class than tokenizer_class says, as for qwen2: an auto_map keeps AutoTokenizer from it.
    if wrong is not None:
        _write(folder, about, plain=False)
        wrong = difference(folder, tokenizer, ids)
    if wrong is not None:
        raise UserError(
            f"transformers {transformers.__version__} would read the tokenizer of a {kind} model otherwise: {wrong}; "
            "export with format=llmlab, or train with another tokenizer"
        )
    return ""


def as_trained(tokenizer: Tokenizer) -> str:
    """Gives a run's tokenizer a template that begins a text as the run's documents began. Returns a note where its own
    template does otherwise, "" where nothing had to be changed.
    """
    from tokenizers import Tokenizer as Inner

    lead = tokenizer.lead
    if tokenizer.kind != "file" or lead == tokenizer.opening():
        return ""
    before, after = tokenizer.around()
    names = {i: tokenizer.inner.id_to_token(i) or str(i) for i in (*before, *lead, *after)}
    spec: dict[str, Any] = json.loads(tokenizer.inner.to_str())
    spec["post_processor"] = _template(names, lead, after) if lead or after else None
    tokenizer.inner = Inner.from_str(json.dumps(spec))
    # The JSON does not hold it (tokenizers 0.23), and without it a text could forge a special token by its name.
    tokenizer.inner.encode_special_tokens = True
    shown = " ".join(names[i] for i in lead or before)
    how = "begin with" if lead else "begin without"
    return f"its texts {how} {shown}, as the run's documents did, and not as the template of its tokenizer had it"


def _template(names: Mapping[int, str], lead: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """A post-processor that puts ids around each of one or two texts."""

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        first, last = ([{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in ids] for ids in (lead, after))
        return [*first, {"Sequence": {"id": name, "type_id": type_id}}, *last]

    tokens = {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in (*lead, *after)}
    pair = [*around("A", 0), *around("B", 1)]
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens}


def difference(folder: Path, tokenizer: Tokenizer, ids: Mapping[str, int]) -> str | None:
    """A phrase on what AutoTokenizer reads otherwise than `tokenizer`, whose special tokens have `ids`, or None."""
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # transformers warns of each long text and of a tokenizer it builds; the comparison below says all that counts.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    # Any class of theirs may read these files, and raise anything.
    except Exception as e:
        return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    finally:
        transformers.logging.set_verbosity(before)
    name = type(theirs).__name__
    for text, around in itertools.product(_texts(tokenizer), (False, True)):
        ours = _attempt(lambda: tokenizer.encode_marked(text, around=around))  # noqa: B023
        found = _attempt(lambda: theirs(text, add_special_tokens=around, verbose=False)["input_ids"])  # noqa: B023
        # Both say so where a word has no token, not even an unknown one.
        if found != ours and not (isinstance(ours, str) and isinstance(found, str)):
            gives = f"says {found!r}" if isinstance(found, str) else f"gives {len(found)} ids"
            return f"{name} {gives} for {text[:40]!r}, not the {len(ours)} ids of training"
    rows = config.get("padded_vocab_size", config.get("vocab_size"))
    # By the highest id too: ids may have gaps.
    used = max(len(theirs), 1 + max(theirs.get_vocab().values(), default=-1))
    if isinstance(rows, int) and used > rows:
        return f"{name} has {used:,} tokens, and the model {rows:,}"
    for role in special.ROLES:
        if getattr(theirs, f"{role}_token_id") != ids.get(role):
            return f"{name} has {role}_token_id={getattr(theirs, f'{role}_token_id')}, not {ids.get(role)}"
    for role in ("bos", "eos", "pad"):
        if role in ids and config.get(f"{role}_token_id") != ids[role]:
            return f"config.json has {role}_token_id={config.get(f'{role}_token_id')}, and {name} {ids[role]}"
    return None


def _texts(tokenizer: Tokenizer) -> list[str]:
    """TEXTS, one with special tokens by name, and one of the tokenizer's own vocabulary."""
    named = [token.content for token in tokenizer.inner.get_added_tokens_decoder().values()]
    some = range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 200)
    return [*TEXTS, " ".join(["a", *named[:50]]) + "b", tokenizer.decode(some)]


def _attempt(encode: Callable[[], list[int]]) -> list[int] | str:
    """Ids, or what the library's bare Exception says."""
    try:
        return encode()
    except Exception as e:
        return " ".join(str(e).split())[:100]


def _roles(tokenizer: Tokenizer, named: special.Special) -> dict[str, str]:
    """Tokens by role: those that the run used, those that the tokenizer came with, and what a decoder calls by other names."""
    inner = tokenizer.inner
    roles = {role: token["content"] for role, token in named.roles.items()}
    roles |= {r: t for r, i in tokenizer.special.items() if r in special.ROLES and (t := inner.id_to_token(i))}
    roles = {role: token for role, token in roles.items() if inner.token_to_id(token) is not None}
    # BERT's tokens under a decoder's names: transformers' generate() begins with bos and ends at eos.
    for role, other in (("bos", "cls"), ("eos", "sep")):
        if role not in roles and other in roles:
            roles[role] = roles[other]
    return roles


def _about(tokenizer: Tokenizer, named: special.Special, roles: Mapping[str, str], positions: int) -> dict[str, Any]:
    came = special.config_of(tokenizer.beside, "the run's tokenizer")
    used = {tokenizer.inner.id_to_token(i) for r, i in tokenizer.special.items() if r not in special.ROLES}
    more = dict.fromkeys([*(token["content"] for token in named.more), *sorted(t for t in used if t)])
    about: dict[str, Any] = {
        # True, the default of transformers 4, takes away spaces before punctuation when ids become text.
        "clean_up_tokenization_spaces": False,
        **{k: v for k, v in came.items() if k not in FOREIGN},
        "tokenizer_class": CLASS,
        "model_max_length": positions,
        **{f"{role}_token": token["content"] for role, token in named.own.items()},
        # Null where there is none, or a class adds its own: Qwen2Tokenizer a pad beyond the model's table.
        **{f"{role}_token": roles.get(role) for role in special.ROLES},
    }
    if more:
        about["additional_special_tokens"] = list(more)
    return about


def _write(folder: Path, about: Mapping[str, Any], *, plain: bool = True) -> None:
    if not plain:
        about = {**about, "auto_map": {"AutoTokenizer": [None, f"{MODULE}.{OWN}"]}}
        (folder / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
    (folder / special.CONFIG).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tell_ids(folder: Path, config: dict[str, Any], ids: Mapping[str, int]) -> None:
    """Ids of special tokens as the tokenizer has them: a family's own defaults are of another tokenizer."""
    config |= {"bos_token_id": ids.get("bos"), "eos_token_id": ids.get("eos")}
    # Where save_hf has written a pad, the model itself tells padding by it: RoBERTa's positions, a score of the last token.
    own, pad = config.get("pad_token_id"), ids.get("pad")
    if None not in (own, pad) and own != pad:
        raise UserError(
            f"the model tells padding by the id {own}, but its tokenizer's pad is {pad}: train with "
            f"position.pad_id={pad}, or export with format=llmlab"
        )
    config["pad_token_id"] = (
        # Null, or generate() would mask a family's default, an ordinary id.
        own if pad is None else pad
    )
    # A run's own decoder begins with its pad token, as T5's does.
    if pad is not None and config.get("is_encoder_decoder"):
        config["decoder_start_token_id"] = pad
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tell_generation(folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Writes generation_config.json with the ids at which a text ends: all of those of the checkpoint that training began from.
    Its sampling settings are left out: they were tuned for another model.
    """
    if GENERATION not in tokenizer.beside:
        return
    came: special.Ids = special.parse_json(tokenizer.beside[GENERATION], special.Ids, GENERATION)
    known = tokenizer.vocab_size
    ends = [i for i in special.all_ids(came, "eos_token_id") if i < known and i != ids.get("eos")]
    about: dict[str, Any] = {f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids}
    if ends := [*([ids["eos"]] if "eos" in ids else []), *ends]:
        about["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if "decoder_start_token_id" in config:
        about["decoder_start_token_id"] = config["decoder_start_token_id"]
    (folder / GENERATION).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
