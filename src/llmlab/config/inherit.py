"""The tokenizer of a run that begins with the weights of another (`init_from=RUN`) or with its vectors of tokens
(`init_from.embedding=RUN`): it comes with them, and what documents begin with in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from llmlab.config import init_from
from llmlab.config.spelling import quoted
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.json_files import read_json, read_yaml

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

FILE, SPECIAL, CONFIG = "tokenizer.json", "special.json", "config.yaml"
GROUP, BOS, TEMPLATE = "tokenizer", "data.bos", "tokenizer.template"


class Kept(TypedDict):
    kind: Literal["bpe", "char", "file"]


class Settings(TypedDict):
    tokenizer: dict[str, Any]
    data: NotRequired[dict[str, Any]]


def home(start: str | Path) -> Path:
    """The folder with the config, the model and the tokenizer of a run or an export, of which `start` may be a checkpoint."""
    path = expanded(start)
    inside = path.name.startswith("step=") and (path / "manifest.json").exists()
    return path.parent.parent if inside else path


def words(cfg: DictConfig, parsed: Iterable[Override]) -> list[str]:
    """The overrides by which a config has the tokenizer of the run that it begins from, and its `data.bos` unless another
    was typed; none where it begins from no run, or the tokenizer is to be new.

    UserError if another tokenizer was typed.
    """
    typed_key, start = source(cfg)
    if start is None:
        if cfg.init_tokenizer == "new":
            raise UserError("init_from.tokenizer=new has no effect without init_from=RUN; leave it out")
        return []
    if cfg.init_tokenizer == "new" or init_from.hf_name(start) is not None:
        # A Hugging Face folder brings its own, in hub.begin.
        return []
    parsed, folder = list(parsed), home(start).absolute()
    whose = "the weights of" if cfg.init_from is not None else "the vectors of"
    under = "put them under another" if cfg.init_from is not None else "look the tokens of another up in it by name"
    if not (folder / CONFIG).exists():
        # `validate` reports a folder that is no run.
        return []
    # Vectors can't be looked up by name without the names, whatever else the tokens are.
    again = f", or type init_from.tokenizer=new to {under}" * (cfg.init_from is not None)
    for name in (FILE, SPECIAL):
        if not (folder / name).is_file():
            raise UserError(
                f"{typed_key}={start}: there is no {name} in {folder}, and its weights know the tokens of that "
                f"tokenizer only; bring it back{again}"
            )
    typed = [str(o.input_line) for o in parsed if is_about(o.key_or_group)]
    if typed and not _agrees(cfg.tokenizer, folder):
        raise UserError(
            f"{' '.join(typed)}: {whose} {typed_key}={start} know the tokens of their own tokenizer "
            f"({_described(folder)}); leave it out, or type init_from.tokenizer=new to {under}"
        )
    # Quoted: a folder's name may hold any sign of Hydra's grammar.
    own = [f"{GROUP}=file", f"{GROUP}.path={quoted(str(folder))}"]
    if (bos := _bos(folder)) is not None and all(o.key_or_group != BOS for o in parsed):
        own.append(f"{BOS}={str(bos).lower()}")
    return own


def source(cfg: DictConfig) -> tuple[str, str | None]:
    """(the key as it is typed, its value) of what a run begins with whose tokenizer comes along; None without any."""
    if cfg.init_from is None and cfg.init_embedding is not None and not expanded(cfg.init_embedding).is_file():
        return init_from.TYPED["init_embedding"], cfg.init_embedding
    return "init_from", cfg.init_from


def _bos(folder: Path) -> bool | None:
    """`data.bos` of a run, None where its documents begin as the tokenizer's own template has it."""
    if _about(folder)[0] != "file":
        return None
    settings: Settings = read_yaml(folder / CONFIG, Settings)
    # Runs of before there was this key put nothing in front of a document.
    bos = settings.get("data", {}).get("bos", False)
    return bos if isinstance(bos, bool) else None


def is_about(key: str) -> bool:
    """True if an override chooses the tokenizer. How conversations are written with its tokens is another choice."""
    return key == GROUP or (key.startswith(f"{GROUP}.") and key != TEMPLATE)


def without(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that do not choose the tokenizer."""
    # Hydra's grammar: + and ++ add, ~ deletes, and @ is followed by the package.
    return tuple(o for o in overrides if not is_about(o.lstrip("+~").partition("=")[0].partition("@")[0]))


def _agrees(typed: DictConfig, folder: Path) -> bool:
    """True if the settings of a tokenizer are those of the run's: the same words may be typed again."""
    if typed.kind == "file":
        if typed.path is None:
            return False
        file = expanded(typed.path)
        file = file / FILE if file.is_dir() else file
        # Byte for byte: two files of one vocabulary may still split or normalise a text otherwise.
        return file.is_file() and file.read_bytes() == (folder / FILE).read_bytes()
    kind, size = _about(folder)
    return typed.kind == kind and (kind != "bpe" or typed.vocab_size in size)


def _about(folder: Path) -> tuple[str, set[int]]:
    """(kind, the sizes by which it is known: what was asked for, and what there is)."""
    kept: Kept = read_json(folder / SPECIAL, Kept)
    # A small text may have fewer merges than were asked for, so that there are two sizes.
    sizes = {_count(folder)}
    try:
        settings: Settings = read_yaml(folder / CONFIG, Settings)
        asked = settings["tokenizer"].get("vocab_size")
        if settings["tokenizer"].get("kind") == "bpe" and isinstance(asked, int):
            sizes.add(asked)
    except (UserError, FileNotFoundError):
        pass
    return kept["kind"], sizes


def _count(folder: Path) -> int:
    read: dict[str, Any] = read_json(folder / FILE)
    model = read.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # Unigram's vocabulary is a list of pairs, that of the other models a dict.
    return len(vocabulary) if isinstance(vocabulary, dict | list) else 0


def _described(folder: Path) -> str:
    kind, _ = _about(folder)
    return f"tokenizer={kind}, {_count(folder):,} tokens"
