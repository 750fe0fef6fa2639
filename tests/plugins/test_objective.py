"""Objectives: what they make of a text, and losses against a loop over tokens."""

import math

import numpy as np
import pytest
import torch
from parts import names, part, randn

from llmlab.slots import Aux, Output, Vocabulary

SENTINELS = {f"sentinel_{i}": 100 + i for i in range(100)}
VOCABULARY = Vocabulary(250, {"eos": 0, "pad": 1, "mask": 2, "cls": 3, "sep": 4, **SENTINELS})
LENGTH = 64
OF_TEXT = ("clm", "mlm", "span_corruption")


def objective(name, seq_len=LENGTH, vocabulary=VOCABULARY, **options):
    return part("objective", name, **options)(vocabulary, seq_len)


def sample(seed=0, length=LENGTH):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 100, length + 1)
    tokens[length // 2] = 0
    return {"tokens": tokens, "documents": np.arange(length + 1) // 20}


class FakeModel:
    """Answers with given logits, and remembers what it was asked for."""

    def __init__(self, logits, aux=None):
        self.logits, self.aux = logits, aux

    def __call__(self, batch, *, heads):
        self.heads = heads
        where = heads["tokens"]
        logits = self.logits if where is None else self.logits[where]
        return Output(torch.zeros(1), {"tokens": logits}, self.aux)


def batched(made, seeds):
    prepared = [made.prepare(sample(seed), np.random.default_rng(seed)) for seed in seeds]
    return {key: torch.from_numpy(np.stack([p[key] for p in prepared])) for key in prepared[0]}


def test_every_objective_is_here():
    assert set(names("objective")) == {
        *OF_TEXT,
        "classification",
        "reinforce",
        "prefix_lm",
        "fim",
        "masked_diffusion",
        "mtp",
        "replace_mlm",
        "rtd",
    }


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_sample_is_a_function_of_the_text_and_the_generator_and_of_fixed_shape(name):
    made, text = objective(name), sample()
    before = text["tokens"].copy()
    first, again = (made.prepare(text, np.random.default_rng(7)) for _ in range(2))
    other = made.prepare(sample(5), np.random.default_rng(8))
    for key, value in first.items():
        assert np.array_equal(value, again[key]) and value.dtype == np.int64
        assert value.shape == other[key].shape
    assert np.array_equal(text["tokens"], before)
    assert made.targets(first)["nll"] == (first["labels"] >= 0).sum() > 0
    if made.fixed_counts:
        assert made.targets(first) == made.targets(other)


@pytest.mark.parametrize("name", OF_TEXT)
@pytest.mark.parametrize(
    "aux", [None, Aux(torch.tensor(0.25), torch.tensor([[3, 1]])), Aux(None, torch.tensor([[1, 2]]))]
)
def test_loss_is_a_sum_over_targets(name, aux):
    made = objective(name)
    batch = batched(made, range(3))
    labels = batch["labels"]
    logits = randn(*labels.shape, 250).requires_grad_()
    loss = made.loss(FakeModel(logits, aux), batch)
    want = count = right = 0
    for b in range(3):
        for t in range(labels.shape[1]):
            if labels[b, t] >= 0:
                row = logits[b, t].tolist()
                want += math.log(sum(math.exp(v) for v in row)) - row[labels[b, t]]
                right += row.index(max(row)) == labels[b, t]
                count += 1
    assert loss.balance is (None if aux is None else aux.loss)
    assert loss.terms.keys() == {"nll"} and not loss.weights
    assert loss.shown["nll"][0].item() == pytest.approx(want, rel=1e-5) and loss.shown["nll"][1] == count
    assert loss.aux["model"].tokens_per_expert is (None if aux is None else aux.tokens_per_expert)
    if name == "mlm":
        assert loss.logs["accuracy"] == (right, count)
    loss.terms["nll"][0].backward()
    assert (logits.grad.abs().sum(-1) > 0).equal(labels >= 0)


def test_clm_shifts_by_one():
    made, text = objective("clm"), sample()
    prepared = made.prepare(text, None)
    assert np.array_equal(prepared["ids"], text["tokens"][:-1])
    assert np.array_equal(prepared["labels"], text["tokens"][1:])
    assert np.array_equal(prepared["documents"], text["documents"][:-1])
    assert "documents" not in made.prepare({"tokens": text["tokens"]}, None)


def test_clm_loss_of_a_model_that_knows_nothing_is_ln_v():
    made = objective("clm")
    loss = made.loss(FakeModel(torch.zeros(2, LENGTH, 250)), batched(made, range(2)))
    assert loss.mean().item() == pytest.approx(math.log(250))


def test_mlm_statistics():
    """Over 400 samples: 15 % of ordinary tokens are targets, of these 80 % mask, 10 % random, 10 % as they were."""
    made = objective("mlm")
    chosen = masked = kept = ordinary = 0
    seen = set()
    for seed in range(400):
        text = sample(seed)["tokens"][:LENGTH]
        prepared = made.prepare(sample(seed), np.random.default_rng(seed))
        ids, target = prepared["ids"], prepared["labels"] >= 0
        assert np.array_equal(prepared["labels"][target], text[target])
        assert np.array_equal(ids[~target], text[~target])
        assert not target[LENGTH // 2], "eos is no target"
        chosen += target.sum()
        ordinary += LENGTH - 1
        masked += (ids[target] == 2).sum()
        kept += (ids[target] == text[target]).sum()
        seen |= set(ids[target][(ids[target] != 2) & (ids[target] != text[target])].tolist())
    assert chosen / ordinary == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.02)
    assert kept / chosen == pytest.approx(0.1, abs=0.02)
    assert not seen & set(VOCABULARY.special.values()) and max(seen) > 200 and min(seen) < 20


def test_mlm_rates_are_those_asked_for():
    made = objective("mlm", rate=1.0, masked=0.0, random=0.0)
    prepared = made.prepare(sample(), np.random.default_rng(0))
    assert np.array_equal(prepared["ids"], sample()["tokens"][:-1])
    assert made.targets(prepared) == {"nll": LENGTH - 1}


def test_mlm_has_a_target_in_every_sample():
    made = objective("mlm", rate=1e-6)
    for seed in range(20):
        assert made.targets(made.prepare(sample(seed), np.random.default_rng(seed)))["nll"] == 1
    nothing = {"tokens": np.zeros(LENGTH + 1, dtype=np.int64)}
    assert made.targets(made.prepare(nothing, np.random.default_rng(0)))["nll"] == 1


def test_mlm_asks_for_the_head_at_targets_only():
    made = objective("mlm")
    model, batch = FakeModel(randn(2, LENGTH, 250)), batched(made, range(2))
    made.loss(model, batch)
    assert torch.equal(model.heads["tokens"], batch["labels"] >= 0)


@pytest.mark.parametrize("seq_len", [2, 3, 16, 64, 512, 2000])  # the last has as many spans as there are sentinels
def test_spans_can_be_put_back(seq_len):
    made = objective("span_corruption", seq_len)
    text = sample(3, seq_len)["tokens"] if seq_len > 2 else np.array([7, 8, 9])
    for seed in range(10):
        prepared = made.prepare({"tokens": text}, np.random.default_rng(seed))
        source, labels, ids = (prepared[k].tolist() for k in ("source_ids", "labels", "ids"))
        assert source[-1] == labels[-1] == 0 and ids == [1, *labels[:-1]]
        spans: dict[int, list[int]] = {}
        for token in labels[:-1]:
            if token >= 100:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        assert list(spans) == [100 + i for i in range(len(spans))] and all(spans.values())
        back = [t for token in source[:-1] for t in spans.get(token, [token])]
        assert back == text[:seq_len].tolist()
        assert source[0] < 100, "a text begins with a token that is kept"


def test_spans_have_the_density_and_mean_length_asked_for():
    """T5: 512 tokens, 15 % in spans of 3: 77 taken in 26 spans, so 114 + ... tokens as its paper's code computes."""
    made = objective("span_corruption", 512)
    prepared = made.prepare(sample(0, 512), np.random.default_rng(0))
    assert len(prepared["source_ids"]) == 512 - 77 + 26 + 1 and len(prepared["labels"]) == 77 + 26 + 1
    starts = [
        np.flatnonzero(made.prepare(sample(0, 512), np.random.default_rng(s))["source_ids"] >= 100)[0]
        for s in range(300)
    ]
    assert np.mean(starts) == pytest.approx((512 - 77) / 26, rel=0.15)
    assert np.std(starts) > 8


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"objective\.rate must be in \(0, 1\]"):
        objective("mlm", rate=0.0)
    with pytest.raises(ValueError, match=r"at most 1, but they are 0\.15 and 0\.95 \+ 0\.1"):
        objective("mlm", masked=0.95)
    with pytest.raises(ValueError, match=r"makes 205 spans, but there are 100 sentinels"):
        objective("span_corruption", 4096)
    with pytest.raises(ValueError, match=r"needs data\.seq_len of at least 2, but it is 1"):
        objective("span_corruption", 1)
    with pytest.raises(ValueError, match=r"objective\.density must be in \(0, 1\)"):
        objective("span_corruption", density=1.0)


def test_classification_is_the_cross_entropy_of_one_answer_a_record():
    made, tokens = objective("classification"), np.arange(5, 15)
    prepared = made.prepare({"tokens": tokens, "label": np.int64(2), "segments": tokens % 2}, np.random.default_rng(0))
    assert {k: v.tolist() for k, v in prepared.items()} == {"ids": [*range(5, 15)], "labels": 2, "segments": [1, 0] * 5}
    assert made.targets(prepared) == {"nll": 1}
    scores, labels = randn(7, 4), torch.arange(7) % 4
    loss = made.loss(lambda batch, *, heads: Output(torch.zeros(1), {"classes": scores}, None), {"labels": labels})
    want = right = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        want += math.log(sum(math.exp(x) for x in row)) - row[label]
        right += row.index(max(row)) == label
    assert loss.terms["nll"][0].item() == pytest.approx(want, rel=1e-5) and loss.terms["nll"][1] == 7
    assert [x.item() for x in loss.logs["accuracy"]] == [right, 7]
    assert set(loss.terms) == {"nll"} and made.measures == {"accuracy": "accuracy"}  # no perplexity is claimed


class Drawn:
    """A generator that draws these numbers, first those that choose targets and then those that decide what is shown."""

    def __init__(self, *rows):
        self.rows = list(rows)

    def random(self, n):
        return np.array(self.rows.pop(0), dtype=np.float64)[:n]

    def integers(self, high, size):
        return np.arange(size) % high


def test_mlm_chooses_below_its_rates():
    """Of numbers in [0, 1) as many as the rate are below it, and one that equals it is not."""
    made = objective("mlm", 4, rate=0.5, masked=0.25, random=0.25)
    text = {"tokens": np.array([50, 51, 52, 53, 54])}
    prepared = made.prepare(text, Drawn([0.5, 0.4, 0.4, 0.4], [0.0, 0.25, 0.5, 0.24]))
    assert prepared["labels"].tolist() == [-100, 51, 52, 53]
    assert prepared["ids"].tolist() == [50, 6, 52, 2], "the second ordinary id; as it was; the mask"
