"""The arrow runs one way: plugins -> the slots and the registry; llmlab imports no plugin; `import llmlab` is light."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {"llmlab.slots", "llmlab.registry", "llmlab.sizes", "llmlab.errors"}


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


def test_every_folder_is_a_package():
    for top in (ROOT / "plugins", ROOT / "src" / "llmlab"):
        for folder in (p for p in top.rglob("*") if any(p.glob("*.py"))):
            assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py: it would not be in the wheel"


def test_import_llmlab_is_light():
    heavy = ("torch", "lightning", "hydra", "numpy", "omegaconf")
    code = f"import sys, llmlab; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
