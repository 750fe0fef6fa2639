"""Errors of Hydra and OmegaConf, each in one line that names the key and the fix."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import guess, spelling
from llmlab.config.spelling import quoted
from llmlab.config.trainer import ELSEWHERE
from llmlab.registry import near
from llmlab.slot_names import LEARNED_SLOTS, LISTED_SLOTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


SEVERAL = ("logger", *LISTED_SLOTS)  # groups of which several can be chosen at once
ALWAYS = ("csv", "csvlogger", "csv_logger", "file", "none", "false", "null", "default")  # names of metrics.csv alone


@dataclass(frozen=True)
class Known:
    """The choices there are: the groups, and the names in each."""

    groups: list[str]
    choices: Callable[[str], list[str]]


def parse(overrides: Sequence[str], known: Known, sweep: bool = False) -> tuple[list[Override], list[str]]:
    """The overrides that can be composed, and what is wrong with the others."""
    parsed: list[Override] = []
    problems: list[str] = []
    places: dict[tuple[str, str | None], str] = {}
    for text in overrides:
        # One by one: Hydra's `parse_overrides` stops at the first that it can't read.
        if (o := spelling.parsed(text)) is None:
            problems.append(_unparsed(text, known))
            continue
        place = (o.key_or_group, o.package)
        if reason := _refused(o, known, sweep):
            problems.append(reason)
        # Hydra 1.3 takes the last of several values of a key, and of several choices, without a word.
        elif place in places and not o.key_or_group.startswith("hydra"):
            problems.append(f"{text}: {o.key_or_group} is given already, by {places[place]}")
        else:
            places[place] = text
            parsed.append(o)
    return parsed, problems


def _refused(o: Override, known: Known, sweep: bool) -> str | None:
    key, last = o.key_or_group, o.key_or_group.rpartition(".")[2]
    if not key:
        return f"{o.input_line}: name what is to be set, KEY=VALUE"
    if o.is_sweep_override() and not sweep:
        return f"{o.input_line}: several values are a sweep; add -m, or write key=[a,b] for a list"
    if key in known.groups and not o.is_delete():
        return _choice(o, known)
    # All but the first are keywords of `hydra.utils.instantiate`: `norm._target_=os.system` would compose.
    if last in ("_part_", "_target_", "_partial_", "_args_", "_convert_", "_recursive_"):
        return f"{key} can't be set: a part is chosen by its name, {key.rpartition('.')[0] or 'SLOT'}=NAME"
    # Hydra deletes a field of a typed config as well, and no schema is asked again.
    if o.is_delete() and key in registry.SLOTS_NEEDED:
        return f"~{key}: a model needs one; choose {key}=NAME ({', '.join(known.choices(key))})"
    if key.startswith("trainer.") and last in ELSEWHERE:
        return f"{key} is set by {ELSEWHERE[last]}"
    return None


def _unparsed(text: str, known: Known) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        word = key.lstrip("+~")
        if word in known.groups or "." in word:
            return f"{text}: give it a value, {word}={'NAME' if word in known.groups else 'VALUE'}"
        return f"{text}: {guess.bare(word, known.groups, known.choices)}"
    if (strange := re.search(r"[^\x00-\x7f]", key)) is not None:  # also a letter that looks like one of ASCII
        # Control characters have no name, for which `name` raises ValueError without a default.
        name = unicodedata.name(strange[0], "no letter")
        hint = near(key.lstrip("+~"), known.groups) if "." not in key else "llmlab train --help lists them"
        return f"{text}: no key has the character {strange[0]!r} ({name}); {hint}"
    shown = shlex.quote(f"{key}={quoted(value)}")
    return f"{text}: can't be read; quote values that hold any of , [ ] {{ }} : = or spaces, as in {shown}"


def _choice(o: Override, known: Known) -> str | None:
    group, value = o.key_or_group, o.value()
    options = known.choices(group)
    # Hydra 1.3 raises a ValueError ("Config group override must be a string or a list") that names no group.
    if value is None:
        if group in registry.SLOTS_NEEDED:
            return f"{o.input_line}: a model needs one; choose {group}=NAME ({', '.join(options)})"
        return f"{o.input_line}: write ~{group} for none"
    if o.value_type is not None and o.value_type.name == "GLOB_CHOICE_SWEEP":
        # The values of glob(...) are taken from what the config loader finds in the group, so none is wrong.
        return None
    lists = [value] if isinstance(value, list) else []
    if o.is_sweep_override() and o.is_discrete_sweep():
        # As text, each with its quotes and brackets: a point of a sweep over loggers is a list itself.
        lists = [_listed(str(text)) for text in o.sweep_string_iterator()]
        value = [v for names in lists for v in names]
    # Hydra merges the choices of a list one over the other, so that parts of two would be mixed.
    elif isinstance(value, list) and group not in SEVERAL:
        return (
            f"{o.input_line}: {group} is one choice; for a sweep over several, -m {group}={','.join(map(str, value))}"
        )
    if not isinstance(value, str | int | float | list):
        few = ", ".join(options) if len(options) <= 12 else f"llmlab parts {group} lists them"
        return f"{group} is a choice ({few}); set its keys one by one, {group}.KEY=VALUE"
    if twice := [name for names in lists for name in names if names.count(name) > 1 and group in LISTED_SLOTS]:
        return f"{o.input_line}: {twice[0]} is named twice; a second one has a name of its own, {group}@{group}.MINE={twice[0]}"
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options:
            if group == "logger" and str(name).lower() in ALWAYS:
                return (
                    f"logger={name}: metrics.csv is always written, in the run folder; leave logger={name} out, or add "
                    f"{' or '.join(f'logger={n}' for n in options)}"
                )
            if reason := registry.broken(group, str(name)):
                return f"{group}={name} can't be read: {reason}"
            if not options:
                return f"{group}={name}: there is no {group} yet; put one into a folder given by --config-dir"
            if group in LEARNED_SLOTS and (other := [s for s in LEARNED_SLOTS if name in registry.names(s)]):
                return f"{group}={name}: {name} is of another slot: {other[0]}={name}"
            hint = near(str(name), options)
            if len(hint) > 400:
                hint = f"llmlab parts {group} lists the {len(options)} that there are"
            if group == "data":
                hint += "; text of your own is data=FOLDER_OR_FILE, and there is no file or folder of this name"
            return f"{group}={name}: there is no such {group}; {hint}"
        if where := registry.ambiguous(group, str(name)):
            return f"{group}={name} is registered twice, {where}; give one of them another name"
    return None


def _listed(text: str) -> list[str]:
    """A point's value of a group: one name, or those of a list."""
    return [name for name in text[1:-1].split(",") if name] if text[:1] == "[" else [text]


FEW = 4  # values of keys that are tried one by one


def every_problem(
    parsed: Sequence[Override], run: Callable[[list[str]], DictConfig], known: Known, first: Exception | None = None
) -> tuple[list[str], list[Override]]:
    """Hydra stops at the first problem: compose again with fewer overrides at a time, groups first and one by one.

    Returns a line for each problem, and the overrides without one. `first`: what all of them together raise.
    """
    try:
        base = run([])
    except Exception as e:
        return [message(e, None, known)], []
    if first is not None and len(parsed) == 1:
        return [message(first, base, known, parsed[0])], []
    good: list[Override] = []
    problems: list[str] = []
    for o in (o for o in parsed if o.key_or_group in known.groups):
        try:
            base = run([*(str(g.input_line) for g in good), str(o.input_line)])
        except Exception as e:
            problems.append(message(e, base, known, o))
            continue
        good.append(o)
    chosen = [str(g.input_line) for g in good]

    def judge(values: Sequence[Override]) -> None:
        """Each composition costs 0.1 s, and a config.json becomes some 25 overrides: many are tried at once."""
        try:
            if values:
                run([*chosen, *(str(o.input_line) for o in values)])
            good.extend(values)
        except Exception as e:
            if len(values) == 1:
                problems.append(message(e, base, known, values[0]))
                return
            size = 1 if len(values) <= FEW else (len(values) + 1) // 2
            for at in range(0, len(values), size):
                judge(values[at : at + size])

    values = [o for o in parsed if o.key_or_group not in known.groups]
    for at in range(0, len(values), size := len(values) if len(values) > FEW else 1):
        judge(values[at : at + size])
    return list(dict.fromkeys(problems)), good


def message(e: Exception, base: DictConfig | None, known: Known, o: Override | None = None) -> str:
    """One line for one exception."""
    from hydra.errors import MissingConfigException

    # Hydra wraps what OmegaConf raises ("Error merging override ..."); what was wrong with it, only the cause says.
    text = "\n".join(str(x) for x in (e, e.__cause__) if x is not None)
    # Raised without a cause; where it was a group's choice it has the options that there are.
    if isinstance(e, MissingConfigException):
        group, _, name = (e.missing_cfg_file or "").rpartition("/")
        if e.options:
            return f"{group}={name}: there is no such {group}; {near(name, [x.split('/')[-1] for x in e.options])}"
        return text.split("\n")[0]
    # PyYAML's errors, which Hydra lets through as they are.
    if mark := getattr(e, "problem_mark", None):
        return f"{mark.name}:{mark.line + 1}: {getattr(e, 'problem', 'not YAML')}"
    # Hydra begins with the file whose defaults list or content it could not merge.
    if found := re.search(r"In '([^']+)'", text):
        return _in_file(found[1], text)
    if o is not None and (line := _override(text, o, base, known)):
        return line
    # Hydra's messages go on with its search path, a line a provider.
    return " ".join(text.split())[:300]


def _override(text: str, o: Override, base: DictConfig | None, known: Known) -> str | None:
    key, shown = o.key_or_group, o.input_line
    if o.package and key in known.groups:
        return f"{shown}: nothing is chosen at {o.package}; {_places(key, base)}"
    parent = key.rpartition(".")[0]
    # OmegaConf's words for a node in struct mode, as all that Hydra composes is.
    if "does not support deletion" in text:
        return f"{shown}: it can't be removed; give it another value"
    if parent and _select(base, parent) is None:
        return _no_parent(key, parent, base, known)
    if parent in LISTED_SLOTS:
        option = _listed_option(parent, key.rpartition(".")[2], _select(base, parent), known)
        return f"{key}: there is no such key in {parent}; type {option}"
    if reason := _wrong_value(text):
        return f"{shown}: {reason}"
    if (
        "is not in the defaults list" in text
        or "Could not override" in text
        or "not in" in text
        or "Could not delete" in text
    ):
        # Looked up in the config without this override, in which its neighbours are.
        node, last = _select(base, parent), key.rpartition(".")[2]
        what = (
            f" in {parent}" + (f" ({node['_part_']})" if node is not None and "_part_" in node else "")
            if parent
            else ""
        )
        if parent == "heads":
            return f"{key}: there is no such key{what}; a head is chosen by heads.ROLE=NAME"
        if parent:
            return f"{key}: there is no such key{what}; {guess.below(parent, last, _keys(node), base)}"
        hint = guess.at_root(key, [*_keys(base), *known.groups], base, known.choices)
        return f"{key}: there is no such key; {hint}"
    return None


def _no_parent(key: str, parent: str, base: DictConfig | None, known: Known) -> str:
    """`mask.x` where mask is null, `modle.dim` where there is no modle."""
    if key.startswith("hydra."):
        return f"{key}: Hydra has no such key; hydra.run.dir=FOLDER and hydra.sweep.dir=FOLDER place run folders"
    walked = ""
    for name in parent.split("."):
        node = _select(base, walked)
        if node is None or not hasattr(node, "keys") or name not in node:
            names = _keys(node) + ([] if walked else known.groups)
            if walked in LISTED_SLOTS and name in known.choices(walked):
                several = ",".join([*_keys(node), name])
                return (
                    f"{key}: nothing is chosen at {walked}.{name}; choose {walked}={f'[{several}]' if node else name}"
                )
            if walked in LISTED_SLOTS:
                return f"{key}: there is no {name!r} in {walked}; {near(name, known.choices(walked))}"
            if not names:
                return f"{key}: this model has no {walked}"
            hint = near(name, names)
            if not walked and not hint.startswith("did you mean"):
                hint = guess.elsewhere(key.rpartition(".")[2], base) or guess.ALL_KEYS
            return f"{key}: there is no {name!r}{f' in {walked}' if walked else ''}; {hint}"
        walked = f"{walked}.{name}" if walked else name
    group, _, slot = parent.rpartition(".")
    if group in SEVERAL and slot in known.choices(group):
        return f"{key}: nothing is chosen at {parent}; choose {group}={slot}"
    if slot in known.groups:
        package = "" if slot == parent else f"@{parent}"
        return f"{key}: nothing is chosen at {parent}; choose {slot}{package}=NAME ({', '.join(known.choices(slot))})"
    return f"{key}: {parent} has no keys"


def _listed_option(slot: str, last: str, node: DictConfig | None, known: Known) -> str:
    """The words that `filter.least=2` may have been meant as."""
    named = [label for label in _keys(node) if last in _keys(_select(node, label))]
    if last in known.choices(slot):
        return f"{slot}={last}, and its options as {slot}.{last}.OPTION=VALUE"
    return " or ".join(f"{slot}.{label}.{last}=VALUE" for label in named) or f"{slot}.NAME.OPTION=VALUE"


def _wrong_value(text: str) -> str | None:
    # Words of OmegaConf 2.3: all of these are ValidationErrors, and only the text tells which.
    if found := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text):
        return f"must be {_kind(found[2])}, but is {found[1]!r}"
    if found := re.search(r"Value '(.*)' is not a valid bool", text):
        return f"must be true or false, but is {found[1]!r}"
    if "is not a ListConfig" in text:
        return "must be a list, in brackets: [NAME,NAME]"
    if found := re.search(r"field '[^']+' is not Optional", text):
        return "must have a value, but is null"
    if found := re.search(
        r"Invalid value assigned[^\n]*|Cannot (?:assign|convert)[^\n]*|[^\n]*is incompatible with type hint[^\n]*", text
    ):
        return re.sub(r"typing\.|<class '([\w.]+)'>", r"\1", found[0]).strip()
    return None


def _kind(name: str) -> str:
    return {
        "Integer": "a whole number",
        "Float": "a number",
        "Boolean": "true or false",
        "String": "a text",
    }.get(name, f"a {name}")


def _in_file(file: str, text: str) -> str:
    """A YAML file that doesn't fit the schema."""
    path = file + ("" if file.endswith(".yaml") else ".yaml")
    if found := re.search(r"Key '([^']+)' not in '([^']+)'", text):
        where = re.search(r"full_key: (\S+)", text)
        # The name of the class is all that OmegaConf says of the node.
        names = [f.name for t in _types() if t.__name__ == found[2] for f in dataclasses.fields(t)]
        names = [n for n in names if n != "_part_"]
        return f"{path}: there is no key {where[1] if where else found[1]!r}; {near(found[1], names)}"
    # Hydra lists the options below its message, each after a tab.
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, name = found[1].rpartition("/")
        options = [w.strip() for w in text.partition("Available options")[2].splitlines()[1:] if w.startswith("\t")]
        return f"{path}: {group}={name}: there is no such {group}; {near(name, options)}"
    if reason := _wrong_value(text):
        where = re.search(r"full_key: (\S+)", text)
        return f"{path}: {where[1] + ' ' if where else ''}{reason}"
    return " ".join(text.split())[:300]


def _types() -> list[type]:
    from llmlab.config import store
    from llmlab.config.schema import root

    found: list[type] = [store.schema(*key) for key in registry.index()]
    queue: list[Any] = [root()]
    while queue:
        cls = queue.pop()
        found.append(cls)
        # Resolved: annotations of schema.py are texts, by its __future__ import.
        for hint in typing.get_type_hints(cls).values():
            # Optional[X] and dict[str, X] have their dataclass among their arguments.
            queue += [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t) and t not in found]
    return found


def _places(group: str, base: DictConfig | None) -> str:
    places = []
    for name in ("kinds", "stacks"):
        places += [f"{group}@{name}.{k}.{group}" for k in _keys(_select(base, name))]
    if group == "head":
        places = [f"heads.{k}" for k in _keys(_select(base, "heads"))]
        return f"this model names {', '.join(places)}" if places else "heads.ROLE=NAME chooses one"
    return (
        f"this model has {', '.join(places)}"
        if places
        else f"this model has neither kinds nor stacks; use {group}=NAME"
    )


def _select(base: DictConfig | None, path: str) -> DictConfig | None:
    from omegaconf import OmegaConf

    if base is None or not path:
        return base
    node = OmegaConf.select(base, path)
    # `select` gives None for a path that is not there, and the value where it ends in one.
    return node if OmegaConf.is_config(node) else None


def _keys(node: DictConfig | None) -> list[str]:
    return [str(k) for k in node if not str(k).startswith("_")] if node is not None and hasattr(node, "keys") else []
