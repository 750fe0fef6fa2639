"""The process that mutants are forked from: everything heavy is imported once, and one thread runs, since a fork copies no other."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

from mutants import serve
from mutants.targets import ROOT, importers, module_of

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


def put(file: str, source: str, fresh: bool, note: Path | None = None) -> None:
    """In a child: this file has another source, whoever imports it. fresh: import all of llmlab anew, since what the parts
    declare has changed. note: a file by which processes that this one starts learn of it."""
    module = module_of(file)
    serve.serve({module: (str(ROOT / file), source)})
    if note is not None:
        serve.tell_children(module, str(ROOT / file), source, note)
    if fresh:
        forget_all()
    else:
        serve.forget(importers(module, ours()))


def forget_all() -> None:
    """Import all of llmlab anew. Hydra's ConfigStore stays, since Hydra's own configs are in it; ours are stored over the old."""
    serve.forget(ours())


def put_instrumented(file: str, source: str) -> set[int]:
    """In a child: the set to which this file adds the line of each statement in a function that it runs."""
    reached: set[int] = set()
    module = module_of(file)
    serve.serve({module: (str(ROOT / file), source)}, lambda name: reached.add)
    serve.forget(importers(module, ours()))
    return reached


def declared(file: str) -> dict[tuple[str, str], tuple[object, object]]:
    """{(slot, name): (its options, its attributes)} of the parts that a file defines."""
    from llmlab import source

    if not file.startswith("plugins/"):
        return {}
    parts = source.parts_of_file(ROOT / file, module_of(file))
    return {(p.slot, p.name): (p.options, p.attrs) for p in parts}


def parts_of(file: str) -> list[tuple[str, str]]:
    """The parts that a file defines, or those of the files that import it."""
    if own := list(declared(file)):
        return own
    folder = sorted((ROOT / file).parent.glob("*.py"))
    among = {module_of(f.relative_to(ROOT).as_posix()): f for f in folder}
    users = importers(module_of(file), among)
    return [part for name, f in among.items() if name in users for part in declared(f.relative_to(ROOT).as_posix())]
