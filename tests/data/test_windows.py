import numpy as np
import pytest

from llmlab.data import Stream, Windows


@pytest.fixture
def stream():
    lengths = [5, 1, 1, 30, 2, 14]
    tokens = np.arange(sum(lengths), dtype=np.uint16) + 1000
    return Stream(tokens, np.cumsum([0, *lengths[:-1]])), np.repeat(np.arange(len(lengths)), lengths)


def test_documents_of_every_stretch(stream):
    stream, documents = stream
    for begin in range(len(stream)):
        for end in range(begin + 1, len(stream) + 1):
            assert stream.documents(begin, end).tolist() == documents[begin:end].tolist()


@pytest.mark.parametrize("seq_len", [1, 4, 13, 26, 52])
def test_windows_have_each_target_once(stream, seq_len):
    stream, documents = stream
    windows = Windows(stream, seq_len, documents=True)
    samples = [windows[i] for i in range(len(windows))]
    assert all(s["tokens"].shape == s["documents"].shape == (seq_len + 1,) for s in samples)
    assert {s[k].dtype for s in samples for k in s} == {np.dtype(np.int64)}
    whole = len(windows) * seq_len
    assert len(stream) - 1 - seq_len < whole <= len(stream) - 1
    assert [t for s in samples for t in s["tokens"][1:]] == list(range(1001, 1001 + whole))
    assert [t for s in samples for t in s["tokens"][:-1]] == list(range(1000, 1000 + whole))
    assert [d for s in samples for d in s["documents"][1:]] == documents[1 : 1 + whole].tolist()


def test_documents_are_there_if_asked_for(stream):
    assert list(Windows(stream[0], 4)[0]) == ["tokens"]


def test_out_of_range(stream):
    windows = Windows(stream[0], 4)
    for i in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[i]
    assert len(Windows(stream[0], 53)) == 0
    with pytest.raises(ValueError, match=r"data\.seq_len"):
        Windows(stream[0], 0)


@pytest.mark.parametrize("seq_len", [3, 5, 7, 100])
def test_what_windows_leave_goes_on_where_they_end(stream, seq_len):
    """Windows and what they leave have every token but the first as a target once, of its own document."""
    stream, documents = stream
    rest = stream.after(seq_len)
    n = len(Windows(stream, seq_len))
    assert len(rest) == len(stream) - n * seq_len
    assert rest.tokens.tolist() == stream.tokens[n * seq_len :].tolist()
    left = documents[n * seq_len :]
    assert rest.documents(0, len(rest)).tolist() == (left - left[0]).tolist()


@pytest.mark.parametrize("lead", [(7,), (7, 8)])
@pytest.mark.parametrize("seq_len", [3, 5, 7, 26])
def test_windows_that_begin_with_a_lead(stream, seq_len, lead):
    """Each is a text of its own: the lead, then what follows in the stream; each token of it is once a target."""
    k = len(lead)
    tokens = np.concatenate([lead, stream[0].tokens]).astype(np.uint16)
    led = Stream(tokens, np.concatenate([[0], stream[0].starts[1:] + k]), np.arange(len(tokens)))
    rest = led.after(seq_len, k)
    all_windows = [Windows(led, seq_len, True, lead), Windows(rest, len(rest) - 1, True, lead)] if len(rest) > k else []
    all_windows = all_windows or [Windows(led, seq_len, True, lead)]
    samples = [w[i] for w in all_windows for i in range(len(w))]
    assert all(s["tokens"][:k].tolist() == list(lead) and s["sizes"][:k].sum() == 0 for s in samples)
    assert [t for s in samples for t in s["tokens"][k:]] == stream[0].tokens.tolist()
    assert sum(int(s["sizes"].sum()) for s in samples) == sum(range(k, len(tokens)))
    documents = [d for w in all_windows[:1] for i in range(len(w)) for d in w[i]["documents"][k:]]
    assert documents == stream[1][: len(documents)].tolist()
