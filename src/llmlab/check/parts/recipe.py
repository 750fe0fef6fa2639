"""Checks of inits and objectives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab import attributes, measures
from llmlab.check import learning
from llmlab.check.parts.fixtures import part_sizes, tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close, generator
from llmlab.slots import Init, Role

ROLES: tuple[Role, ...] = ("embed", "position", "q", "k", "v", "out", "ffn_in", "ffn_out", "router", "head", "other")


def first_values(subject: Subject) -> None:
    """First values come from the generator alone, are finite and centred, and another seed's are others."""
    init: Init = tested_part(subject, "init").factory()()
    sizes = part_sizes(subject)
    for role in ROLES:
        drawn = []
        for seed, noise in ((0, 1), (0, 2), (1, 1)):
            # A fill that reads the global generator gives another tensor then.
            torch.manual_seed(noise)
            # NaN, so that what a fill leaves out shows; not square, so that an init that takes one width for the other does.
            tensor = torch.full((96, 64), float("nan"))
            init.fill(tensor, role, sizes, generator(seed))
            drawn.append(tensor)
        first, again, other = drawn
        if not torch.isfinite(first).all():
            raise CheckFailed(f"{role}: not every value is filled with a number")
        if not torch.equal(first, again):
            raise CheckFailed(f"{role}: values do not come from the generator alone")
        if first.unique().numel() > 1 and torch.equal(first, other):
            raise CheckFailed(f"{role}: another seed gives the same values")
        # The mean of 6,144 values varies by 1/78 of their deviation; 0.1 is eight times that.
        if not abs(float(first.mean())) <= 0.1 * float(first.std()):
            raise CheckFailed(
                f"{role}: the mean is {float(first.mean()):.3g} at a standard deviation of {float(first.std()):.3g}"
            )


@torch.no_grad()
def likelihood(subject: Subject) -> None:
    """An objective's loss has the cross-entropy at its targets, and where it is a text's likelihood each token is a target."""
    spec = tested_part(subject, "objective")
    model, batch, made = subject.model, learning.prepared_batch(subject), learning.build_objective(subject)
    read: list[Mapping[str, Tensor]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, how: read.append(args[0] if args else how["batch"]), with_kwargs=True
    )
    try:
        loss = learning.objective_loss(subject, model, batch)
    finally:
        handle.remove()
    kinds = measures.kinds(made)
    # A companion's has its name, and is of the companion's scores.
    models = attributes.get(made, "objective", "models")
    likelihoods = [name for name in measures.likelihoods(list(loss.shown), kinds) if name not in models]
    role = "neighbours" if spec.attribute("halves") else "tokens"
    if not likelihoods or "labels" not in batch or role not in made.heads:
        raise NotApplicable("it measures no likelihood of labels by a head of tokens")
    where = batch["labels"] >= 0
    # In float64, so that of two sums that differ this is the right one.
    # What the model read in the loss need not be the batch: a companion may have filled in its masks.
    own = [batch for batch in read if "ids" in batch]  # the rest is of its heads alone
    # Each part of a mixture reads some of the batch.
    seen = batch if spec.attribute("joins") else own[-1]
    logits = model(seen, heads={role: None}).heads[role].double()
    if spec.attribute("halves"):  # the first is asked for the labels
        logits = logits[..., 0, :]
    weights, n = learning.weights_of_targets(batch)
    by_hand = -F.log_softmax(logits, -1)[where].gather(-1, batch["labels"][where][:, None])[:, 0] @ weights[where]
    # In a mixture each target is in the term of one of its objectives.
    asked = [loss.shown[name] for name in likelihoods[: len(likelihoods) if spec.attribute("joins") else 1]]
    nll, count = (torch.stack([pair[i] for pair in asked]).sum() for i in (0, 1))
    assert_close(nll.double(), by_hand, "the cross-entropy, summed over targets", 1e-4)
    if int(count) != n:
        raise CheckFailed(f"it counts {int(count)} targets of {n}")
    if kinds[likelihoods[0]] != "bits" or "weight" in batch:
        return
    if not torch.equal(batch["ids"][:, 1:], batch["labels"][:, :-1]):
        raise CheckFailed("labels are not the tokens that come next")
    if not where.all():
        raise CheckFailed("not every token is a target")
