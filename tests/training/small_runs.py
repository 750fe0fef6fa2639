"""Small runs in this process, and what the metrics.csv of two have in common."""

from llmlab.config.compose import compose
from llmlab.model import build
from llmlab.training.recipe import Recipe
from llmlab.training.run import train


def run(folder, *overrides):
    last = {o.partition("=")[0]: o for o in overrides}  # a key may be given once only
    return train(compose(list(last.values())), folder)


def numbers(folder):
    """The lines of metrics.csv without `seconds`, the one column that differs from one time to the next."""
    lines = [line.rpartition(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert lines[0][2] == "seconds"
    assert all(float(seconds) >= 0 for _, _, seconds in lines[1:])
    return [numbers for numbers, _, _ in lines]


def built(overrides):
    """(recipe, the model, its companions), with first values."""
    composed = compose(list({o.partition("=")[0]: o for o in overrides}.values()))
    recipe = Recipe.from_config(composed)
    model = build.build_model(recipe.spec, composed.cfg.seed)
    others = {}
    for role, companion in recipe.companions.items():
        others[role] = companion.assemble(model)
        build.materialise(others[role])
        companion.fill(others[role], composed.cfg.seed)
    return composed, recipe, model, others
