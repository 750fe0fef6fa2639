"""`llmlab new SLOT NAME [out=FILE]`: a part and its test that work as they stand, there to be edited."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmlab import registry
from llmlab.check.request import SLOTS as CHECKED
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.registry import near
from llmlab.slot_names import SLOTS

TEMPLATES = Path(__file__).parents[1] / "templates"
USAGE = f"""\
llmlab new SLOT NAME [out=FILE]

Writes a working part and its test, to be edited. In a checkout of llmlab they become
plugins/SLOT/NAME.py and tests/plugins/test_NAME.py, elsewhere NAME.py and test_NAME.py in the current folder, which
LLMLAB_PLUGINS=NAME makes known. out=FILE puts the part there and the test beside it. Below the part (but a filter) stands
its twin, the formula in NumPy, with which llmlab check SLOT=NAME compares the part.

slots: {", ".join(SLOTS)}
llmlab parts SLOT lists the existing parts and their files; src/llmlab/slots.py (objectives.py for the objective, filters.py
for a filter) defines each slot's arguments and results."""

LONGEST = 30  # lines of the part keep to their width
# PyYAML reads yes, no, on and off as booleans (YAML 1.1); Hydra's grammar has null, true, false, nan and inf.
VALUES = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")
# How a part of a slot is typed where SLOT=NAME alone shows nothing of it.
TYPED = {"mask": "model=bert mask={}", "moe": "model=qwen_moe moe={}", "head": "+head@heads.tokens={}"}
TYPED["alignment"] = "alignment={} data=RANKED.jsonl"
TYPED["reward"] = "alignment=reinforce reward={} data=PROMPTS.jsonl"
KNOWN = '''

@pytest.fixture(autouse=True)
def known(monkeypatch):
    """llmlab finds the part beside this file, as under LLMLAB_PLUGINS={module} on the command line."""
    monkeypatch.setenv("LLMLAB_PLUGINS", "{module}")
'''


@dataclass(frozen=True)
class Plan:
    """Places of a part and its test. `module`: what LLMLAB_PLUGINS must name; None: the part lies in a checkout's plugins/."""

    part: Path
    test: Path
    module: str | None


def main(argv: Sequence[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    words = [a for a in argv if "=" not in a]
    given = dict(a.split("=", 1) for a in argv if "=" in a)
    for key in given:
        if key != "out":
            raise UserError(f"{key}: there is no such key of llmlab new; {near(key, ['out'])}")
    if len(words) != 2:
        raise UserError("llmlab new takes a slot and a name, as in: llmlab new attention my_attention")
    slot, name = words
    _check(slot, name)
    plan = _plan(slot, name, given.get("out"))
    _write(plan, slot, name)
    print(f"wrote {_shown(plan.part)} and {_shown(plan.test)}: a part that works as it stands, and its test\nnext:")
    for line in _next(plan, slot, name):
        print(f"  {line}")
    return 0


def _check(slot: str, name: str) -> None:
    from llmlab.config.choices import choices

    if slot not in SLOTS:
        raise UserError(f"{slot}: there is no such slot; {near(slot, SLOTS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or len(name) > LONGEST:
        raise UserError(
            f"{name}: can't name a part; take lower-case letters, digits and _ (no more than {LONGEST}), as my_{slot}"
        )
    if name in VALUES:
        raise UserError(f"{name}: can't name a part, because {slot}={name} is a value on the command line")
    if entry := registry.index().get((slot, name)):
        raise UserError(f"{slot}={name} is there already, at {_shown(entry.path)}:{entry.line}; choose another name")
    if name in choices(slot):
        raise UserError(f"{slot}={name} is there already, as a preset in conf/{slot}/; choose another name")


def _plan(slot: str, name: str, out: str | None) -> Plan:
    root = checkout()
    if out is not None:
        part = expanded(out)
        if part.suffix != ".py" or not part.stem.isidentifier():
            raise UserError(f"out={out} must be a Python file that can be imported, as {name}.py")
    else:
        part = root / "plugins" / slot / f"{name}.py" if root else Path(f"{name}.py")
    if root and part.resolve().is_relative_to(root / "plugins"):
        plan = Plan(part, root / "tests" / "plugins" / f"test_{part.stem}.py", None)
    else:
        plan = Plan(part, part.with_name(f"test_{part.stem}.py"), part.stem)
    for file in (plan.part, plan.test):
        if file.exists():
            raise UserError(f"{_shown(file)} is there already; choose another name, or out=FILE")
    # find_spec knows only what is installed here; the names of the standard library are taken on every platform.
    if plan.module and (plan.module in sys.stdlib_module_names or importlib.util.find_spec(plan.module) is not None):
        raise UserError(f"{plan.module} is the name of another module, which {part.name} would hide; choose another")
    return plan


def checkout() -> Path | None:
    """The checkout that llmlab runs from, if the current folder is in it."""
    from llmlab.config.model_files import conf_dir

    root = conf_dir().parent
    here = Path.cwd().resolve()
    return root if (root / "plugins").is_dir() and (root / "tests").is_dir() and here.is_relative_to(root) else None


def _write(plan: Plan, slot: str, name: str) -> None:
    from llmlab.files import write_atomic

    part, test = (
        _renamed((TEMPLATES / f"{kind}{slot}.py").read_text(encoding="utf-8"), slot, name) for kind in ("", "test_")
    )
    if plan.module:
        if "import pytest\n" not in test:
            # Where isort puts it, so that the new file passes a linter as it stands.
            test = test.replace("import torch\n", "import pytest\nimport torch\n", 1)
        # Behind the last import, since linters want imports first (E402).
        *_, last = re.finditer(r"^(?:from|import) .*\n", test, re.M)
        test = test[: last.end()] + KNOWN.format(module=plan.module) + test[last.end() :]
    for file in (plan.part, plan.test):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"{file.parent}: no folder can be made there: {e.strerror}") from e
    write_atomic(plan.part, part)
    try:
        write_atomic(plan.test, test)
    except UserError:
        # A part without its test would make a second try fail: the name would be taken.
        plan.part.unlink()
        raise


def _renamed(text: str, slot: str, name: str) -> str:
    mine = f"my_{slot}"
    return text.replace(_class(mine), _class(name)).replace(mine, name)


def _class(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _next(plan: Plan, slot: str, name: str) -> list[str]:
    from llmlab.runs.record import program_name

    program, before = program_name(), ""
    if plan.module:
        named = [m.strip() for m in os.environ.get(registry.VARIABLE, "").split(",") if m.strip()]
        before = f"{registry.VARIABLE}={','.join([*named, plan.module])} "
        if plan.part.resolve().parent != Path.cwd().resolve():
            before = f"PYTHONPATH={shlex.quote(_shown(plan.part.parent))} {before}"
    # A shell may have no `python` (Debian installs python3 only), or that of another environment.
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(_shown(Path(sys.executable)))
    test = f"{python} -m pytest {shlex.quote(_shown(plan.test))}"
    if importlib.util.find_spec("pytest") is None:
        test = f"{python} -m pip install -q pytest && {test}"
    return [
        test,
        f"{before}{program} parts {slot}",
        *([f"{before}{program} check {slot}={name}"] if slot in CHECKED else []),
        f"{before}{program} train {TYPED.get(slot, f'{slot}={{}}').format(name)} trainer.max_steps=20",
    ]


def _shown(path: Path) -> str:
    from llmlab.runs.record import relative_path

    return relative_path(path.absolute())
