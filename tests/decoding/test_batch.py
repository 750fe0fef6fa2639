"""Prompts in a batch get what they get alone; repetition penalty and min-p as transformers computes them."""

import pytest
import torch
from families import DECODING, FAMILIES, build, mostly_slow, tiny

from llmlab.decoding.generate import fits_padding, generate, generate_all, limit
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError

GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=3.0, top_p=0.9)
PROMPTS = [[5, 17, 3, 40, 8], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [22, 21]]


def alone(model, prompt, seed, **how):
    return list(generate(model, prompt, seed=seed, **how))


def together(model, prompts, seeds, **how):
    found = [[] for _ in prompts]
    for step in generate_all(model, prompts, seeds=seeds, **how):
        for row, token in zip(found, step, strict=True):
            if token is not None:
                row.append(token)
    return found


def how_of(model, **how):
    return {"max_new": 10, **({"start": 0} if model.spec.topology == "encoder_decoder" else {}), **how}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_in_a_batch_as_alone(family, cached):
    model = build(*tiny(family, "model.tie_embeddings=false", *DECODING.get(family, ()))).double()
    assert fits_padding(model, 24)
    for sampling in (GREEDY, WARM):
        how, seeds = how_of(model, sampling=sampling, cached=cached), [1, 2, 3, 1]
        got = together(model, PROMPTS, seeds, **how)
        assert got == [alone(model, p, s, **how) for p, s in zip(PROMPTS, seeds, strict=True)]
        assert all(len(row) == 10 for row in got)


@pytest.mark.parametrize(
    "position",
    [
        *("alibi", "learned", "learned position.offset=2 position.skip_padding=true", "sinusoidal", "t5_bias", "none"),
        *(
            f"rope position.scaling={name} position.factor=4 position.original_max=8"
            for name in ("dynamic", "dynamic_steps")
        ),
        "rope position.scaling=longrope position.factor=4 position.original_max=8 position.short_factor=[1,1,1.5,2] "
        "position.long_factor=[1,3,5,9]",
        "rope position.log_n=true position.original_max=4",
    ],
)
def test_under_other_positions_and_a_window(position):
    choice = f"position={position}".split()
    model = build(*tiny("llama3", *choice, "window=sliding", "window.left=4")).double()
    assert fits_padding(model, 16)
    how = how_of(model, sampling=WARM)
    assert together(model, PROMPTS, [1] * 4, **how) == [alone(model, p, 1, **how) for p in PROMPTS]


def test_each_row_ends_where_it_ends_alone():
    """At its own last position, at the end token, and where the caller says."""
    model = build(*tiny("gpt2", "model.max_positions=14")).double()
    how = how_of(model, sampling=WARM, max_new=12)
    free = together(model, PROMPTS, [1] * 4, **how)
    assert [len(row) for row in free] == [min(12, limit(model) - len(p) + 1) for p in PROMPTS] == [10, 12, 4, 12]
    stop = free[0][3]
    ended = [""] * 4
    got = together(model, PROMPTS, [1] * 4, **how, stop=stop, ended=ended)
    assert got == [row[: row.index(stop)] if stop in row else row for row in free]
    assert ended[0] == "eos" and "positions" in ended and "length" in ended
    ended = [""] * 4
    for n, step in enumerate(generate_all(model, PROMPTS, seeds=[1] * 4, **how, ended=ended)):
        assert (step[1] is None) == (n > 1)
        if n == 1:
            ended[1] = "stop"


def test_models_that_padding_would_change_are_known():
    """Windows that go by absolute places, and positions that are counted by a token of padding."""
    assert fits_padding(build(*tiny("gpt2")), 16)
    assert not fits_padding(build(*tiny("gpt2"), "position.offset=2", "position.pad_id=1"), 16)
    model = build(*tiny("llama3"))

    class Sinks:
        def allowed(self, q, k, data):
            return (k > q - 4) | (k < 1)

    model.stacks["main"].windows = [Sinks()]
    assert not fits_padding(model, 16)


def test_what_a_batch_refuses():
    model = build(*tiny("llama3"), wake=False)
    with pytest.raises(UserError, match="prompt is empty"):
        together(model, [[1], []], [1, 1], max_new=2)
    with pytest.raises(UserError, match="prompt has the id 9999"):
        together(model, [[1], [9999]], [1, 1], max_new=2)


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.tensor([[1, 5, 5, 7], [0, 0, 0, 0], [19, 18, 3, 2]])
    want = processors.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()).softmax(-1)
    seen = torch.zeros(3, 20, dtype=torch.bool).scatter_(1, ids, True)
    torch.testing.assert_close(Sampling(repetition_penalty=penalty).distribution(logits, seen), want)
    greedy = Sampling(temperature=0, repetition_penalty=penalty)
    assert torch.equal(greedy.draw(logits, torch.Generator(), seen), want.argmax(-1))


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("top_p", [None, 0.7])
def test_min_p_is_that_of_transformers_after_the_others(min_p, top_p):
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(1)) * 2
    want = processors.TemperatureLogitsWarper(0.8)(None, logits.clone())
    want = processors.TopKLogitsWarper(15)(None, want)
    if top_p:
        want = processors.TopPLogitsWarper(top_p)(None, want)
    want = processors.MinPLogitsWarper(min_p)(None, want).softmax(-1)
    torch.testing.assert_close(Sampling(0.8, 15, top_p, min_p).distribution(logits), want)


def test_the_penalty_counts_prompt_and_text_but_no_padding():
    """Greedy under a large penalty never repeats itself, and never avoids a token because a shorter row was padded."""
    model = build(*tiny("llama3")).double()
    how = how_of(model, sampling=Sampling(temperature=0, repetition_penalty=1e6), max_new=8)
    got = together(model, PROMPTS, [1] * 4, **how)
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert len({*prompt, *row}) == len(set(prompt)) + len(row)
        assert row == alone(model, prompt, 1, **how)


@pytest.mark.parametrize(
    ("how", "name"),
    [({"min_p": -0.1}, "min_p=-0.1"), ({"min_p": 1.5}, "min_p=1.5"), ({"repetition_penalty": 0}, "repetition_penalty=0"),
     ({"repetition_penalty": float("nan")}, "repetition_penalty=nan")],
)  # fmt: skip
def test_settings_out_of_range(how, name):
    with pytest.raises(UserError, match=name):
        Sampling(**how)
