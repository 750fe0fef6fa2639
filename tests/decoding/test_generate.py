"""Generation: cached = uncached, where it ends, and what it refuses."""

import pytest
import torch
from families import DECODING, FAMILIES, VOCABULARY, build, ids, mostly_slow, tiny

from llmlab.decoding.generate import generate, limit
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError

GREEDY = Sampling(temperature=0)
PROMPT = [5, 17, 3, 40, 8]


def run(model, prompt=PROMPT, **how):
    if model.spec.topology == "encoder_decoder":
        how.setdefault("start", 0)
    return list(generate(model, prompt, **{"max_new": 12, **how}))


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_cached_is_uncached(family):
    model = build(*tiny(family, "model.tie_embeddings=false", *DECODING.get(family, ())))
    greedy = run(model, sampling=GREEDY)
    assert greedy == run(model, sampling=GREEDY, cached=False)
    warm = Sampling(temperature=5.0)
    drawn = run(model, sampling=warm, seed=3)
    assert drawn == run(model, sampling=warm, seed=3, cached=False)
    assert len(greedy) == len(drawn) == 12
    assert len(set(drawn)) > 3


@torch.no_grad()
def test_greedy_is_the_most_likely_token_each_time():
    model = build(*tiny("llama3"))
    text = list(PROMPT)
    for token in run(model, sampling=GREEDY):
        assert token == int(model({"ids": torch.tensor([text])}).heads["tokens"][0, -1].argmax())
        text.append(token)


def test_seeds():
    model = build(*tiny("llama3"))
    assert run(model, seed=1) == run(model, seed=1)
    assert run(model, seed=1) != run(model, seed=2)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    run(model, seed=1)
    assert torch.equal(torch.rand(1), before)


def test_it_ends_at_stop_and_does_not_say_it():
    model = build(*tiny("llama3"))
    free = run(model, sampling=GREEDY)
    stop = free[4]
    assert run(model, sampling=GREEDY, stop=stop) == free[: free.index(stop)]


@pytest.mark.parametrize("cached", [True, False])
def test_it_ends_at_the_last_position(cached):
    model = build(*tiny("gpt2"))
    assert limit(model) == 40
    assert len(run(model, max_new=100, cached=cached)) == 40 - len(PROMPT) + 1
    assert len(run(model, ids(1, 40)[0].tolist(), max_new=100, cached=cached)) == 1
    with pytest.raises(UserError, match="41 tokens, but the model knows 40 positions"):
        run(model, ids(1, 41)[0].tolist())
    assert limit(build(*tiny("llama3"))) is None


def test_rows_that_only_round_the_table_up_are_never_drawn():
    model = build(*tiny("llama3"))
    assert max(run(model, max_new=60, vocabulary=7, sampling=Sampling(temperature=5.0))) < 7


def test_the_mode_of_the_model_is_left_as_it_was():
    model = build(*tiny("llama3", "model.dropout=0.5")).train()
    tokens = run(model, sampling=GREEDY)
    assert model.training
    assert tokens == run(model.eval(), sampling=GREEDY)


def test_the_source_is_the_prompt():
    model = build(*tiny("t5", "model.tie_embeddings=false"))
    one, two = run(model, [1, 2, 3, 4], sampling=GREEDY), run(model, [9, 8, 7, 20, 4], sampling=GREEDY)
    assert one != two


@pytest.mark.parametrize(
    ("family", "prompt", "message"),
    [("bert", PROMPT, "looks both ways"), ("llama3", [], "prompt is empty")],
)
def test_what_cannot_be_generated(family, prompt, message):
    with pytest.raises(UserError, match=message):
        run(build(*tiny(family), wake=False), prompt)


def test_an_encoder_decoder_needs_a_start():
    with pytest.raises(UserError, match="starts with"):
        list(generate(build(*tiny("t5"), wake=False), PROMPT, max_new=2))


def test_a_token_outside_of_the_table_is_refused():
    with pytest.raises(UserError, match=f"{VOCABULARY}"):
        run(build(*tiny("llama3"), wake=False), [VOCABULARY])
