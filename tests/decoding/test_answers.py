"""Answers in a batch are those that each prompt gets alone, and their log-probabilities are a plain forward's."""

import pytest
import torch
from families import build, tiny

from llmlab.decoding.answers import answers
from llmlab.decoding.generate import generate
from llmlab.decoding.sampling import Sampling

PROMPTS = [[5, 17, 3, 40, 8], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [22, 21]]
SEEDS = [1, 2, 3, 1]


def of_a_forward(model, prompt, answer, sampling, vocabulary):
    """Log-probabilities of an answer's tokens, from one forward of prompt and answer without a cache."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model({"ids": ids[:, :-1]}).heads["tokens"][0, len(prompt) - 1 :, :vocabulary]
    return (logits / sampling.temperature).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("family", ["llama3", "gpt2", "gemma3", "qwen_moe"])
@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_answers_are_those_of_each_prompt_alone(family, at_once):
    model = build(*tiny(family, "model.tie_embeddings=false")).double().eval()
    warm = Sampling(temperature=1.7)
    how = {"max_new": 8, "sampling": warm, "vocabulary": 50}
    free = [list(generate(model, p, seed=s, **how)) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    stop = free[0][3]
    found = answers(model, PROMPTS, seeds=SEEDS, stop=stop, at_once=at_once, **how)
    for prompt, answer, whole in zip(PROMPTS, found, free, strict=True):
        assert answer.ids == (whole[: whole.index(stop) + 1] if stop in whole else whole)  # it ends with its end token
        want = of_a_forward(model, prompt, answer.ids, warm, 50)
        torch.testing.assert_close(torch.tensor(answer.log_probabilities).double(), want, atol=1e-5, rtol=0)
    assert found[0].ids[-1] == stop and len(found[0].ids) <= 4


def test_the_log_probability_is_of_the_distribution_that_was_drawn_from():
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    token = logits.argmax(-1)
    assert Sampling(temperature=0).log_probability(logits, token).tolist() == [0.0] * 6
    cut = Sampling(temperature=0.5, top_k=2)
    two = (logits / 0.5).topk(2).values
    want = two[:, 0] - two.logsumexp(-1)
    torch.testing.assert_close(cut.log_probability(logits, token), want)


def test_the_seeds_and_the_most_at_once():
    """Each prompt has its own seed, whatever group it is in; a group is never empty and none is left over."""
    model = build(*tiny("llama3"))
    how = {"max_new": 3, "sampling": Sampling(temperature=2.0)}
    alone = [answers(model, [p], seeds=[s], **how)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    for at_once in (None, 0, 2, 3, 4, 99):
        together = answers(model, PROMPTS, seeds=SEEDS, at_once=at_once, **how)
        assert [a.ids for a in together] == [a.ids for a in alone]
    assert answers(model, [], seeds=[], **how) == []
    assert all(len(a.ids) == len(a.log_probabilities) == 3 for a in alone)
    groups = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "llmlab.decoding.answers.generate_all", lambda _, some, **more: groups.append((some, more["seeds"])) or []
        )
        answers(model, PROMPTS, seeds=SEEDS, at_once=3, **how)
        answers(model, PROMPTS, seeds=SEEDS, **how)
    assert groups == [(PROMPTS[:3], SEEDS[:3]), (PROMPTS[3:], SEEDS[3:]), (PROMPTS, SEEDS)]
