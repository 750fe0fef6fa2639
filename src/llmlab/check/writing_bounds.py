"""The check of what a model that writes refuses, and how it is left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from llmlab.check.subject import CheckFailed, Subject
from llmlab.check.writing_rules import require_refusal
from llmlab.decoding.answers import answers
from llmlab.decoding.generate import fits_padding, generate, generate_all, limit
from llmlab.decoding.sampling import Sampling
from llmlab.decoding.session import Session
from llmlab.decoding.unmasking import Unmasking, unmask_all
from llmlab.model.model import Model

NEW = 4
NAMED = "mine"
Write = Callable[..., Any]


def require_bounds(subject: Subject, prompts: list[list[int]], start: int | None) -> None:
    """CheckFailed unless wrong prompts are refused, and a model that writes is in eval mode then and left as it was."""
    model, hot = subject.model, Sampling(temperature=2.0)
    write = partial(generate_all, model, max_new=NEW, sampling=hot, start=start)
    _refuses(subject, lambda asked, **how: list(write(asked, **how)), prompts)
    if start is not None:
        require_refusal(
            lambda: list(write(prompts, start=None)), "start", "a text without a first token for the decoder"
        )
    _leaves(model, lambda: list(write(prompts)), lambda: list(islice(write(prompts), 1)))
    _by_seeds(lambda **how: [*zip(*write([prompts[0]] * 2, **how), strict=True)])
    _one_by_one(model, prompts[0], start)
    if answers(model, [], max_new=NEW, sampling=hot, seeds=[], start=start) != []:
        raise CheckFailed("no prompts have answers")
    ended = ["", ""]
    steps = write([prompts[0]] * 2, seeds=(1, 2), ended=ended)
    next(steps)
    ended[1] = NAMED
    if any(token is not None for _, token in steps) or ended != ["length", NAMED]:
        raise CheckFailed(f"a text that was ended as {NAMED!r} goes on, or is {ended[1]!r} then")
    _forgets(model, prompts[0], start)
    if start is None:
        _ends_before_others(model)


def _ends_before_others(model: Model) -> None:
    """A text that has all positions ends, and one beside it goes on as it does alone."""
    bound = limit(model)
    if bound is None or not fits_padding(model, bound):
        return
    prompts, hot = [[*range(2, 7)] * bound, [5, 9, 4]], Sampling(temperature=2.0)
    prompts[0] = prompts[0][: bound - 1]
    write = partial(generate_all, model, max_new=NEW, sampling=hot)
    together = [[token for token in row if token is not None] for row in zip(*write(prompts), strict=True)]
    alone = [[token for (token,) in write([prompt]) if token is not None] for prompt in prompts]
    if together != alone or len(together[0]) != 2:
        raise CheckFailed(f"a text of {bound - 1} tokens and one of 3 go on by {together}, alone by {alone}")


def require_bounds_of_unmasking(subject: Subject, prompts: list[list[int]], how: Unmasking, vocabulary: int) -> None:
    """The same of a text that is unmasked."""
    model = subject.model
    write = partial(unmask_all, model, max_new=NEW, how=how, sampling=Sampling(temperature=2.0), vocabulary=vocabulary)
    _refuses(subject, write, prompts)
    require_refusal(lambda: list(generate(model, prompts[0], max_new=1)), "both ways", "going on with a text")
    _leaves(model, lambda: write(prompts))
    _by_seeds(lambda **asked: write([prompts[0]] * 2, **asked))
    # A mask token of the prompt is the prompt's own.
    (found,) = write([[*prompts[0][:-1], how.mask]])
    if how.mask in found or len(found) != NEW:
        raise CheckFailed(f"behind a prompt that ends with a mask token {found} is written")


def _refuses(subject: Subject, write: Write, prompts: list[list[int]]) -> None:
    n = subject.model.sizes.vocab_size
    if len(write([[*prompts[0][:-1], n - 1]])) == 0:
        raise CheckFailed(f"behind the last id, {n - 1}, nothing is written")
    for wrong in (n, -1):
        require_refusal(partial(write, [prompts[0], [wrong]]), str(wrong), f"a prompt with the id {wrong}")
    with _without_heads(subject.model):
        require_refusal(partial(write, [prompts[0]]), subject.spec.family, "a model without a head for tokens")
    with _broken(subject.model):
        require_refusal(partial(write, [prompts[0]]), "NaN", "a model whose logits are NaN")
    if subject.encoder_decoder or subject.model.sizes.causal:
        for nothing in ([], [prompts[0], []]):
            require_refusal(partial(write, nothing), "empty", f"prompts {nothing}")


@contextmanager
def _without_heads(model: Model) -> Iterator[None]:
    heads = dict(model.heads.items())
    model.heads.clear()
    try:
        yield
    finally:
        model.heads.update(heads)


@contextmanager
def _broken(model: nn.Module) -> Iterator[None]:
    """NaN for all weights."""
    kept = [(p, p.detach().clone()) for p in model.parameters()]
    with torch.no_grad():
        for p, _ in kept:
            p.fill_(torch.nan)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in kept:
                p.copy_(values)


def _leaves(model: nn.Module, *ways: Callable[[], Any]) -> None:
    """It computes in eval mode without gradients, and is in the mode then that it was in, also where a caller breaks off."""
    seen: list[tuple[bool, bool]] = []
    hook = model.register_forward_pre_hook(lambda *unused: seen.append((model.training, torch.is_grad_enabled())))
    try:
        for write in ways:
            for training in (True, False):
                model.train(training)
                with torch.enable_grad():
                    write()
                if model.training != training:
                    raise CheckFailed(
                        f"a model that was in {'train' if training else 'eval'} mode isn't when it has written"
                    )
    finally:
        hook.remove()
        model.eval()
    if any(map(any, seen)):
        raise CheckFailed("a model writes in train mode, or keeps gradients")


def _by_seeds(write: Callable[..., Sequence[Any]]) -> None:
    """Two texts behind one prompt: by their own seeds, which are 0 where none is given."""
    same, zero, (one, other) = write(), write(seeds=(0, 0)), write(seeds=(1, 2))
    if same[0] != same[1] or same != zero or one == other:
        raise CheckFailed(f"without seeds {same} is written, with 0 {zero}, with others {[one, other]}")


def _one_by_one(model: Model, prompt: list[int], start: int | None) -> None:
    """`generate` is `generate_all` of one prompt, whatever it is given."""
    hot = Sampling(temperature=2.0)
    (whole,) = zip(*generate_all(model, [prompt], max_new=NEW, sampling=hot, seeds=[5], start=start), strict=True)
    stop = whole[2]
    assert stop is not None
    ways: list[dict[str, Any]] = [
        {"stop": stop},
        {"stop": {stop}, "cached": False},
        {"forced": (9, 8)},
        {"forced": (None, 8)},
        {"vocabulary": 3},
        {"max_new": 2},
    ]
    for how in ways:
        asked = {"max_new": NEW, "sampling": hot, "start": start, **how}
        ended, reason = [""], [""]
        want = [t for (t,) in generate_all(model, [prompt], seeds=[5], ended=ended, **asked) if t is not None]
        got = list(generate(model, prompt, seed=5, ended=reason, **asked))
        if got != want or reason != ended or not _fits(want, ended[0], whole, how):
            raise CheckFailed(
                f"with {how} {want} is written ({ended[0]}), one by one {got} ({reason[0]}), else {whole}"
            )


def _fits(new: list[int], reason: str, whole: Sequence[int | None], how: dict[str, Any]) -> bool:
    """True if a text is what it must be beside the same without a stop, a force, or a bound."""
    if stop := how.get("stop"):
        ends: Collection[int] = stop if isinstance(stop, set) else {stop}
        n = next(i for i, token in enumerate(whole) if token in ends)
        return (new, reason) == (list(whole[:n]), "eos")
    if "forced" in how:
        first, last = how["forced"]
        begins = new[0] == first if first is not None else new[:-1] == list(whole[:-1])
        return begins and (new[-1], len(new), reason) == (last, NEW, "length")
    if "vocabulary" in how:
        return max(new) < how["vocabulary"] and len(new) == NEW
    return (new, reason) == (list(whole[: how["max_new"]]), "length")


def _forgets(model: Model, prompt: list[int], start: int | None) -> None:
    """A session that is cleared reads all of a prompt again, and writes the same."""
    session = Session(model)
    ask = partial(session.write, prompt, max_new=NEW, sampling=Sampling(temperature=2.0), seed=3, start=start)
    first = list(ask())
    session.clear()
    again = list(ask())
    if again != first or session.reused or (session.keeps and session.ids[: len(prompt)] != prompt):
        raise CheckFailed(f"a session writes {first}, and cleared {again} with {session.reused} tokens used again")
