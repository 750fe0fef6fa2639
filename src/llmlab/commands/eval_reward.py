"""`llmlab eval run=RUN reward=NAME`: what a run's answers are worth by a reward, whatever it has learnt from."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmlab.commands.arguments import parse
from llmlab.errors import UserError, near
from llmlab.record_kinds import KEYS

if TYPE_CHECKING:
    from pathlib import Path

    from llmlab.runs.scores import Answered, Measured, Score

USAGE = """\
llmlab eval run=FOLDER reward=NAME [reward.OPTION=VALUE ...] [models.reward=RUN] [data=FILE [data.fields.prompt=KEY ...]]
            [reference=RUN] [best_of=N [judge=RUN]] [samples=8] [max_new=N] [temperature=1] [prompts=N] [seed=0]
            [batch_size=64] [--json]

Draws `samples` answers to each prompt and says what they are worth, whatever the run was trained by, with 95 % intervals over
prompts (Wilson's where all rewards are 0 or 1, else Student's).

  reward=NAME      as in training: a rule, a function of your own, or reward=model models.reward=RUN (llmlab parts reward)
  data=FILE        lines of JSON with a prompt and what the reward needs; without it the held-out prompts of the run's own data
  reference=RUN    another run, often the one that this one began with: the KL of an answer to it, exact for the contexts that
                   were drawn, and the win rate, how often an answer is worth more than the reference's (a tie is half)
  best_of=N        what the best of N answers is worth: the mean over all choices of N out of `samples`
  judge=RUN        a run of alignment=reward that chooses it; without it the reward itself does
  max_new=N        tokens of an answer at most; without it what the run was trained with, or half of its window
  prompts=N        the first N only

The answers are in scores/ of the run folder, with what each is worth, and follow from the seed."""


@dataclass
class Arguments:
    """Arguments of the command beside the reward and its options."""

    run: str | None = None
    hf: str | None = None
    data: str | None = None
    reference: str | None = None
    best_of: int | None = None
    judge: str | None = None
    samples: int | None = None
    max_new: int | None = None
    temperature: float = 1.0
    prompts: int | None = None
    seed: int = 0
    batch_size: int = 64
    json: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    words = [w for w in argv if of_reward(w)]
    fields = [w.removeprefix("data.fields.").partition("=") for w in argv if w.startswith("data.fields.")]
    if wrong := [name for name, _, key in fields if name not in KEYS or not key]:
        raise UserError(f"data.fields.{wrong[0]}: type data.fields.FIELD=KEY; {near(wrong[0], KEYS)}")
    rest = [w.replace("data.path=", "data=", 1) for w in argv if w not in words and not w.startswith("data.fields.")]
    a = parse(rest, Arguments, "eval")
    score, _, file = scored(a, words, {name: key for name, _, key in fields})
    if a.json:
        print(json_module.dumps(score))
    else:
        print("\n".join(lines(score)))
        print(f"wrote {file}")
    return 0


def of_reward(word: str) -> bool:
    """True of words that say what the reward is."""
    return word.startswith(("reward=", "reward.", "models."))


def scored(
    a: Arguments, words: Sequence[str], fields: dict[str, str] | None = None
) -> tuple[Score, list[Answered], Path]:
    """(the score, the answers, their file). words: of the reward. UserError, in a line, for what can't be asked."""
    if a.hf is not None:
        raise UserError("hf=: rewards are given to the answers of a run; llmlab train init_from=hf=FOLDER begins one")
    if a.run is None:
        raise UserError("run is missing; llmlab eval run=FOLDER reward=NAME")
    for name, low in (("best_of", 1), ("samples", 1), ("max_new", 1), ("prompts", 1), ("batch_size", 1)):
        if (value := getattr(a, name)) is not None and value < low:
            raise UserError(f"{name}={value} must be at least {low}")
    # Not `< 0`: of a NaN both are false.
    if not 0 <= a.temperature < float("inf"):
        raise UserError(f"temperature={a.temperature} must be a number of at least 0")
    samples = max(8, a.best_of or 0) if a.samples is None else a.samples
    if a.best_of is not None and samples < a.best_of:
        raise UserError(f"samples={samples} is fewer than best_of={a.best_of}; draw at least as many")
    if a.judge is not None and a.best_of is None:
        raise UserError("judge= chooses the best of several answers; say of how many, best_of=N")
    if fields and a.data is None:
        raise UserError("data.fields.: name the file that has these keys, data=FILE")
    # Imported here: torch takes 1.4 s, and a mistyped key need not wait for it.
    from llmlab.data.progress import progress
    from llmlab.runs import newest
    from llmlab.scoring import run
    from llmlab.scoring.request import Request

    request = Request(
        a.data, fields, a.prompts, samples, a.best_of, a.max_new, a.temperature, a.seed, batch_size=a.batch_size
    )
    reference, chooser = (None if r is None else str(newest.resolve_run(r)) for r in (a.reference, a.judge))
    with progress("answering") as bar:
        score, answers = run.score(a.run, words, request, reference=reference, chooser=chooser, bar=bar)
    return score, answers, run.keep(a.run, score, answers)


def lines(score: Score) -> list[str]:
    """The score as it is printed."""
    rows = [
        ("prompts", f"{score['prompts']:,}, {score['samples']} answers to each"),
        ("reward", shown(score["reward"])),
    ]
    if "kl" in score:
        rows.append(("KL", shown(score["kl"])))
    if "no_kl" in score:
        rows.append(("KL", f"none: {score['no_kl']}"))
    if "win_rate" in score:
        rows.append(("win rate", shown(score["win_rate"])))
    if "best_of" in score:
        best = score["best_of"]
        rows.append((f"best of {best['n']}", f"{shown(best['reward'])}  chosen by {best['chosen_by']}"))
        if "win_rate" in best:
            rows.append(("its win rate", shown(best["win_rate"])))
        rows.append(("its KL", f"at most {best['kl_at_most']:.4f} to the run's own"))
    rows += [("answer length", f"{score['answer_length']:.2f}"), ("ended", f"{score['ended']:.4f}")]
    rows += [("cut", line) for line in score.get("cut", ())]
    return [f"{name:>14}  {value}" for name, value in rows]


def shown(of: Measured) -> str:
    """The mean with the ends of its interval."""
    ends = "" if of["low"] is None else f"  [{of['low']:.4f}, {of['high']:.4f}]"
    return f"{of['mean']:.4f}{ends}"
