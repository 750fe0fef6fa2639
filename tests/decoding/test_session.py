"""A session's cache: each turn gives what the whole text gives anew."""

import pytest
from families import DECODING, FAMILIES, VOCABULARY, build, tiny

from llmlab.decoding.generate import generate
from llmlab.decoding.sampling import Sampling
from llmlab.decoding.session import Session, _common

WARM = Sampling(temperature=5.0, repetition_penalty=1.2)
TURNS = ([5, 17, 3], [9, 9, 30], [2], [11, 4, 4, 8])


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f == "gemma3" else pytest.mark.slow) for f in FAMILIES])
def test_turns_over_one_cache_are_turns_anew(family):
    model = build(*tiny(family, "model.tie_embeddings=false", *DECODING.get(family, ())))
    start = 0 if model.spec.topology == "encoder_decoder" else None
    session, text = Session(model), []
    for seed, turn in enumerate(TURNS):
        before = len(session.ids)
        text += turn
        if seed == 3:  # what was said is told otherwise from here on
            text[5] = (text[5] + 1) % VOCABULARY
        drawn = list(session.write(text, max_new=3, sampling=WARM, seed=seed, start=start))
        assert drawn == list(generate(model, text, max_new=3, sampling=WARM, seed=seed, start=start))
        assert session.reused == (0 if not session.keeps else 5 if seed == 3 else before)
        text += drawn
        assert session.ids == (text[:-1] if session.keeps else [])  # the last token has not been read yet
    assert session.keeps or start is not None or family in ("qwen1", "phi3")


def test_a_turn_that_is_broken_off_leaves_the_cache_whole(monkeypatch):
    model = build(*tiny("llama3"))
    session, text = Session(model), [5, 17, 3, 8]
    writing = session.write(text, max_new=9, sampling=WARM, seed=1)
    told = [next(writing) for _ in range(4)]
    writing.close()
    assert session.ids == [*text, *told[:3]]

    layer, calls = model.all_stacks()[-1].layers[-1], []

    def interrupted(*args, **kwargs):  # in the last layer, when the others have been extended
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    forward = layer.forward
    monkeypatch.setattr(layer, "forward", interrupted)
    text += [*told, 7]
    with pytest.raises(KeyboardInterrupt):
        list(session.write(text, max_new=9, sampling=WARM, seed=2))
    monkeypatch.undo()
    assert session.ids[: len(text)] == text
    wanted = list(generate(model, text, max_new=9, sampling=WARM, seed=2))
    assert list(session.write(text, max_new=9, sampling=WARM, seed=2)) == wanted
    assert session.reused == len(text) - 1


def test_the_same_prompt_again():
    model = build(*tiny("llama3"))
    session = Session(model)
    first = list(session.write([5, 17, 3], max_new=5, sampling=WARM))
    assert list(session.write([5, 17, 3], max_new=5, sampling=WARM)) == first and session.reused == 2
    session.clear()
    assert list(session.write([5, 17, 3], max_new=5, sampling=WARM)) == first and session.reused == 0


def test_what_is_told_to_a_session_is_told_to_generate():
    """Where it stops and why, which ids there are, the seed: all that a text may be asked for."""
    model = build(*tiny("llama3"))
    session, prompt = Session(model), [5, 17, 3]
    free = list(generate(model, prompt, max_new=6, sampling=WARM, seed=4, vocabulary=9))
    assert max(free) < 9 and list(session.write(prompt, max_new=6, sampling=WARM, seed=4, vocabulary=9)) == free
    for stop in (free[3], [free[3], 40]):
        ended = [""]
        found = list(session.write(prompt, max_new=6, sampling=WARM, seed=4, vocabulary=9, stop=stop, ended=ended))
        assert found == free[: free.index(free[3])] and ended == ["eos"]
    plain = list(generate(model, prompt, max_new=4))
    assert list(session.write(prompt, max_new=4)) == plain  # seed 0 and no rule, unless told otherwise
    assert Session(build(*tiny("t5"))).keeps is False and session.keeps


def test_what_two_texts_begin_with():
    for a, b, n in (
        ([], [], 0),
        ([1], [], 0),
        ([1, 2], [1, 2], 2),
        ([1, 2], [1, 2, 3], 2),
        ([1, 3, 2], [1, 2, 2], 1),
        ([2], [1], 0),
    ):
        assert _common(a, b) == _common(b, a) == n


def test_a_prompt_that_is_shorter_or_another():
    """All but its last token, which has to be read for the next; then nothing."""
    model = build(*tiny("llama3"))
    session = Session(model)
    list(session.write([5, 17, 3, 8, 9], max_new=3, sampling=WARM))
    for prompt, reused in (([5, 17, 3], 2), ([5], 0), ([7, 17, 3], 0), ([7, 17, 4, 4], 2)):
        found = list(session.write(prompt, max_new=3, sampling=WARM, seed=1))
        assert (session.reused, found) == (reused, list(generate(model, prompt, max_new=3, sampling=WARM, seed=1)))
        assert session.ids == [*prompt, *found[:-1]]
