"""Which parts exist, and how to get one. Files are read, not imported; only a chosen part's module is imported.

Parts come from the folders of `llmlab_plugins`, from installed packages that announce a module under the entry-point
group `llmlab.plugins`, and from the modules named in the environment variable LLMLAB_PLUGINS (comma-separated).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from llmlab import mixtures, source
from llmlab.attributes import complete, fits, merged, of_slot, strings
from llmlab.errors import UserError, near
from llmlab.slot_names import LISTED_SLOTS, SLOTS
from llmlab.source import REQUIRED, Entry, Option

__all__ = ["REQUIRED", "Entry", "Option", "index", "load", "names", "near", "problems", "register"]

GROUP = "llmlab.plugins"
VARIABLE = "LLMLAB_PLUGINS"
T = TypeVar("T", bound=type)

# What a run can't be without; `mask` may be null, which is what the objective brings, and most runs have no alignment
# method and no reward.
SLOTS_NEEDED: tuple[str, ...] = tuple(
    s for s in SLOTS if s not in ("mask", "head", "adapter", "alignment", "reward", *LISTED_SLOTS)
)


def register(slot: str, name: str, **defaults: Any) -> Callable[[T], T]:
    """Class decorator: this class is the part `name` of `slot`, with other defaults of its options if given.

    In a plugin file it marks the class for whoever reads the file. Elsewhere, in a notebook's cell or a script, the class is a
    choice from then on, in this process; the same name once more from the same module replaces it. UserError if the part
    breaks the rules for parts or has the name of another.
    """
    # Not inspect.stack, which reads the source of every frame above.
    frame = sys._getframe(1)
    file, line = frame.f_code.co_filename, frame.f_lineno

    def decorate(cls: T) -> T:
        # Their parts are plain values, whose attributes are read on every forward.
        if slot in ("mask", "window"):
            complete(cls, slot)
        if not _is_read(cls, file):
            _add(cls, slot, name, defaults, file, line)
        return cls

    return decorate


# ---------------------------------------------------------------- what there is


@dataclass(eq=False)
class _Found:
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    broken: dict[tuple[str, str], str] = field(default_factory=dict)  # names in files that can't be read
    twice: dict[tuple[str, str], str] = field(default_factory=dict)  # names that two files register
    missing: list[str] = field(default_factory=list)  # of the modules in LLMLAB_PLUGINS
    files: set[str] = field(default_factory=set)  # that were read, with links resolved


def index() -> dict[tuple[str, str], Entry]:
    """Every part, by (slot, name). The same object until there are others."""
    global _merged
    found = _scan()
    if not _defined:
        return found.entries
    # By identity: the config's store asks for the index at each composition, and goes by `is` too.
    if _merged is None or _merged[0] is not found or _merged[1] is not _defined:
        _merged = found, _defined, {**found.entries, **_defined}
    return _merged[2]


def declared(slot: str, name: str, options: Mapping[str, Any]) -> Entry:
    """The entry of a part as it declares itself at options, as `when` and `joins` say. UserError for an unknown name."""
    entry = index().get((slot, name))
    if entry is None:
        raise UserError(f"{slot}={name}: there is no such {slot}; {near(name, names(slot))}")
    if not entry.varies:  # as nearly all, and this is asked often
        return entry
    entry = entry.at(options)
    if not (option := entry.attribute("joins")):
        return entry
    own = {**{k: o.default for k, o in entry.options.items()}, **options}
    others = [str(o) for o in own[option] or ()]
    if name in others:
        raise UserError(f"{slot}.{option}: {name} can't be one of its own parts; leave it out")
    if not others and slot == "reward":
        return entry  # it refuses that itself
    if not others:
        raise UserError(f"{slot}.{option} is empty; name one part of the slot {slot} at least")
    each = [dict(o) for o in own.get(entry.attribute("joins_options")) or [{}] * len(others)]
    listed: dict[str, Sequence[Any]] = {entry.attribute("joins_options"): each}
    if slot != "reward":
        called = own.get(entry.attribute("joins_names")) or others
        listed[entry.attribute("joins_names")] = called
    for key, values in listed.items():
        if len(values) != len(others):
            raise UserError(f"{slot}.{key} has {len(values)} entries, but {slot}.{option} names {len(others)}")
    parts = [declared(slot, other, of_it) for other, of_it in zip(others, each, strict=True)]
    if slot == "reward":
        models = {role: about for part in parts for role, about in part.attribute("models").items()}
        return replace(entry, attrs=merged(entry.attrs, {"models": models}))
    _check_heads(parts)
    attrs = mixtures.joined(entry.attrs, [(str(n), part.attrs) for n, part in zip(called, parts, strict=True)])
    return replace(entry, attrs=attrs)


def _check_heads(parts: Iterable[Entry]) -> None:
    """UserError for parts that ask for heads of one role with other scores."""
    asked: dict[str, Entry] = {}
    for part in parts:
        for role, head in part.attribute("heads").items():
            other = asked.setdefault(role, part)
            heads = [index()["head", h] for h in (other.attribute("heads")[role], head)]
            if heads[0].attribute("scores") != heads[1].attribute("scores"):
                raise UserError(
                    f"objective.of: {other.name} and {part.name} can't train one model: as heads.{role} they ask for "
                    f"{heads[0].name} and {heads[1].name}"
                )


def of_node(slot: str, node: Mapping[str, Any]) -> Entry:
    """The entry of the part that a node of a config chooses, as it declares itself at the node's options."""
    name = str(node["_part_"])
    entry = index().get((slot, name))
    if entry is not None and not entry.varies:
        return entry
    return declared(slot, name, {k: v for k, v in node.items() if not str(k).startswith("_")})


def defined() -> dict[tuple[str, str], Entry]:
    """Parts that were defined while Python runs: no other process has them."""
    return _defined


_defined: dict[tuple[str, str], Entry] = {}  # another object when there is another part
_merged: tuple[_Found, dict[tuple[str, str], Entry], dict[tuple[str, str], Entry]] | None = None


def _is_read(cls: type, file: str) -> bool:
    """True if a class is in a file whose parts are read without importing it, or one of llmlab's own templates."""
    return cls.__module__.partition(".")[0] in ("llmlab", "llmlab_plugins") or os.path.realpath(file) in _scan().files


def _add(cls: type, slot: str, name: str, defaults: dict[str, Any], file: str, line: int) -> None:
    from llmlab import definitions

    global _defined
    if slot not in SLOTS:
        raise UserError(f"{slot}={name}: there is no slot {slot!r}; {near(slot, SLOTS)}")
    if not re.fullmatch(r"[A-Za-z]\w*", str(name)):
        raise UserError(f"{slot}={name}: can't name a part; take letters, digits and _")
    other = _scan().entries.get((slot, name)) or _defined.get((slot, name))
    if other is not None and (other.cls is None or other.module != cls.__module__):
        raise UserError(
            f"{slot}={name} is registered already, at {other.path}:{other.line}; choose another name for {cls.__name__}"
        )
    made = definitions.entry(cls, slot, name, defaults, file, line)
    if wrong := _misnamed(made, index(), _scan().broken):
        raise UserError(wrong)
    # A new dict, so that who holds the old one sees by `is` that there is another part.
    _defined = {**_defined, (slot, name): made}


def problems() -> list[str]:
    """One line for each plugin file that can't be read; its parts are left out."""
    return _scan().problems


def problems_of(words: Iterable[str]) -> dict[str, str]:
    """Those of the problems that are of parts which overrides choose, each with what an error says of it."""
    found, texts = _scan(), {}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        # head@heads.tokens=NAME, heads.tokens=NAME.
        slot = re.split("[@.]", key)[0].replace("heads", "head")
        for part in ((slot, name) for name in re.findall(r"\w+", value)):
            if part in found.broken:
                texts[found.broken[part]] = found.broken[part]
            if part in found.twice:
                texts[found.twice[part].rpartition(" at ")[2]] = f"{slot}={part[1]} is registered twice"
    return {p: said for p in found.problems for begin, said in texts.items() if p.startswith(begin)}


def broken(slot: str, name: str) -> str | None:
    """Why a part that a file seems to register can't be had, or None."""
    return _scan().broken.get((slot, name))


def ambiguous(slot: str, name: str) -> str | None:
    """Places at which a name is registered twice, or None."""
    return _scan().twice.get((slot, name))


def missing() -> list[str]:
    """One line for each module named in LLMLAB_PLUGINS that isn't there: a run without it would be another."""
    return _scan().missing


def names(slot: str) -> list[str]:
    return sorted(n for s, n in index() if s == slot)


def _scan() -> _Found:
    if os.environ.get(VARIABLE) and os.getcwd() not in sys.path and "" not in sys.path:
        # An installed command begins sys.path with its own folder, python -m with the working one: both are to find a
        # module there.
        sys.path.append(os.getcwd())
    # sys.path is among the arguments, as a notebook may add to it between two calls.
    return _scan_modules(os.environ.get(VARIABLE, ""), tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _scan_modules(variable: str, path: tuple[str, ...]) -> _Found:
    # Sorted: entry points come in the order in which sys.path's folders list their distributions.
    announced = sorted({e.value for e in importlib.metadata.entry_points(group=GROUP)})
    named = [m.strip() for m in variable.split(",") if m.strip()]
    found = _Found()
    for root in dict.fromkeys(("llmlab_plugins", *announced, *named)):
        for file, module in _files(root, found, named):
            # Links resolved: an editable install may reach a checkout through one, and a frame names the file by the
            # other path.
            found.files.add(os.path.realpath(file))
            try:
                # By ast: reading all 83 parts takes 0.08 s, importing the first of them the 1.4 s of torch.
                entries = source.parts_of_file(file, module)
            except (source.SourceError, OSError, UnicodeDecodeError) as e:
                reason = str(e) if isinstance(e, source.SourceError) else f"{file}: {e}"
                found.problems.append(f"{reason}; its parts are left out")
                # A file that can't be opened tells no names.
                if not isinstance(e, OSError):
                    found.broken.update(dict.fromkeys(source.registered_names(file), reason))
                continue
            for entry in entries:
                key, where = (entry.slot, entry.name), f"{entry.path}:{entry.line}"
                if entry.slot not in SLOTS:
                    found.problems.append(f"{where}: there is no slot {entry.slot!r}; {near(entry.slot, SLOTS)}")
                elif key in found.entries:
                    other = found.entries[key]
                    found.problems.append(
                        f"{where}: {entry.slot}={entry.name} is registered already, at {other.path}:{other.line}"
                    )
                    found.twice[key] = f"at {other.path}:{other.line} and at {where}"
                else:
                    found.entries[key] = entry
    # A copy: entries are deleted on the way.
    for key, entry in list(found.entries.items()):
        if wrong := _misnamed(entry, found.entries, found.broken):
            del found.entries[key]
            found.problems.append(f"{wrong}; it is left out")
            found.broken[key] = wrong
    return found


def _misnamed(entry: Entry, entries: dict[tuple[str, str], Entry], broken: dict[tuple[str, str], str]) -> str | None:
    """An attribute of a part that names a part which isn't there, as the mask of an objective does."""
    cases = entry.attrs.get("when", {}).values()
    for name, value in (item for attrs in (entry.attrs, *cases) for item in attrs.items()):
        if slot := of_slot(entry.slot)[name].part_of:
            there = [n for s, n in entries if s == slot]
            for word in strings(value):
                if word not in there and (slot, word) not in broken:
                    return (
                        f"{entry.path}:{entry.line}: {name} names {slot}={word}, which isn't there; {near(word, there)}"
                    )
    return None


def _files(root: str, found: _Found, named: list[str]) -> Iterator[tuple[Path, str]]:
    """The Python files of a module or package and their module names; only its parents are imported."""
    try:
        spec = importlib.util.find_spec(root)
    # find_spec imports the parents, and raises ValueError for a module without a spec, as __main__ of a script.
    except (ImportError, ValueError) as e:
        spec, reason = None, f": {e}"
    else:
        reason = ""
    if spec is None:
        if root in named:
            found.missing.append(
                f"{VARIABLE}={root}: there is no module {root!r}{reason}; its folder must be in PYTHONPATH"
            )
        else:
            found.problems.append(f"there is no module {root!r}, which a package announces under {GROUP}{reason}")
        return
    if not spec.submodule_search_locations:
        if spec.origin:
            yield Path(spec.origin), root
        return
    # setuptools' editable finder adds an entry that is no folder (`__editable__...__path_hook__`), in which rglob finds
    # nothing.
    for location in dict.fromkeys(spec.submodule_search_locations):
        # rglob gives the file system's order, and the first of two parts of one name is the one that counts.
        for file in sorted(Path(location).rglob("*.py")):
            inner = file.relative_to(location).with_suffix("").parts
            # A package's own module has the package's name.
            if inner[-1] == "__init__":
                inner = inner[:-1]
                if root == "llmlab_plugins":
                    continue
            yield file, ".".join((root, *inner))


# ---------------------------------------------------------------- classes


def load(slot: str, name: str, options: dict[str, Any]) -> functools.partial[Any]:
    """The part's class with its options bound: a factory that waits for what the parent supplies.

    Imports the part's module and no other. UserError if the name is unknown or the module can't be imported.
    """
    entry = index().get((slot, name))
    if entry is None:
        if reason := broken(slot, name):
            raise UserError(f"{slot}={name} can't be read: {reason}")
        raise UserError(f"{slot}={name}: there is no such {slot}; {near(name, names(slot))}")
    unknown = [k for k in options if k not in entry.options]
    if unknown:
        raise UserError(f"{slot}.{unknown[0]}: {name} has no such option; {near(unknown[0], entry.options)}")
    try:
        cls = entry.cls or getattr(importlib.import_module(entry.module), entry.qualname)
    # A plugin's own code may raise anything while it is imported.
    except Exception as e:
        raise UserError(f"{slot}={name}: {entry.path} can't be imported: {type(e).__name__}: {e}") from e
    if inherited := _inherited(cls, entry):
        raise UserError(f"{slot}={name}: {entry.path}:{entry.line}: {inherited}")
    values = {k: o.default for k, o in entry.options.items() if not o.required} | options
    # OmegaConf gives a list for what is annotated as a tuple.
    values = {k: tuple(v) if entry.options[k].as_tuple and v is not None else v for k, v in values.items()}
    missing = [k for k in entry.options if k not in values]
    if missing:
        raise UserError(f"{slot}.{missing[0]} must be given: {name} has no default for it")
    if not entry.varies:
        return functools.partial(cls, **values)
    now = declared(slot, name, values).attrs
    return functools.partial(_declaring, cls, {k: v for k, v in now.items() if v != entry.attrs.get(k)}, **values)


def _declaring(cls: type, attrs: Mapping[str, Any], *given: Any, **values: Any) -> Any:
    """An instance that declares what its options make of it."""
    made = cls(*given, **values)
    for name, value in attrs.items():
        setattr(made, name, value)
    return made


def _inherited(cls: type, entry: Entry) -> str | None:
    """An attribute that a class has from a base in another file, where the index can't see it, and would say otherwise."""
    for name, declared in of_slot(entry.slot).items():
        if declared.own:
            continue
        value = getattr(cls, name, declared.default)
        # vars and not getattr, which finds what is inherited too.
        owner = next((base for base in cls.__mro__ if name in vars(base)), cls)
        if owner.__module__ == cls.__module__:  # the index has read it; a test may have replaced it since
            continue
        if name in entry.options or not declared.literal or not fits(value, declared.type):  # a property, say
            continue
        # What names an option that is gone can't be repeated.
        if name in ("small", "when") and any(key.partition("=")[0] not in entry.options for key in value):
            continue
        if name in ("joins", "joins_options", "joins_names") and value not in entry.options:
            continue
        if value != entry.attribute(name):
            return f"{cls.__name__} inherits {name} = {value!r} from another file; write it on the class itself"
    return None
