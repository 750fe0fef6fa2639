"""Checks of a training step: the first loss, gradients, dropout, activation checkpointing, and the losses of experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes, measures, registry
from llmlab.check.refusal import refusal, untrainable
from llmlab.check.subject import VOCABULARY, CheckFailed, NotApplicable, Subject, assert_close
from llmlab.config import learned
from llmlab.config.spec import ModelSpec
from llmlab.data import stand_in
from llmlab.model import build
from llmlab.model.experts import MixtureOfExperts
from llmlab.model.model import Model
from llmlab.slots import Aux, Loss
from llmlab.training import companions, losses, recipe

Batch = dict[str, Tensor]
LOSS_TOLERANCE = 0.05  # relative, of the first loss
# Of a mean over the V logits of a token that vary alike, in their standard deviations: two of its own, which is V^-1/2 = 0.128.
SAMPLING_ERROR = 0.25


def build_objective(subject: Subject) -> Any:
    """The objective of the case, for the vocabulary of the tiny models, with its special tokens at the end."""
    cfg = subject.composed.cfg
    entry = learned.entry(cfg)
    options = {str(k): v for k, v in learned.node(cfg).items() if not str(k).startswith("_")}
    # T5's 100 sentinels are more than there are ids, so they begin again from the end.
    vocabulary = stand_in.vocabulary(VOCABULARY, entry.special)
    return registry.load(entry.slot, entry.name, options)(vocabulary, sample_length(subject))


def sample_length(subject: Subject) -> int:
    """Number of tokens of a sample."""
    return min(24, subject.spec.sizes.max_positions)


def prepared_batch(subject: Subject, rows: int = 4) -> Batch:
    """A batch of random tokens as the objective prepares it."""
    chance, tokens = np.random.default_rng(0), sample_length(subject)
    objective = build_objective(subject)
    words = chance.integers(VOCABULARY, size=(rows, tokens + 1))
    zeros = np.zeros(tokens + 1, dtype=np.int64)
    batch = stand_in.batch(objective, words, chance, zeros)
    batch.pop("documents", None)
    # What the objective gives itself stands before the examples.
    return subject.read_by_parts(batch["ids"].shape[1] if "ids" in batch else tokens, rows) | batch


def weights_of_targets(batch: Batch) -> tuple[Tensor, int]:
    """(weights of the labels' cross-entropy (B, T), 0 of what is no target; the number of tokens that it is over).

    By default 1 and the number of targets; `weight` (B,) is a sample's own where targets stand for others that could have been
    targets, of which there are `maskable` (B,).
    """
    where = (batch["labels"] >= 0).double()
    if "weight" not in batch:
        return where, int(where.sum())
    return where * batch["weight"].double()[:, None], int(batch["maskable"].sum())


def companion_models(subject: Subject, model: Model) -> dict[str, Model]:
    """The other models that the objective works with, by role, beside `model` and in its mode and dtype, with their first
    values."""
    found = {}
    for role, companion in companions.resolve(subject.composed, model, None).items():
        other = companion.assemble(model)
        build.materialise(other)
        companion.fill(other, seed=1)
        for parameter in other.parameters():
            parameter.data = parameter.data.to(next(model.parameters()).dtype)
        found[role] = other.train(model.training and companion.trains)
    return found


def objective_loss(subject: Subject, model: Model, batch: Batch) -> Loss:
    """The loss that the objective computes of a batch, with the companions that it asks for."""
    objective, others = build_objective(subject), companion_models(subject, model)
    loss: Loss = objective.loss(model, batch, **others)
    losses.check(loss, objective, others)
    return loss


def require_gradients(subject: Subject) -> None:
    """NotApplicable where the kernel computes no gradients on a CPU."""
    if why := untrainable(subject.spec.kernel):
        raise NotApplicable(why)


def require_scale(subject: Subject) -> None:
    """NotApplicable where nothing keeps the stream's scale: a softmax of large scores is 1 at one of them, without gradient."""
    for stack in subject.spec.stacks:
        for parts in (layer.parts for layer in stack.layers):
            bounded = parts["attention"].attribute("recurrent") and parts["ffn"].attribute("absent")
            if parts["block"].attribute("unnormed") and not bounded:
                raise NotApplicable(f"block={parts['block'].name} norms nothing, so its values are of any scale")


def loss_function(subject: Subject, model: Model) -> Callable[[], Loss]:
    """A function that computes the objective's loss of one batch.

    Heads that the objective does not read add a weighted sum of their outputs, so that every head gets a gradient. The
    weights differ, since an unweighted sum of normed values has none; nor do they add up to 0, which a bias of one score
    would get for its gradient.
    """
    batch, objective = prepared_batch(subject), build_objective(subject)
    others = {role: None for role in subject.spec.heads if role not in objective.heads}
    # The batch of one that learns alone what it needs no layers for may have any ids, often one of them.
    alone = attributes.get(objective, "objective", "learns")
    text = batch if "ids" in batch and not alone else subject.batch()
    beside_it = companion_models(subject, model)

    def loss() -> Loss:
        value: Loss = objective.loss(model, batch, **beside_it)
        losses.check(value, objective, beside_it)
        outputs = model(text, heads=others).heads.values() if others else ()
        more = [(x * torch.linspace(-1, 2, x.numel()).view_as(x)).mean() for x in outputs]
        beside = {f"head {i}": (x, torch.ones((), dtype=torch.int64)) for i, x in enumerate(more)}
        return value._replace(terms={**value.terms, **beside})

    return loss


def parameter_gradients(model: Model, loss: Tensor) -> dict[str, Tensor | None]:
    """{name: gradient}, None where the graph of the loss does not have the parameter. `.grad` stays as it is."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    # Without allow_unused autograd raises for a parameter that the loss does not reach, and does not say for which.
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


# ---------------------------------------------------------------- the loss and its gradient


@torch.no_grad()
def first_loss(subject: Subject) -> None:
    """A model that has learnt nothing has a loss within 5 % of ln V, plus half of the variance that its init gives logits."""
    require_scale(subject)
    objective, batch = build_objective(subject), prepared_batch(subject, rows=24)
    if "weight" in batch:  # of 24 samples, one that weighs 1,000 times as much as others would be all of the mean
        alone = (batch["labels"] >= 0).sum(1)
        batch |= {"weight": torch.ones_like(batch["weight"]), "maskable": alone}
    loss = objective_loss(subject, subject.fresh().eval(), batch)
    likelihoods = measures.likelihoods(list(loss.shown), measures.kinds(objective))
    if not likelihoods:
        raise NotApplicable("its objective measures no likelihood, of which the first value is known")
    total, count = loss.shown[likelihoods[0]]
    got, chance = float(total / count), math.log(VOCABULARY)
    varies = logit_variance(subject.spec)
    # E[ln sum exp z] = ln V + v / 2 for normal logits z of variance v, which an init may cause (`logit_variance`); chance
    # adds up to SAMPLING_ERROR of their deviation. It is a bound: a norm or a soft cap may make logits vary less.
    expected = chance + varies / 2
    # The input's own logit is its vector times itself, up to sqrt(v D).
    if varies and keeps_input(subject.spec):
        own = math.sqrt(varies * subject.spec.sizes.dim)
        expected = math.log(math.exp(expected) + math.exp(own))
    most = (1 + LOSS_TOLERANCE) * expected + SAMPLING_ERROR * math.sqrt(varies)
    if not (1 - LOSS_TOLERANCE) * chance <= got <= most:
        raise CheckFailed(
            f"the first loss is {got:.3f}, but should be ln {VOCABULARY} = {chance:.3f}, at most {most:.3f}"
        )


def logit_variance(spec: ModelSpec) -> float:
    """The variance of first logits: as the init declares, or as the deviation makes it that its config gives."""
    declared: float = spec.init.attribute("logit_variance")
    std = spec.init.options.get("std")
    # By itself an init that declares none has tables so small that logits hardly vary.
    if declared or std is None or std == registry.index()["init", spec.init.name].options["std"].default:
        return declared
    # What a head reads is normed.
    return float(spec.sizes.dim * (spec.init.options.get("embed_std") or std) ** 2)


def keeps_input(spec: ModelSpec) -> bool:
    """True if a tied table is read off a stream that stays close to its input."""
    blocks = (layer.parts["block"] for layer in spec.stacks[-1].layers)
    return spec.sizes.tie_embeddings and any(block.attribute("keeps_input") for block in blocks)


def gradients(subject: Subject) -> None:
    """The loss has a finite gradient, not zero, in every parameter, but for those that a part declares `idle`."""
    require_gradients(subject)
    require_scale(subject)
    loss = loss_function(subject, subject.model)()
    mean = loss._replace(aux={}).mean()  # without the losses of experts
    if not torch.isfinite(mean):
        raise CheckFailed("the loss is not finite")
    may_not = allowed_without_gradient(subject)
    for name, gradient in parameter_gradients(subject.model, mean).items():
        if gradient is not None and not torch.isfinite(gradient).all():
            raise CheckFailed(f"the gradient of {name} is not finite")
        if name not in may_not and (gradient is None or not gradient.any()):
            raise CheckFailed(
                f"the gradient of {name} is {'none' if gradient is None else 'zero'}: the loss does not reach it"
            )


def allowed_without_gradient(subject: Subject) -> set[str]:
    """Names of parameters that may go without a gradient: those that a part declares `idle`, and some routers.

    With one expert a token, renormalised, its weight is w / w = 1, so a router learns nothing from the loss.
    """
    found: set[str] = set()
    learning = recipe.learning(subject.composed.cfg).paths(subject.model)
    found |= {name for name, _ in subject.model.named_parameters() if name not in learning}
    for path, module in subject.model.named_modules():
        found |= {f"{path}.{name}" for name in attributes.get(module, attributes.EVERY, "idle")}
    moe = subject.spec.sizes.moe
    if moe.per_token == 1 and moe.renormalise:
        # By id: == of two tensors is a tensor, not an answer.
        weights = {id(p) for router in subject.model.routers() for p in router.parameters()}
        found |= {name for name, p in subject.model.named_parameters() if id(p) in weights}
    return found


# ---------------------------------------------------------------- in training and in evaluation


DROPOUT_TRAITS = {"dropout": "dropout", "attention.dropout": "attention__dropout", "ffn.dropout": "ffn__dropout"}


def evaluation(subject: Subject) -> None:
    """In evaluation there is no dropout; in training each of the three dropouts makes a difference, or is refused.

    That of attention falls on every attention, on a source too.
    """
    require_gradients(subject)
    batch = subject.batch()
    without = subject.fresh().eval()
    with torch.no_grad():
        if not torch.equal(without(batch).hidden, without(batch).hidden):
            raise CheckFailed("in evaluation, two forwards of one batch differ")
    for trait, field in DROPOUT_TRAITS.items():
        try:
            model = subject.fresh(**subject.traits(**{field: 0.3}))
        except ValueError as e:
            if refusal(e) is None:
                raise
            continue  # refused: the part has no such dropout
        with torch.no_grad():
            assert_close(
                model.eval()(batch).hidden, without(batch).hidden, f"in evaluation, model.{trait}=0.3 against 0", 1e-6
            )
            torch.manual_seed(0)
            one, other = (model.train()(batch).hidden for _ in range(2))
            if trait == "attention.dropout":
                _assert_told_to_train(model, batch)
        if torch.equal(one, other) and not _is_unused(subject, trait):
            raise CheckFailed(f"in training, model.{trait}=0.3 changes nothing")


def _assert_told_to_train(model: Model, batch: Batch) -> None:
    told: list[bool] = []

    def spied(kernel: Any) -> Any:
        def called(*args: Any) -> Tensor:
            *_, training = args
            told.append(training)
            return kernel(*args)

        return called

    kernels = [stack.kernel for stack in model.all_stacks()]
    for stack, kernel in zip(model.all_stacks(), kernels, strict=True):
        spy = spied(kernel)
        spy.lower = kernel.lower
        stack.kernel = spy
    try:
        model(batch)
    finally:
        for stack, kernel in zip(model.all_stacks(), kernels, strict=True):
            stack.kernel = kernel
    if not all(told):
        raise CheckFailed(f"in training, {told.count(False)} of {len(told)} attentions drop nothing out")


def _is_unused(subject: Subject, trait: str) -> bool:
    """True if all parts of the slot that a trait belongs to declare it unused."""
    from llmlab.config.traits import unused_by

    slot = trait.partition(".")[0]
    parts = [layer.parts[slot] for stack in subject.spec.stacks for layer in stack.layers if slot in layer.parts]
    used = [part for part in parts if part.slot != "moe" or not part.attribute("dense")]
    return bool(used) and all(trait in unused_by(part.slot, part.name) for part in used)


def checkpointing(subject: Subject) -> None:
    """Loss and gradients are the same when activations are computed again in the backward, dropout and all."""
    require_gradients(subject)
    from llmlab.training.placement import Placement

    batch = prepared_batch(subject)
    stored = _with_dropout(subject).train()
    recomputed = deepcopy(stored)
    Placement(activation_checkpointing=True).apply(recomputed)
    results = []
    for model in (stored, recomputed):
        # The recomputation has to restore this generator, or it drops other values than the forward did.
        torch.manual_seed(0)
        total = objective_loss(subject, model, batch).mean()
        results.append((total.detach(), parameter_gradients(model, total)))
    (want, slopes), (got, slopes_again) = results
    assert_close(got, want, "the loss with activations computed again", 1e-6)
    for name, gradient in slopes.items():
        other = slopes_again[name]
        if (gradient is None) != (other is None):
            raise CheckFailed(
                f"{name} has a gradient only {'with' if gradient is None else 'without'} activations computed again"
            )
        if gradient is not None and other is not None:
            assert_close(other, gradient, f"the gradient of {name} with activations computed again", 1e-5)


def _with_dropout(subject: Subject) -> Model:
    """The model with all the dropout that its kernel and parts accept."""
    from llmlab.check.subject import randomise

    for fields in (dict.fromkeys(DROPOUT_TRAITS.values(), 0.2), {"dropout": 0.2, "ffn__dropout": 0.2}):
        try:
            return randomise(subject.fresh(**subject.traits(**fields)))
        except ValueError as e:  # a kernel without dropout
            if refusal(e) is None:
                raise
    return randomise(subject.fresh())


# ---------------------------------------------------------------- experts


def balance(subject: Subject) -> None:
    """Losses of experts are not zero, grow with their coefficients, and reach each router and nothing behind it."""
    require_gradients(subject)
    if not subject.model.routers():
        raise NotApplicable("it has no experts")
    batch, n_losses = subject.batch(), 0
    for trait in ("balance", "z"):
        others = dict.fromkeys({"moe__balance", "moe__z"} - {f"moe__{trait}"}, 0.0)
        if _is_unused(subject, f"moe.{trait}"):
            continue
        n_losses += 1
        losses = []
        for coefficient in (0.0, 0.01, 0.03):
            model = subject.fresh(**subject.traits(**{f"moe__{trait}": coefficient}, **others))
            aux = model(batch).aux
            losses.append(None if aux is None else aux.loss)
        none, low, high = losses
        _assert_summed(model, batch)
        # PyTorch 2.13 warns of float() of a tensor that has a gradient.
        if none is not None and float(none.detach()) != 0.0:
            raise CheckFailed(f"with model.moe.{trait}=0 there is a loss of {float(none.detach()):.3g}")
        if low is None or high is None or not float(low.detach()) > 0:
            raise CheckFailed(f"with model.moe.{trait}=0.01 there is no loss for it")
        assert_close((high / low).detach(), torch.tensor(3.0), f"the loss at model.moe.{trait}=0.03 over that at 0.01")
        if not high.requires_grad:
            raise CheckFailed(f"the loss of model.moe.{trait} has no gradient")
        reached = parameter_gradients(model, high)
        for name, of_router in _router_parameters(model):
            gradient = reached[name]
            if of_router and (gradient is None or not gradient.any()):
                raise CheckFailed(f"the loss of model.moe.{trait} does not reach {name}")
    if not n_losses:
        raise NotApplicable("its router has no loss")


def _assert_summed(model: Model, batch: Batch) -> None:
    """CheckFailed unless the model's loss of experts is the sum of what its layers say, as often as they run."""
    said: list[Tensor] = []
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    hooks = [m.register_forward_hook(lambda _, args, out: said.append(_loss_of(out[1]))) for m in mixtures]
    with torch.no_grad():
        loss = _loss_of(model(batch).aux)
    for hook in hooks:
        hook.remove()
    assert_close(loss, torch.stack(said).sum(), "the model's loss of experts against the sum of its layers'")


def _loss_of(aux: Aux | None) -> Tensor:
    """The loss of experts; 0 where nothing is said of it."""
    return torch.tensor(0.0) if aux is None or aux.loss is None else aux.loss


def _router_parameters(model: Model) -> Iterator[tuple[str, bool]]:
    """(name, belongs to a router) of every parameter."""
    weights = {id(p) for router in model.routers() for p in router.parameters()}
    for name, parameter in model.named_parameters():
        yield name, id(parameter) in weights
