"""Checks that an objective can train a model under its masks, or can work with a companion."""

from __future__ import annotations

from collections.abc import Mapping

from llmlab import registry
from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.errors import UserError

# Tokens behind a text, told by these keys of a batch, from which a mask has to hide.
STREAMS = ("queries", "placeholders")


def check_objective(spec: ModelSpec, objective: PartSpec, companion: Mapping[str, str] | None = None) -> None:
    """UserError if the objective can't train such a model under its masks, or can't work with such a companion."""
    what = f"{objective.slot}={objective.name}"
    for role, usual in (objective.attribute("heads") if companion is None else companion).items():
        part, wanted = spec.heads.get(role), PartSpec("head", usual).attribute("scores")
        if part is not None and wanted is not None and part.attribute("scores") not in (None, wanted):
            fits = [n for (s, n), e in registry.index().items() if s == "head" and e.attribute("scores") == wanted]
            also = [n for n in _asking_for(part.attribute("scores")) if n != objective.name and companion is None]
            other = f"; objective={' or '.join(also)} asks for those of a {part.attribute('scores')}" if also else ""
            raise UserError(
                f"heads.{role}={part.name} gives scores of a {part.attribute('scores')}, but {what} "
                f"asks for those of the {wanted}; choose {' or '.join(sorted(fits))}{other}"
            )
        # Under a causal mask the first token's vector is the same for every text that begins so.
        if part is not None and spec.sizes.causal and part.options.get("pool") == "first":
            raise UserError(
                f"heads.{role}={part.name} reads the first token of a text, which sees no other under "
                f"mask={spec.stacks[-1].mask.name}; set heads.{role}.pool=last"
            )
    if companion is None and spec.sizes.causal and objective.options.get("pool") == "first":
        raise UserError(
            f"{what} reads the first token of a text, which sees no other under "
            f"mask={spec.stacks[-1].mask.name}; set {objective.slot}.pool=last"
        )
    mask = spec.stacks[-1].mask
    for stack in spec.stacks:
        missing = [n for n in stack.mask.attribute("needs") if n not in objective.attribute("gives")]
        if missing:
            raise UserError(
                f"mask={stack.mask.name} reads {' and '.join(missing)} of each sample, which {what} "
                f"does not give; leave mask out (it brings mask={objective.attribute('mask')})"
            )
    _check_counts(spec, objective)
    if companion is not None:  # it reads what it is given: only the trained model must not see the answer
        return
    if (segments := objective.attribute("segments")) > spec.segments:
        raise UserError(
            f"{objective} has {segments} segments in a sample, but model={spec.family} tells {spec.segments} apart; set "
            f"model.token_types={segments}, which embedding=bert takes"
        )
    if objective.attribute("halves"):
        _check_halves(spec, objective)
    topologies = objective.attribute("topologies")
    if topologies and spec.topology not in topologies:
        if spec.topology == "encoder_decoder" or "encoder_decoder" in topologies:
            raise UserError(
                f"{what} trains {words(topologies)} models, but model={spec.family} is "
                f"{article(words((spec.topology,)))}; choose {_fitting(spec.topology)}"
            )
        raise UserError(
            f"{what} can't be trained under mask={mask.name}: each token would see the answer; "
            f"leave mask out (it brings mask={objective.attribute('mask')}) or choose {_fitting(spec.topology)}"
        )
    for name in STREAMS:
        if name in objective.attribute("gives") and name not in mask.attribute("needs"):
            raise UserError(
                f"{what} can't be trained under mask={mask.name}, which would let text see {name}; leave "
                f"mask out (it brings mask={objective.attribute('mask')})"
            )
    brings = registry.index()["mask", objective.attribute("mask")]
    if spec.topology == "encoder" and spec.sizes.sees_all and brings.attribute("pattern") != "full":
        raise UserError(
            f"{what} can't be trained under mask={spec.stacks[-1].mask.name}: each token would see the "
            f"answer; leave mask out (it brings mask={brings.name})"
        )
    if spec.topology == "encoder_decoder" and objective.attribute("mask") == "causal" and not spec.sizes.causal:
        raise UserError(
            f"{what} can't be trained under mask={mask.name} in the decoder: each token would see the "
            f"answer; leave mask out, or name one stack: mask@stacks.{spec.stacks[0].name}.mask={mask.name}"
        )


def _check_halves(spec: ModelSpec, objective: PartSpec) -> None:
    """UserError if what is read from the left and what is read from the right meet in a layer."""
    for layer in (layer for stack in spec.stacks for layer in stack.layers):
        for slot, apart in (("attention", "halves"), ("block", "halves"), ("ffn", "absent")):
            if not layer.parts[slot].attribute(apart):
                fits = [n for (s, n), e in registry.index().items() if s == slot and e.attribute(apart)]
                raise UserError(
                    f"objective={objective.name} reads a text from both ends, which {slot}={layer.parts[slot].name} joins, so "
                    f"that each token would see the answer; choose {slot}={' or '.join(sorted(fits))}"
                )


def _check_counts(spec: ModelSpec, objective: PartSpec) -> None:
    """UserError if samples place a token with more numbers than the model's positions count."""
    wanted = objective.attribute("counts")
    for position in (layer.parts["position"] for layer in spec.stacks[-1].layers if wanted > 1):
        if position.attribute("counts") < wanted:
            fits = [n for (s, n), e in registry.index().items() if s == "position" and e.attribute("counts") == wanted]
            raise UserError(
                f"{objective} places each token with {wanted} numbers, but position={position.name} counts "
                f"{position.attribute('counts')}; choose position={' or '.join(sorted(fits))}, or leave out the option that "
                "asks for them"
            )


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def words(names: tuple[str, ...]) -> str:
    return " or ".join(n.replace("_", "-") for n in names)


def _fitting(topology: str) -> str:
    fits = [n for (s, n), e in registry.index().items() if s == "objective" and topology in e.attribute("topologies")]
    return " or ".join(f"objective={n}" for n in sorted(fits)) or "another model"


def _asking_for(scores: str) -> list[str]:
    """Objectives that train a head of such scores."""
    index = registry.index()
    heads = {n: e.attribute("heads").values() for (s, n), e in index.items() if s == "objective"}
    return sorted(n for n, hs in heads.items() if any(index["head", h].attribute("scores") == scores for h in hs))
