"""`llmlab oracle`: a method of alignment on a problem so small that its best policy is known, against that policy."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.commands.arguments import parse
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.oracle.run import Found

USAGE = """\
llmlab oracle alignment=NAME [alignment.OPTION=VALUE ...] [seeds=5] [bound=0.005] [tokens=2] [steps=300] [lr=0.2] [out=FOLDER]

Trains a table of bigrams, a policy over nine answers of two tokens (or three of one), with the method from several seeds, and
prints KL(pi || pi*): how far it ends from where it should. With a weight beta of the KL to the reference the best policy is
pi* = pi_ref exp(r / beta) / Z; a method that ends elsewhere says where, and one that doesn't say is only shown. Rewards are
drawn for each seed, of standard deviation 2 beta and 1 at most; preferences are drawn from them as Bradley and Terry have it,
and a teacher is the best policy itself.

  alignment.OPTION=VALUE   options of the method; beta is 0.5 unless it is typed
  bound=0.005              the largest KL that passes; a limit that is never reached has none
  tokens=1 or 2            of an answer (2, or 1 where a method's fixed point is known of one token only)
  steps= lr=               optimizer steps, and Adam's learning rate
  out=FOLDER               where NAME.svg and NAME.png are written, reward against KL beside the greatest reward at each KL
                           (oracle/ here)
  --json                   all numbers, as JSON

For a method of your own name its module: LLMLAB_PLUGINS=mine llmlab oracle alignment=mine. It says where it ends in a method
`optimum(case)`, for which llmlab.optima has the usual ones. Exit code 1 if a seed misses the bound."""

FOLDER = "oracle"
BETA = "0.5"


@dataclass
class Arguments:
    """Arguments of the command beside the method and its options."""

    seeds: int = 5
    bound: float = 0.005
    tokens: int | None = None
    steps: int = 300
    lr: float = 0.2
    out: str = FOLDER
    json: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    typed = [w for w in argv if w.startswith(("alignment=", "alignment."))]
    a = parse([w for w in argv if w not in typed], Arguments, "oracle")
    for name, low in (("seeds", 1), ("steps", 1), ("bound", 0), ("lr", 0)):
        if not low <= (value := getattr(a, name)) < float("inf") or not value:
            raise UserError(f"{name}={value} must be {'at least 1' if low else 'more than 0'}")
    if a.tokens not in (None, 1, 2):
        raise UserError(f"tokens={a.tokens} must be 1 or 2: a table of bigrams is not any policy over longer answers")
    name, options, words = chosen(typed)

    from llmlab.data.progress import progress
    from llmlab.oracle import run
    from llmlab.oracle.learning import Settings

    with progress("training") as bar:
        found = run.run(name, options, range(a.seeds), Settings(a.steps, lr=a.lr), a.tokens, bar)
    if a.json:
        print(json_module.dumps({"method": words, "bound": a.bound, **asdict(found)}, indent=1))
    else:
        print("\n".join(lines(found, words, a.bound)))
        print("\n".join(f"wrote {file}" for file in write(found, words, Path(a.out), name)))
    return 1 if found.missed(a.bound) else 0


def chosen(typed: Sequence[str]) -> tuple[str, dict[str, Any], str]:
    """The method's name, all of its options, and what was typed with what was set beside it."""
    from omegaconf import OmegaConf

    from llmlab import registry
    from llmlab.config.compose import compose

    name = next((w.partition("=")[2] for w in typed if w.startswith("alignment=")), "")
    if not name:
        raise UserError("alignment is missing; llmlab oracle alignment=NAME")
    words, entry = list(typed), registry.index().get(("alignment", name))
    keys = [w.partition("=")[0] for w in words]
    if entry is not None:
        beta = entry.options.get("beta")
        if beta is not None and "alignment.beta" not in keys and beta.default:
            words.append(f"alignment.beta={BETA}")
        # A run needs to be told which model such a one is; here it is a table.
        others = [
            role for role, of in entry.attribute("models").items() if not of.get("trains") and not of.get("copies")
        ]
        words += [f"models.{role}=[]" for role in others]
    options: Any = OmegaConf.to_container(compose(words).cfg.alignment, resolve=True)
    said = " ".join(w for w in words if not w.startswith("models."))
    return options.pop("_part_"), {k: v for k, v in options.items() if not k.startswith("_")}, said


def lines(found: Found, words: str, bound: float) -> list[str]:
    """The table."""
    of = f"{3**found.length} answers of {found.length} token{'s' if found.length > 1 else ''}"
    head = [f"{words}   ({of})"]
    if found.formula is None:
        head.append("claims no optimum: where it ends is not known in closed form, so that nothing is compared")
    elif found.regularised:
        head.append(f"claims the best policy for reward less beta KL: pi*(y) = {found.formula}")
    else:
        head.append("does not claim the best policy for reward less beta KL; its own fixed point:")
        head.append(f"pi*(y) = {found.formula}")
    between = "KL(pi* || pi)" if found.limit else "KL(pi || pi*)"
    titles = ["seed", between, "before", "reward", "greatest at that KL", "KL to pi_ref", ""]
    rows = []
    missed = found.missed(bound)
    for o in found.outcomes:
        verdict = "" if o.gap is None or found.limit else f"above {bound:g}" if o in missed else f"below {bound:g}"
        gap, before = ("" if x is None else f"{x:.4f}" for x in (o.gap, o.before))
        rows.append(
            [str(o.seed), gap, before, f"{o.last.reward:.3f}", f"{o.greatest:.3f}", f"{o.last.kl:.3f}", verdict]
        )
    if found.formula is None:
        titles, *rows = [r[:1] + r[3:6] for r in (titles, *rows)]
    widths = [max(len(r[i]) for r in (titles, *rows)) for i in range(len(titles))]
    table = ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in (titles, *rows)]
    return [*head, "", *table, ""]


def write(found: Found, words: str, folder: Path, name: str) -> list[Path]:
    """NAME.svg and NAME.png."""
    from llmlab.files import write_atomic
    from llmlab.report.frontier import Way, pictures

    ways = [Way(f"seed {o.seed}", o.curve, o.frontier, o.end) for o in found.outcomes]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, data in pictures(ways, words).items():
        files.append(folder / f"{name}.{ending}")
        write_atomic(files[-1], data)
    return files
