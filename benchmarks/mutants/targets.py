"""Files that are mutated, in groups, and the checks and tests that their mutants are asked."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Families whose models run most of src/llmlab/model: one stack, two, encoders, two streams, kinds of layers, experts.
FAMILIES = ("llama3", "t5", "bert", "gemma3", "deepseek_v3", "xlnet", "qwen_moe")
STATISTICS = ("stats", "power", "verdict", "fairness", "rows", "measured", "variants")


@dataclass(frozen=True)
class Group:
    """Files that match `patterns`. `by_check`, `together`: percentages of kills wanted, by check alone and with the tests."""

    name: str
    patterns: tuple[str, ...]
    by_check: float | None
    together: float | None
    words: tuple[str, ...] = ()  # arguments of `llmlab check`, one call each, for files that define no part
    tests: tuple[str, ...] = ()  # besides those of the folder that mirrors the file's
    always: tuple[str, ...] = ()  # those of them that read the text of a file and run no line of it


GROUPS = (
    Group(
        "plugins",
        ("plugins/*/*.py",),
        85,
        95,
        tests=("tests/config/test_golden.py", "tests/model/test_law.py", "tests/hub/test_reference*.py"),
        always=("tests/config/test_golden.py",),
    ),
    Group(
        "model",
        ("src/llmlab/model/*.py",),
        None,
        None,
        words=(*(f"model={name}" for name in FAMILIES), "moe=expert_choice"),
        tests=(
            "tests/plan/test_components.py",
            "tests/plan/test_memory.py",
            "tests/plugins/test_conformance.py",
            "tests/plugins/test_attention.py",
            "tests/plugins/test_kernel.py",
            "tests/plugins/test_moe.py",
            "tests/plugins/test_expert_choice.py",
            "tests/training/test_frozen_trunk.py",
            "tests/training/test_gradients.py",
            "tests/hub/test_reference*.py",
            "tests/hub/test_damaged.py",
        ),
    ),
    Group(
        "decoding",
        ("src/llmlab/decoding/*.py",),
        None,
        None,
        words=("model=llama3", "model=t5", "model=gpt2", "model=bert", "model=bart"),
        tests=(
            "tests/commands/test_generate.py",
            "tests/commands/test_chat.py",
            "tests/hub/test_texts_of_pairs.py",
            "tests/training/feeds/test_rollout.py",
            "tests/training/test_written.py",
        ),
    ),
    Group(
        "clipping",
        ("src/llmlab/training/clipping.py",),
        None,
        None,
        tests=tuple(f"tests/training/test_{n}.py" for n in ("clipping", "accumulation", "strategies", "frozen_trunk")),
    ),
    Group("statistics", tuple(f"src/llmlab/report/{name}.py" for name in STATISTICS), None, 95),
)
# Tests of a slot that stand in files named otherwise.
OF_SLOT = {
    "position": ("position", "rope", "relative", "disentangled", "dual_chunk"),
    "kernel": ("kernel", "flex", "varlen"),
    "mask": ("visibility",),
    "window": ("visibility",),
    "moe": ("moe", "expert_choice"),
    "objective": ("objective",),
    "optimizer": ("recipe",),
    "schedule": ("recipe",),
    "embedding": ("embedding", "encoder_parts"),
    "head": ("head", "encoder_parts"),
}
# Tests of a slot that stand in other folders.
ELSEWHERE = {
    "objective": (
        "tests/plugins/objectives/test_*.py",
        "tests/training/test_records.py",
        "tests/training/test_companions.py",
        "tests/training/feeds/test_*.py",
    ),
}


def group_of(file: str) -> Group | None:
    return next((g for g in GROUPS if any(fnmatch.fnmatch(file, p) for p in g.patterns)), None)


def files(patterns: Sequence[str] = ()) -> list[str]:
    """Files of all groups, or those of them that match one of the patterns."""
    every = [f for g in GROUPS for p in g.patterns for f in sorted(ROOT.glob(p))]
    names = [f.relative_to(ROOT).as_posix() for f in every if f.name != "__init__.py" or f.stat().st_size > 200]
    return [n for n in dict.fromkeys(names) if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def module_of(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    parts = ("llmlab_plugins", *parts[1:]) if parts[0] == "plugins" else parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tests_of(file: str) -> list[str]:
    """Test files that may cover a file: those of the mirrored folder, and those that its group adds."""
    group = group_of(file)
    assert group is not None
    path = Path(file)
    if path.parts[0] == "plugins":
        slot = path.parts[1]
        names = OF_SLOT.get(slot, (slot,))
        mirrored = [*(f"tests/plugins/test_{n}.py" for n in (*names, "conformance")), *ELSEWHERE.get(slot, ())]
    elif group.name == "clipping":
        mirrored = []
    else:
        mirrored = [f"tests/{path.parts[2]}/test_*.py"]
    found = (f.relative_to(ROOT).as_posix() for p in (*mirrored, *group.tests) for f in sorted(ROOT.glob(p)))
    return list(dict.fromkeys(found))


@cache
def _loaded(module: str, file: Path) -> frozenset[str]:
    return frozenset(_loaded_with(module, file))


def importers(module: str, among: dict[str, Path]) -> set[str]:
    """The module, and those that import it as they are loaded, directly or not: they hold what it had before."""
    edges = {name: _loaded(name, file) for name, file in among.items()}
    found, new = {module}, {module}
    while new:
        new = {name for name, targets in edges.items() if targets & new and name not in found}
        found |= new
    return found


def direct_importers(module: str, among: dict[str, Path]) -> set[str]:
    return {name for name, file in among.items() if module in _loaded(name, file)}


def _loaded_with(module: str, file: Path) -> set[str]:
    """What a module imports outside of functions; of `from a import b` both a and a.b."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in _outer(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return names


def _outer(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _outer(child)
