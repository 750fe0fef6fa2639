"""The keys of `trainer.*`: arguments of Lightning's Trainer, read from its source, so that Lightning isn't imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, Optional

from llmlab.errors import UserError

# What another key says, and which; giving it twice would let the two disagree.
ELSEWHERE = {
    "strategy": "strategy=single, strategy=ddp, strategy=fsdp ...",
    "precision": "precision=32-true, precision=bf16-mixed ...",
    "accumulate_grad_batches": "train.micro_batch_size: it cuts train.batch_size",
    "gradient_clip_val": "train.clip",
    "gradient_clip_algorithm": "train.clip, by norm",
    "max_epochs": "budget.tokens or budget.steps: a run is one endless epoch",
    "min_epochs": "budget.tokens or budget.steps: a run is one endless epoch",
    "min_steps": "budget.steps",
    # Lightning counts micro-batches here, and epochs there; llmlab counts optimizer steps.
    "val_check_interval": "train.validate_every",
    "check_val_every_n_epoch": "train.validate_every",
    "limit_val_batches": "train.validation_batches",
    "log_every_n_steps": "train.log_every",
    "enable_checkpointing": "train.checkpoint_every",
    "default_root_dir": "hydra.run.dir",
    # Lightning would put a DistributedSampler in the loader's place, which shuffles.
    "use_distributed_sampler": "nothing: the order of the data is llmlab's own",
    "reload_dataloaders_every_n_epochs": "nothing: a run is one endless epoch",
    "limit_train_batches": "trainer.max_steps: a run is one endless epoch",
    "overfit_batches": "data.max_documents",
    "fast_dev_run": "trainer.max_steps",
    "barebones": "nothing: a step is lean as it is",
    "callbacks": "nothing: it takes objects",
    "logger": "logger=wandb or logger=tensorboard; metrics.csv in the run folder is always written",
    "plugins": "nothing: it takes objects",
}

SIMPLE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@functools.lru_cache(maxsize=1)
def arguments() -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of Lightning's Trainer."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package lightning is not installed; pip install lightning")
    # Importing Lightning takes 3.6 s of CPU, parsing this one file 8 ms.
    path = Path(spec.submodule_search_locations[0], "pytorch", "trainer", "trainer.py")
    cls = next(
        n
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(n, ast.ClassDef) and n.name == "Trainer"
    )
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    found = {}
    for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        # ast has None for an argument without a default, and a Constant for the default None.
        if default is not None:
            found[arg.arg] = (_type(ast.unparse(arg.annotation) if arg.annotation else ""), ast.literal_eval(default))
    return found


def _type(annotation: str) -> Any:
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    inner = annotation.removeprefix("Optional[").removesuffix("]")
    # OmegaConf 2.3 knows no Callback, Path or timedelta, and checks nothing of Any.
    return Optional[SIMPLE[inner]] if inner in SIMPLE else Any


Trainer = make_dataclass(
    "trainer",
    [(name, kind, field(default=default)) for name, (kind, default) in arguments().items() if name not in ELSEWHERE],
)
