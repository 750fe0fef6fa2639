"""The process that mutants are forked from. It imports everything heavy once, and has one thread: a fork copies no other."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mutants import serve
from mutants.targets import ROOT, direct_importers, importers, module_of

HEAVY = ("torch", "torch._dynamo", "lightning.pytorch", "hydra", "scipy.special", "pytest", "transformers")
OURS = ("llmlab", "llmlab_plugins")


def prepare() -> None:
    """Import what the checks and the tests need. Called once, before the first fork."""
    # Before torch is imported: a forked child would wait for the threads of a pool that it doesn't have.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.chdir(ROOT)
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            if name != "transformers":
                raise
    for name in ("llmlab.check.runner", "llmlab.commands.check", "llmlab.config.compose", "llmlab.hub.text"):
        importlib.import_module(name)
    from llmlab.check import processes

    processes.configure_process()
    importers("", ours())  # reads all files, which the children then need not
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, all pages of the parent


def ours() -> dict[str, Path]:
    """{module: file} of llmlab and its plugins, as far as they are imported."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in OURS and file:
            found[name] = Path(file)
    return found


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Context in which children may write files, which are deleted at its end, those of a child that was killed too."""
    global _temporary
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        _temporary = Path(folder)
        yield


_temporary = Path(tempfile.gettempdir())


def own_folder() -> Path:
    """In a child: a folder for its files. llmlab's cache is there too, or a mutant's text would be taken by the next."""
    folder = Path(tempfile.mkdtemp(dir=_temporary))
    os.environ["LLMLAB_CACHE"] = str(folder / "cache")
    return folder


def put(file: str, source: str, note: Path | None = None) -> None:
    """In a child: imports of this file give another source. note: a file that tells processes which this one starts."""
    module = module_of(file)
    serve.serve({module: (str(ROOT / file), source)})
    if note is not None:
        serve.tell_children(module, str(ROOT / file), source, note)
    serve.forget(importers(module, ours()))


def forget_all() -> None:
    """Import all of llmlab anew. Hydra's ConfigStore stays, with Hydra's own configs; ours are stored over the old."""
    serve.forget(ours())


def put_instrumented(files: Iterable[str]) -> dict[str, set[int]]:
    """In a child: for each of these files the set to which it adds the line of each statement in a function that it runs."""
    reached: dict[str, set[int]] = {file: set() for file in files}
    modules = {module_of(file): file for file in reached}
    sources = {m: (str(ROOT / f), (ROOT / f).read_text(encoding="utf-8")) for m, f in modules.items()}
    serve.serve(sources, lambda module: marker(reached[modules[module]]))
    among = ours()
    serve.forget(set().union(*(importers(module, among) for module in modules)))
    return reached


def marker(lines: set[int]) -> Callable[[int], None]:
    """A function that adds a line. While torch.compile traces it is called at once, and is nothing in what was traced."""
    import torch

    # flex_attention is traced on a CPU too, and its functions of scores and masks may have no side effects (torch 2.13).
    @torch.compiler.assume_constant_result
    def reach(line: int) -> None:
        lines.add(line)

    return reach


def declared(file: str) -> dict[tuple[str, str], tuple[object, object]]:
    """{(slot, name): (its options, its attributes)} of the parts that a file defines."""
    from llmlab import source

    if not file.startswith("plugins/"):
        return {}
    parts = source.parts_of_file(ROOT / file, module_of(file))
    return {(p.slot, p.name): (p.options, p.attrs) for p in parts}


def parts_of(file: str) -> list[tuple[str, str]]:
    """The parts that a file defines, else those of the files that import it."""
    if own := list(declared(file)):
        return own
    folder = sorted((ROOT / file).parent.glob("*.py"))
    among = {module_of(f.relative_to(ROOT).as_posix()): f for f in folder}
    users = direct_importers(module_of(file), among)
    return [part for name in among if name in users for part in declared(among[name].relative_to(ROOT).as_posix())]
