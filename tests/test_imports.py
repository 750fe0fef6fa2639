"""Imports only run down, from floor to floor and without a circle; llmlab imports no plugin; `import llmlab` is light."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "llmlab.divergences",
    "llmlab.optima",
    "llmlab.policy",
    "llmlab.reasoning_tasks",
    "llmlab.slots",
    "llmlab.registry",
    "llmlab.sizes",
    "llmlab.errors",
    "llmlab.files",
    "llmlab.ngram",
}

PLUGIN_API = (
    "attribute",
    "attributes",
    "objective_attributes",
    "twins",
    "definitions",
    "slots",
    "slot_names",
    "registry",
    "source",
    "sizes",
    "values",
    "memory",
    "objectives",
    "filters",
    "modules",
    "seeds",
    "errors",
    "measures",
    "mixtures",
    "divergences",
    "optima",
    "policy",
    "record_kinds",
    "ngram",
    "reasoning_tasks",
)
# The floors, the highest first. Folders and files of one row import each other only as BESIDE says.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("api", "testing", "templates", "__main__", "commands"),  # doors: what is typed, and what `import llmlab` offers
    ("plan", "report", "sweep", "check", "probing", "oracle", "scoring", "pipeline"),  # tools side by side
    ("training",),
    ("runs",),
    ("hub", "decoding", "model", "data", "config"),
    (*PLUGIN_API, "record_kinds", "files", "json_files", "formatting", "intervals", "ranks"),
)
BESIDE = {
    ("hub", "model"), ("hub", "data"), ("hub", "config"), ("decoding", "model"), ("decoding", "config"),
    ("model", "config"), ("data", "config"), ("__main__", "commands"), ("testing", "api"), ("templates", "testing"),
}  # fmt: skip


def floor(name):
    return next((i for i, row in enumerate(FLOORS) if name in row), None)


@functools.cache
def modules():
    """{module: its file} of llmlab."""
    files = {f.relative_to(ROOT / "src").with_suffix("").parts: f for f in (ROOT / "src/llmlab").rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): file for parts, file in files.items()}


@functools.cache
def arrows():
    """{module: the modules of llmlab that it imports anywhere, in a function or for type checking too}."""
    known = modules()
    found = {}
    for module, file in known.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                names |= {full if (full := f"{base}.{a.name}") in known else base for a in node.names}
            elif isinstance(node, ast.Constant) and isinstance(
                node.value, str
            ):  # import_module("llmlab.commands.train")
                names.add(node.value.partition(":")[0])
        found[module] = {n for n in names if n in known} - {module, "llmlab"}  # `llmlab` itself holds the version
    return found


def imported(file):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{file}:{node.lineno}: an import from above its folder"
            if node.level == 0:
                yield node.module


def test_plugins_import_slots_and_registry_only():
    files = sorted((ROOT / "plugins").rglob("*.py"))
    assert len(files) > 20
    for file in files:
        slot = f"llmlab_plugins.{file.relative_to(ROOT / 'plugins').parts[0]}"
        for name in imported(file):
            top = name.partition(".")[0]
            assert top != "plugins", f"{file} imports {name}: that would be a second module of the same file"
            assert top != "llmlab" or name in ALLOWED, f"{file} imports {name}"
            assert top != "llmlab_plugins" or name.startswith(slot), f"{file} imports {name}, of another slot"


def test_llmlab_imports_no_plugin():
    for file in sorted((ROOT / "src").rglob("*.py")):
        for name in imported(file):
            assert name.partition(".")[0] not in ("llmlab_plugins", "plugins"), f"{file} imports {name}"


def test_every_file_stands_on_a_floor():
    tops = {m.split(".")[1] for m in modules() if m != "llmlab"}
    assert {t for t in tops if floor(t) is None} == set(), "name it in FLOORS"
    assert {name for row in FLOORS for name in row} == tops, "FLOORS names what is not there"


def test_no_import_runs_up():
    wrong = []
    for module, targets in arrows().items():
        if module == "llmlab":  # which offers the doors lazily
            continue
        here = module.split(".")[1]
        for target in targets:
            there = target.split(".")[1]
            down = floor(there) > floor(here) or floor(here) == len(FLOORS) - 1 == floor(there)
            if here != there and not down and (here, there) not in BESIDE:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports():
    graph = {m: set(targets) for m, targets in arrows().items() if m != "llmlab"}
    while free := {m for m, targets in graph.items() if not targets & graph.keys()}:
        graph = {m: targets for m, targets in graph.items() if m not in free}
    held = {m for m in graph if any(m in targets for targets in graph.values())}
    assert not held, f"in a circle, or between two: {sorted(held)}"


def test_every_folder_is_a_package():
    for top in (ROOT / "plugins", ROOT / "src" / "llmlab"):
        for folder in (p for p in top.rglob("*") if any(p.glob("*.py"))):
            assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py: it would not be in the wheel"


def test_import_llmlab_is_light():
    heavy = ("torch", "lightning", "hydra", "numpy", "omegaconf")
    code = f"import sys, llmlab; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
