"""Unmasking: the algorithm of LLaDA's paper by hand, batches, and where it ends."""

import pytest
import torch
from families import build, tiny

from llmlab.decoding.sampling import Sampling
from llmlab.decoding.unmasking import Unmasking, unmask_all
from llmlab.errors import UserError

MASK, PROMPT, NEW = 49, [5, 17, 3], 10


@pytest.fixture(scope="module")
def model():
    return build(*tiny("llama3", "objective=masked_diffusion"))


@torch.no_grad()
def by_hand(model, prompt, new, steps, block):
    """Greedy; blocks and steps divide each other, as LLaDA's own function demands."""
    text = [*prompt, *[MASK] * new]
    for start in range(len(prompt), len(text), block):
        for _ in range(steps * block // new):
            p = model({"ids": torch.tensor([text])}).heads["tokens"][0].float()
            p[:, [MASK, *range(50, p.shape[1])]] = float("-inf")
            chance, token = p.softmax(-1).max(-1)
            hidden = [i for i in range(start, start + block) if text[i] == MASK]
            for i in sorted(hidden, key=lambda i: -chance[i].item())[: new // steps]:
                text[i] = int(token[i])
    return text[len(prompt) :]


@pytest.mark.parametrize(("steps", "block"), [(None, None), (5, None), (10, 5), (2, 5)])
def test_the_surest_stay(model, steps, block):
    how = Unmasking(MASK, steps, block)
    (got,) = unmask_all(model, [PROMPT], max_new=NEW, how=how, sampling=Sampling(temperature=0), vocabulary=50)
    assert got == by_hand(model, PROMPT, NEW, steps or NEW, block or NEW) and MASK not in got


def test_a_text_is_what_it_is_alone(model):
    prompts, ended = [PROMPT, [8], [9, 9, 1, 2, 30]], ["", "", ""]
    how = {
        "max_new": NEW,
        "how": Unmasking(MASK, 4, 3),
        "sampling": Sampling(temperature=2.0, top_k=20),
        "vocabulary": 50,
    }
    got = unmask_all(model, prompts, seeds=[1, 2, 3], ended=ended, **how)
    alone = [unmask_all(model, [p], seeds=[s], **how)[0] for s, p in enumerate(prompts, 1)]
    assert got == alone and ended == ["length"] * 3
    assert unmask_all(model, prompts[:1], seeds=[2], **how) != got[:1]
    stop = got[0][4]
    cut = unmask_all(model, prompts[:1], seeds=[1], stop=[stop], ended=ended, **how)[0]
    assert cut == got[0][: got[0].index(stop)] and ended[0] == "eos"


def test_each_step_of_a_plan_unmasks_as_many_as_others():
    assert Unmasking(MASK).plan(3) == [(1, 3)] * 3
    assert Unmasking(MASK, 4).plan(10) == [(3, 10), (3, 10), (2, 10), (2, 10)]
    assert Unmasking(MASK, 4, 4).plan(10) == [(2, 4), (2, 4), (2, 8), (2, 8), (2, 10)]
    for room in range(1, 20):
        for steps in (None, 1, 3, 50):
            for block in (None, 1, 4, 50):
                assert sum(n for n, _ in Unmasking(MASK, steps, block).plan(room)) == room
    with pytest.raises(UserError, match="steps=0 must be at least 1"):
        Unmasking(MASK, 0)


def test_it_ends_at_the_last_position():
    learned = build(*tiny("gpt2", "objective=masked_diffusion"))
    ended = [""]
    (got,) = unmask_all(learned, [PROMPT], max_new=100, how=Unmasking(MASK, 2), ended=ended)
    assert len(got) == 40 - len(PROMPT) and ended == ["positions"]
    with pytest.raises(UserError, match="40 tokens, but the model knows 40 positions"):
        unmask_all(learned, [[1] * 40], max_new=1, how=Unmasking(MASK))
