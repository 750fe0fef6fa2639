"""Special tokens as the files beside a tokenizer.json name them, read as AutoTokenizer of transformers reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from llmlab.errors import UserError
from llmlab.json_files import check_shape, parse_json, read_json

if TYPE_CHECKING:
    import tokenizers

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MODEL = ("config.json", "generation_config.json")
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # the order in which transformers adds missing ones
FLAGS = ("lstrip", "rstrip", "normalized", "single_word")


class _Content(TypedDict):
    content: str


class Token(_Content, total=False):
    """A token with how it is found in a text; what is not said is the library's default."""

    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool
    special: bool


class Names(TypedDict, total=False):
    """Names by role, in tokenizer_config.json and in special_tokens_map.json."""

    bos_token: str | Token | None
    eos_token: str | Token | None
    unk_token: str | Token | None
    sep_token: str | Token | None
    pad_token: str | Token | None
    cls_token: str | Token | None
    mask_token: str | Token | None
    additional_special_tokens: list[str | Token] | None
    extra_special_tokens: list[str | Token] | dict[str, str | Token] | None


class NamedTemplate(TypedDict):
    name: str
    template: str


class ConfigFile(Names, total=False):
    added_tokens_decoder: dict[str, Token]
    chat_template: str | list[NamedTemplate] | dict[str, str] | None


class Ids(TypedDict, total=False):
    """Ids of special tokens in config.json and generation_config.json, and how many tokens the model has a row for."""

    vocab_size: int | None
    padded_vocab_size: int | None  # ChatGLM's name of it

    bos_token_id: int | list[int] | None
    eos_token_id: int | list[int] | None
    unk_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int | list[int] | None
    cls_token_id: int | None
    mask_token_id: int | None
    decoder_start_token_id: int | list[int] | None
    forced_bos_token_id: int | list[int] | None
    forced_eos_token_id: int | list[int] | None


@dataclass(frozen=True)
class Special:
    """Tokens by role ("eos"), those of a model's own ("image"), further ones, and all that the files add to a vocabulary."""

    roles: dict[str, Token] = field(default_factory=dict)
    own: dict[str, Token] = field(default_factory=dict)
    more: tuple[Token, ...] = ()
    added: tuple[Token, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """Spellings by the names that a chat template knows: {"bos_token": "<s>"}."""
        return {f"{role}_token": token["content"] for role, token in {**self.roles, **self.own}.items()}

    def name(self, role: str) -> str | None:
        return self.roles[role]["content"] if role in self.roles else None

    def apply(self, inner: tokenizers.Tokenizer, table: int | None = None) -> list[str]:
        """Makes the tokens special ones of `inner`; those that it lacks get the next free ids, as in transformers.

        table: ids that the model has a row for. What would get a higher one is left out and returned.
        """
        from tokenizers import AddedToken

        known = {token.content for token in inner.get_added_tokens_decoder().values()}
        fresh, left_out, free = [], [], None
        for token in self._all():
            content = token["content"]
            # The library makes no token of an empty text, and counts it as none added.
            if content in known or not content:
                continue
            known.add(content)
            if inner.token_to_id(content) is None and table is not None:
                free = next_id(inner) if free is None else free
                if free >= table:
                    left_out.append(content)
                    continue
                free += 1
            flags = {name: token[name] for name in FLAGS if name in token}  # type: ignore[literal-required]
            # A flag that is not given is left to AddedToken, whose `normalized` is true but for special tokens.
            fresh.append(AddedToken(content, special=token.get("special", True), **flags))
        inner.add_tokens(fresh)  # at once: each call builds the search for all of them anew
        return left_out

    def _all(self) -> Iterator[Token]:
        named = [*self.roles.values(), *self.own.values(), *self.more]
        contents = {token["content"] for token in named}
        for token in self.added:
            yield token if token["content"] not in contents else {**token, "special": True}
        yield from named


def next_id(inner: tokenizers.Tokenizer) -> int:
    """The id that the library gives to the next new token."""
    # By the number of the model's tokens and not by their highest id (tokenizers 0.23): {"a": 0, "b": 7} goes on with 2.
    added = inner.get_added_tokens_decoder()
    return max(inner.get_vocab_size(with_added_tokens=False), max(added, default=-1) + 1)


def add(inner: tokenizers.Tokenizer, token: str) -> int:
    """The id of a special token, which is made one if it is not there. UserError where the library gives it another's id."""
    if inner.token_to_id(token) is None and (other := inner.id_to_token(free := next_id(inner))) is not None:
        raise UserError(
            f"tokenizer.path: the ids of its vocabulary have gaps, and a new token, {token}, would get the id {free}, which "
            f"{other} has; give {token} an id in tokenizer.json"
        )
    inner.add_special_tokens([token])  # one that is there keeps its id
    found = inner.token_to_id(token)
    assert found is not None
    return found


def read_special(files: Mapping[str, str], where: str) -> Special:
    """The special tokens that the files (name -> content) name. UserError names the file and the key.

    special_tokens_map.json stands above tokenizer_config.json, but is not read where that has `added_tokens_decoder`; so
    does transformers 5 (`PreTrainedTokenizerBase._from_pretrained`).
    """
    config: dict[str, Any] = dict(config_of(files, where))
    # transformers 5 renamed `additional_special_tokens`, and reads the old key where the new one is empty.
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    tokens: dict[int, Token] = {}
    if "added_tokens_decoder" in config:
        for number, token in config["added_tokens_decoder"].items():
            # JSON's keys are texts. 18 digits are sure to fit 64 bits.
            if not number.isdecimal() or len(number) > 18:
                raise UserError(f"{where}: {CONFIG}: added_tokens_decoder.{number[:40]} must be an id")
            # AddedToken's default in transformers, which makes one of each entry as it stands.
            token.setdefault("special", False)
            tokens[int(number)] = token
    else:
        if MAP in files:
            above: dict[str, Any] = parse_json(files[MAP], Names, f"{where}: {MAP}")
            extra = above.get("extra_special_tokens") or []
            # `_from_pretrained` replaces by a dict, and appends a list to that of tokenizer_config.json.
            if isinstance(extra, dict) or not more:
                more = extra or above.get("additional_special_tokens") or []
            elif isinstance(more, list):
                more = [*more, *extra]
            # Each key of special_tokens_map.json replaces that of tokenizer_config.json;
            # findings/special_tokens_map_above_config.sh.
            config |= above
        if ADDED in files:
            ids: dict[str, int] = parse_json(files[ADDED], dict[str, int], f"{where}: {ADDED}")
            tokens = {i: {"content": content, "special": False} for content, i in ids.items()}
    # transformers 5 takes any key in _token for a token of the model's own (`image_token`), if its value is a text or a
    # token.
    named_tokens = {k.removesuffix("_token"): _token(v) for k, v in config.items() if k.endswith("_token")}
    given = {role: token for role, token in named_tokens.items() if token is not None}
    own = {role: token for role, token in given.items() if role not in ROLES}
    if isinstance(more, dict):
        own |= {k.removesuffix("_token"): t for k, v in more.items() if (t := _token(v)) is not None}
        more = []
    return Special(
        {role: given[role] for role in ROLES if role in given},
        own,
        tuple(t for v in more if (t := _token(v)) is not None),
        # By id: transformers adds them in that order, and one that is new gets the next free id.
        tuple(tokens[i] for i in sorted(tokens)),
    )


def config_of(files: Mapping[str, str], where: str) -> ConfigFile:
    return parse_json(files[CONFIG], ConfigFile, f"{where}: {CONFIG}") if CONFIG in files else {}


def ids_of(folder: Path) -> tuple[Ids, Ids]:
    """Ids in a model's config.json and generation_config.json, each empty where there is no such file."""
    found: list[Ids] = []
    for name in MODEL:
        try:
            found.append(check_shape(read_json(folder / name), Ids, str(folder / name)))
        except FileNotFoundError:
            found.append({})
    return found[0], found[1]


def all_ids(ids: Ids, name: str) -> list[int]:
    """The ids of `eos_token_id` and the like: one, several or none. -1, LLaMA's first pad, is none."""
    value: Any = ids.get(name)
    return [i for i in (value if isinstance(value, list) else [value]) if i is not None and i >= 0]


def first_id(ids: Ids, name: str) -> int | None:
    return next(iter(all_ids(ids, name)), None)


def _token(value: object) -> Token | None:
    """A name or an object with `content`; other things under such a key (`add_bos_token`) are no tokens."""
    if isinstance(value, str):
        return {"content": value}
    return Token(**value) if isinstance(value, dict) and isinstance(value.get("content"), str) else None  # type: ignore[typeddict-item]
