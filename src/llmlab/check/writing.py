"""The check of what a model writes, against the rules written out over forwards of whole texts, without a cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from llmlab.check.subject import FIRST_ID, LENGTH, VOCABULARY, CheckFailed, NotApplicable, Subject, random_ids
from llmlab.check.writing_bounds import require_bounds, require_bounds_of_unmasking
from llmlab.check.writing_rules import distribution, require_rules
from llmlab.decoding.answers import answers
from llmlab.decoding.generate import fits_padding, generate, generate_all, goes_on, limit
from llmlab.decoding.sampling import Sampling
from llmlab.decoding.session import Session
from llmlab.decoding.unmasking import Unmasking, unmask_all
from llmlab.errors import UserError

DECODER_START = 0  # the token that a decoder begins with
MASK = FIRST_ID + 2
DRAWN = VOCABULARY - 9  # ids from there on are never drawn
NEW, SEEDS = 6, (3, 1, 2)
# Temperatures are in deviations of the logits: each rule takes some of the likely tokens away, and leaves some.
RULES = (
    Sampling(temperature=0.7, repetition_penalty=2.5),
    Sampling(temperature=1.5, top_k=4, repetition_penalty=0.6),
    Sampling(temperature=0.5, top_p=0.6),
    Sampling(temperature=0.5, top_p=0.97, min_p=0.2),
    Sampling(temperature=0, repetition_penalty=1.5),
)


@torch.no_grad()
def generation(subject: Subject) -> None:
    """Prompts continued together over one cache, or unmasked together, get the tokens that each gets alone without.

    In a family as it is also: what is drawn follows the rules of sampling, each prompt's own seed and its own end; turns of a
    conversation over one cache are those of a cache made anew; and a prompt that leaves no room for a token is refused.
    """
    if "tokens" not in subject.token_roles:
        raise NotApplicable("it writes no text: it has no head for tokens")
    if subject.expert_choice or subject.splits_batch:
        raise NotApplicable("a text gives something else beside others")
    if not goes_on(subject.spec):
        _unmasked(subject)
        return
    prompts = _prompts(subject)
    greedy = Sampling(temperature=0)
    steps = list(generate_all(subject.model, prompts, max_new=NEW, sampling=greedy, start=_start(subject)))
    for i, prompt in enumerate(prompts):
        got, want = [step[i] for step in steps], _greedy_without_cache(subject, prompt)
        if got != want:
            raise CheckFailed(f"a prompt of {len(prompt)} tokens is continued by {got} beside others, by {want} alone")
    if subject.case.kind == "family":  # no part has rules of its own
        how = partial(generate_all, subject.model, prompts, max_new=NEW, sampling=greedy, start=_start(subject))
        if list(how(cached=False)) != steps:
            raise CheckFailed("prompts are continued by others without a cache")
        deviation = float(_logits(subject, prompts[0], [])[-1].std())
        for rules in RULES:
            _drawn_by_rules(subject, prompts, rules, deviation)
        _ends(subject, prompts)
        _turns(subject)
        _room(subject)
        require_rules()
        require_bounds(subject, prompts, _start(subject))


def _start(subject: Subject) -> int | None:
    return DECODER_START if subject.encoder_decoder else None


def _prompts(subject: Subject) -> list[list[int]]:
    # A model whose mask or window goes by places is asked with prompts of one length, as `generate` groups them.
    lengths = (7, 4, 6) if fits_padding(subject.model, LENGTH) else (6, 6, 6)
    return [row[:n].tolist() for row, n in zip(random_ids(3, 7), lengths, strict=True)]


def _logits(subject: Subject, prompt: list[int], new: Sequence[int]) -> Tensor:
    """(T, V) of a whole text, of which the last len(new) + 1 rows are of the new tokens and what comes behind them."""
    batch, text = {}, [*prompt, *new]
    if subject.encoder_decoder:
        batch, text = {"source_ids": torch.tensor([prompt])}, [DECODER_START, *new]
    if "prefix_len" in subject.model.all_stacks()[-1].mask.needs:
        batch["prefix_len"] = torch.tensor([len(text) - len(new)])
    return subject.model({**batch, "ids": torch.tensor([text])}, heads={"tokens": None}).heads["tokens"][0]


def _greedy_without_cache(subject: Subject, prompt: list[int]) -> list[int]:
    """The likeliest tokens, each from a forward of the whole text."""
    new: list[int] = []
    for _ in range(NEW):
        new.append(int(_logits(subject, prompt, new)[-1].argmax()))
    return new


def _room(subject: Subject) -> None:
    """A prompt of as many tokens as the model has positions gets one token, a longer one is refused."""
    bound = limit(subject.model)
    if bound is None or subject.encoder_decoder:
        return
    how = partial(generate_all, subject.model, max_new=NEW, sampling=Sampling(temperature=0))
    if len(found := list(how([[FIRST_ID] * bound]))) != 1:
        raise CheckFailed(f"a prompt of {bound} tokens is continued by {len(found)}, where there are {bound} positions")
    with suppress(UserError):
        list(how([[FIRST_ID] * (bound + 1)]))
        raise CheckFailed(f"a prompt of {bound + 1} tokens is not refused, where there are {bound} positions")


# ---------------------------------------------------------------- rules of sampling


def _drawn_by_rules(subject: Subject, prompts: list[list[int]], rules: Sampling, deviation: float) -> None:
    """Each token is one that may come, with the probability that it is said to have; and a seed draws it alone too."""
    rules = Sampling(rules.temperature * deviation, rules.top_k, rules.top_p, rules.min_p, rules.repetition_penalty)
    trace: list[list[tuple[int, float]]] = [[] for _ in prompts]
    write = partial(generate_all, subject.model, max_new=NEW, sampling=rules, start=_start(subject), vocabulary=DRAWN)
    steps = list(write(prompts, seeds=SEEDS, trace=trace))
    found = answers(
        subject.model,
        prompts,
        max_new=NEW,
        sampling=rules,
        seeds=SEEDS,
        start=_start(subject),
        vocabulary=DRAWN,
        at_once=1,
    )
    if [answer.ids for answer in found] != [[token for token, _ in told] for told in trace]:
        raise CheckFailed(f"by {rules} the answers to prompts are {[answer.ids for answer in found]}, together {trace}")
    for i, (prompt, seed, told) in enumerate(zip(prompts, SEEDS, trace, strict=True)):
        new = [step[i] for step in steps]
        if new != [token for token, _ in told]:
            raise CheckFailed(f"it writes {new}, and says that it drew {[token for token, _ in told]}")
        alone = [token for (token,) in write([prompt], seeds=[seed]) if token is not None]
        if new != alone:
            raise CheckFailed(f"by {rules} a prompt is continued by {new} beside others, by {alone} alone")
        rows = _logits(subject, prompt, alone[:-1])[-NEW:, :DRAWN].double().tolist()
        text = [DECODER_START] if subject.encoder_decoder else prompt
        for n, (token, said) in enumerate(told):
            chance = distribution(rows[n], rules, {*text, *alone[:n]}).get(token, 0.0)
            if not abs(math.exp(said) - chance) < 1e-3:
                raise CheckFailed(
                    f"by {rules} a token has the probability {math.exp(said):.4g}, but {chance:.4g} by the rules"
                )


def _ends(subject: Subject, prompts: list[list[int]]) -> None:
    """A text ends before its first stop token, whatever others do, and at the last position that a model knows."""
    write = partial(generate_all, subject.model, sampling=Sampling(temperature=2.0), seeds=SEEDS, start=_start(subject))
    whole = list(zip(*write(prompts, max_new=NEW), strict=True))
    one, other = zip(*write([prompts[0]] * 2, max_new=NEW, seeds=(1, 2)), strict=True)
    if one == other:
        raise CheckFailed(f"two seeds draw the same {list(one)}")
    stop, ended = {whole[0][2], whole[1][4]}, [""] * len(prompts)
    texts: list[list[int | None]] = [[] for _ in prompts]
    for step in write(prompts, max_new=NEW, stop=stop, ended=ended):
        for text, token in zip(texts, step, strict=True):
            text += [] if token is None else [token]
    for text, reason, all_of_it in zip(texts, ended, whole, strict=True):
        n = next((at for at, token in enumerate(all_of_it) if token in stop), None)
        if (text, reason) != (list(all_of_it[:n]), "length" if n is None else "eos"):
            raise CheckFailed(f"{list(all_of_it)} is cut to {text} ({reason}) before {stop}")
    (first,) = write(prompts, max_new=1, forced=(9, None))
    *_, last = write(prompts, max_new=3, forced=(None, 8))
    if first != [9] * len(prompts) or last != [8] * len(prompts):
        raise CheckFailed(f"the first and the last token are forced to be 9 and 8, but are {first} and {last}")
    bound = limit(subject.model, 0)
    if bound is not None and subject.encoder_decoder:
        with suppress(UserError):
            next(write([prompts[0], (prompts[1] * bound)[: bound + 1]], max_new=1))
            raise CheckFailed(f"its encoder knows {bound} positions, and is given a prompt of {bound + 1} tokens")
    if bound is not None and not subject.encoder_decoder:
        near, ended = [(prompt * bound)[: bound - 1] for prompt in prompts], [""] * len(prompts)
        n = len(list(write(near, max_new=9, ended=ended)))
        if n != 2 or set(ended) != {"positions"}:
            raise CheckFailed(f"of {bound} positions one is free, but {n} tokens are written and not 2 ({ended[0]})")


# ---------------------------------------------------------------- turn by turn


def _turns(subject: Subject) -> None:
    """Each turn over one cache is what a cache made anew gives: behind the last one, broken off, changed, or the same again."""
    rules, start = Sampling(temperature=1.5), _start(subject)
    session = Session(subject.model)
    first = random_ids(1, 5, seed=4)[0].tolist()
    said = list(session.write(first, max_new=3, sampling=rules, seed=1, start=start))
    longer = [*first, *said, *random_ids(1, 3, seed=5)[0].tolist()]
    session.write(longer, max_new=4, sampling=rules, seed=2, start=start).send(None)  # broken off behind one token
    if session.keeps and session.reused != len(first) + len(said) - 1:  # the last that was said has not been read
        raise CheckFailed(
            f"{session.reused} tokens are used again of {len(first)} and {len(said)} that were said behind"
        )
    changed = [*longer[:-2], 11, 12, 13]
    for prompt, common in ((longer, len(longer) - 1), (changed, len(longer) - 2), (changed[:4], 3), (changed, 4)):
        got = list(session.write(prompt, max_new=3, sampling=rules, seed=7, start=start))
        want = list(generate(subject.model, prompt, max_new=3, sampling=rules, seed=7, start=start))
        if got != want:
            raise CheckFailed(f"a turn over the cache of the last one is {got}, but {want} over one made anew")
        if session.keeps and session.reused != common:
            raise CheckFailed(f"{session.reused} tokens of the last turn are used again, but {common} could be")


# ---------------------------------------------------------------- unmasked


def _unmasked(subject: Subject) -> None:
    """Of the masked tokens of a block the likeliest stay, until none is masked (Nie et al. 2025, algorithm 5)."""
    if subject.encoder_decoder or subject.spec.stacks[-1].mask.attribute("needs") or not subject.spec.sizes.sees_all:
        raise NotApplicable("it writes no text: its mask looks ahead")
    prompts = [row[:n].tolist() for row, n in zip(random_ids(2, 5), (5, 3), strict=True)]
    ended = ["", ""]
    how = Unmasking(MASK, steps=5, block=4)
    got = unmask_all(
        subject.model, prompts, max_new=NEW, how=how, sampling=Sampling(temperature=0), vocabulary=DRAWN, ended=ended
    )
    for prompt, new, reason in zip(prompts, got, ended, strict=True):
        text = [*prompt, *[MASK] * NEW]
        # Of 5 steps for 6 tokens the first 4 tokens have 3, of which the first has two tokens, and the last 2 have 2.
        for end, several in ((4, (2, 1, 1)), (NEW, (1, 1))):
            for n in several:
                p = subject.model({"ids": torch.tensor([text])}, heads={"tokens": None}).heads["tokens"][0].double()
                p[:, [MASK, *range(DRAWN, p.shape[1])]] = float("-inf")
                chance, token = p.softmax(-1).max(-1)
                hidden = [i for i in range(len(prompt), len(prompt) + end) if text[i] == MASK]
                for i in sorted(hidden, key=lambda i: -float(chance[i]))[:n]:
                    text[i] = int(token[i])
        if (new, reason) != (text[len(prompt) :], "length"):
            raise CheckFailed(f"a prompt of {len(prompt)} tokens is continued by {new} beside others, by {text} alone")
    write = partial(
        unmask_all, subject.model, max_new=NEW, how=how, sampling=Sampling(temperature=2.0), vocabulary=DRAWN
    )
    drawn = write(prompts, seeds=SEEDS[:2])
    for prompt, seed, new in zip(prompts, SEEDS, drawn, strict=False):
        (alone,) = write([prompt], seeds=[seed])
        (cut,) = write([prompt], seeds=[seed], stop=[new[3]], ended=ended)
        if new != alone or cut != new[: new.index(new[3])] or ended[0] != "eos":
            raise CheckFailed(
                f"a prompt is continued by {new} beside others, by {alone} alone, by {cut} before {new[3]}"
            )
    if subject.case.kind == "family":
        require_rules()
        require_bounds_of_unmasking(subject, prompts, how, DRAWN)
    bound = limit(subject.model)
    if bound is not None:
        near, told = (prompts[0] * bound)[: bound - 2], [""]
        (new,) = write([near], ended=told)
        if len(new) != 2 or told != ["positions"]:
            raise CheckFailed(f"of {bound} positions two are free, but {len(new)} tokens are written ({told[0]})")
