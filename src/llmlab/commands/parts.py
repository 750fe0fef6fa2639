"""`llmlab parts [SLOT] [--json]`: what can be chosen, where it comes from, and what can be set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab import registry
from llmlab.config import guess, model_files
from llmlab.errors import UserError
from llmlab.registry import Entry, Option, near
from llmlab.slot_names import place_of

HOW = {  # parts of a slot are chosen where SLOT=NAME is not all
    "head": "for the objective's role: head=NAME; of several: heads.ROLE=NAME",
    "filter": "any number, in their order: filter=[NAME,NAME]; the same one again: filter@filter.MINE=NAME",
}


def main(argv: Sequence[str]) -> int:
    """Print the parts of one slot with their options, or a line for each part of every slot."""
    if "-h" in argv or "--help" in argv:
        print("llmlab parts [SLOT] [--json]   SLOT: a slot (attention, norm, ...) or another group (model, data, ...)")
        return 0
    from llmlab.config.choices import groups

    names = [a for a in argv if not a.startswith("-")]
    for flag in (a for a in argv if a.startswith("-") and a != "--json"):
        slot = flag.lstrip("-")
        hint = f"type llmlab parts {slot}" if slot in groups() else near(flag, ["--json", "--help"])
        raise UserError(f"{flag}: there is no such flag; {hint}")
    if len(names) > 1:
        raise UserError(f"llmlab parts takes one slot, but was given {' and '.join(names)}")
    if names and names[0] not in groups():
        from llmlab.config.choices import choices

        of = guess.parts(names[0], groups(), choices, "parts")
        raise UserError(f"{names[0]}: there is no such slot; {of or near(names[0], groups())}")
    chosen = names or groups()
    found = {g: described(g) for g in chosen}
    if "--json" in argv:
        print(json.dumps(found if not names else found[names[0]], indent=2, default=str))
    else:
        print("\n\n".join(_text(g, found[g], full=bool(names)) for g in chosen if found[g]))
    return 0


def described(group: str) -> list[dict[str, Any]]:
    """Parts, then presets, of one group, as plain values."""
    entries = [e for (slot, _), e in sorted(registry.index().items()) if slot == group]
    return [*(_part(e, entries) for e in entries), *_presets(group)]


def _part(e: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    options = {k: _option(o) for k, o in e.options.items()}
    kin = [k for k in entries if (k.module, k.qualname) == (e.module, e.qualname)]
    own = [k for k, o in e.options.items() if any(o.default != other.options[k].default for other in kin)]
    differs = ", ".join(f"{k}={_yaml(e.options[k].default)}" for k in own)
    summary = e.summary.removesuffix(".") + (f" ({differs})" if differs else "")
    return {
        "name": e.name,
        "summary": summary,
        "paper": e.paper,
        "file": f"{_short(e.path)}:{e.line}",
        "options": options,
    }


def _option(o: Option) -> dict[str, Any]:
    described: dict[str, Any] = {"type": o.spelled, "doc": o.doc, "required": o.required}
    if not o.required:
        described["default"] = o.default
    if o.choices:
        described["choices"] = list(o.choices)
    return described


def _presets(group: str) -> list[dict[str, Any]]:
    from llmlab.config.model_files import conf_dir

    found = []
    # glob gives files in the order of the file system, which differs between machines.
    for file in sorted(Path(conf_dir(), group).glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comments = (line[1:].strip() for line in lines if line.startswith("#"))
        values = ", ".join(line for line in lines if line and not line.startswith("#"))
        says = next((c for c in comments if c and not c.startswith("@")), values)
        if size := model_files.published(file):
            says = f"published: {size}"
        found.append({"name": file.stem, "summary": says, "file": _short(file)})
    return found


def _short(path: Path) -> str:
    """The path from here, if the file lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _text(group: str, found: list[dict[str, Any]], full: bool) -> str:
    width = max(len(p["name"]) for p in found) + 2
    lines = [group + (f"   ({HOW[group]})" if group in HOW else "")]
    for p in found:
        paper = f"  [{p['paper']}]" if p.get("paper") else ""
        lines.append(f"  {p['name']:<{width}}{p['summary']}{paper}")
        if not full:
            continue
        indent = " " * (width + 4)
        for name, o in p.get("options", {}).items():
            kind = "|".join(map(str, o["choices"])) if o.get("choices") else o["type"]
            default = "" if o["required"] else f" = {_yaml(o['default'])}"
            place = "heads.ROLE" if group == "head" else place_of(group, p["name"])
            key = f"{place}.{name}"
            lines.append(f"{indent}{key}: {kind}{default}" + (f"   {o['doc']}" if o["doc"] else ""))
        lines.append(f"{indent}{p['file']}")
    return "\n".join(lines)


def _yaml(value: object) -> str:
    # bool before str: YAML has true and null where Python writes True and None.
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
