"""Serves another source for one module, to this process and to the Python processes that it starts; the file stays as it is."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

VARIABLE = "LLMLAB_MUTANT"  # a JSON file with the module, its path and its source, for processes that are started
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
REACH = "__reach__"  # name of the function that an instrumented module calls with the line of each statement


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str, reach: Callable[[int], None] | None):
        super().__init__(name, path)
        self.source, self.reach = source, reach

    def get_code(self, fullname: str) -> CodeType:
        # No bytecode: __pycache__ belongs to the unchanged file.
        tree = ast.parse(self.source, self.path)
        return compile(instrumented(tree) if self.reach else tree, self.path, "exec")

    def get_source(self, fullname: str) -> str:
        return self.source

    def exec_module(self, module: ModuleType) -> None:
        if self.reach:
            module.__dict__[REACH] = self.reach
        super().exec_module(module)


class _Finder:
    def __init__(self, sources: dict[str, tuple[str, str]], reach: Callable[[str], Callable[[int], None]] | None):
        self.sources, self.reach = sources, reach

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        file, source = self.sources[name]
        loader = _Loader(name, file, source, self.reach(name) if self.reach else None)
        return importlib.util.spec_from_file_location(name, file, loader=loader)


def serve(sources: dict[str, tuple[str, str]], reach: Callable[[str], Callable[[int], None]] | None = None) -> None:
    """From now on the imports of these modules give these sources. sources: {module: (its file, its source)}."""
    sys.meta_path.insert(0, _Finder(sources, reach))  # type: ignore[arg-type]
    # llmlab reads the parts' options from the text of the files.
    texts = {os.path.realpath(file): source for file, source in sources.values()}
    read = Path.read_text

    def read_text(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        served = texts.get(os.path.realpath(self)) if self.suffix == ".py" else None
        return read(self, encoding, errors) if served is None else served

    Path.read_text = read_text  # type: ignore[method-assign]


def tell_children(module: str, file: str, source: str, note: Path) -> None:
    """Serve it in the Python processes that this one starts too, which find `sitecustomize` here. note: where it is written."""
    note.write_text(json.dumps([module, file, source]))
    os.environ[VARIABLE] = str(note)
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(here / "site"), str(here.parent), os.environ.get("PYTHONPATH")))
    )


def serve_in_child() -> None:
    """Called by `sitecustomize`."""
    if note := os.environ.get(VARIABLE):
        module, file, source = json.loads(Path(note).read_text())
        serve({module: (file, source)})


def forget(modules: Iterable[str]) -> None:
    """The next import of these modules runs them again."""
    for name in modules:
        module = sys.modules.pop(name, None)
        package, _, attribute = name.rpartition(".")
        # `from package import module` takes the attribute, if there is one, and looks no further.
        if module is not None and package in sys.modules and vars(sys.modules[package]).get(attribute) is module:
            delattr(sys.modules[package], attribute)


class _Instrument(ast.NodeTransformer):
    """Puts a call of REACH before each statement in a function."""

    depth = 0  # of functions

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        inside = self.depth > 0
        function = isinstance(node, FUNCTIONS)
        self.depth += function
        super().generic_visit(node)
        self.depth -= function
        if not inside or not isinstance(node, ast.stmt) or is_text(node):
            return node
        call = ast.Expr(ast.Call(ast.Name(REACH, ast.Load()), [ast.Constant(node.lineno)], []))
        return [ast.copy_location(call, node), node]


def instrumented(tree: ast.Module) -> ast.Module:
    """The tree with a call of REACH before each statement in a function."""
    _Instrument().visit(tree)
    return ast.fix_missing_locations(tree)


def lines_in_functions(source: str) -> set[int]:
    """Lines of the statements that run when a function is called, not as the file is imported."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS))
    inside = (inner for node in functions for statement in node.body for inner in ast.walk(statement))
    return {node.lineno for node in inside if isinstance(node, ast.stmt)}


def is_text(node: ast.stmt) -> bool:
    """A docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
