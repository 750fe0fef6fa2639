"""Masked objectives of encoders: pairs of texts, whole words, fixed copies, spans; their losses against transformers'."""

from pathlib import Path

import numpy as np
import pytest
import torch
from parts import part, randn
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import llmlab
from llmlab.config import schema
from llmlab.config.compose import compose
from llmlab.data import collate, loader, stand_in, tokenizer, words
from llmlab.hub.load import describe
from llmlab.model import build
from llmlab.slots import Output, Vocabulary
from llmlab.training import cost

VOCABULARY = stand_in.vocabulary(61, ("mask", "cls", "sep", "eos"))
MASK, CLS, SEP, EOS = 60, 59, 58, 57
LENGTH = 24


def objective(name, seq_len=LENGTH, vocabulary=VOCABULARY, **options):
    return part("objective", name, **options)(vocabulary, seq_len)


def samples(n=6, length=LENGTH, **more):
    """Windows without special tokens, of which no two share a token of their beginnings."""
    rows = np.random.default_rng(0).integers(57, size=(n, length + 1))
    return [{"tokens": row, **more} for row in rows]


def batch_of(made, n=6):
    drawn = [collate.drawn(made, samples(n), i, np.random.default_rng(i)) for i in range(n)]
    prepared = [made.prepare(sample, np.random.default_rng(i)) for i, sample in enumerate(drawn)]
    return collate.batch(prepared, getattr(made, "collate", "stack"), most=LENGTH), prepared


def test_runs_are_as_long_as_albert_has_them():
    """p(n) = (1/n) / (1 + 1/2 + 1/3); of the run that a text begins in what is left is as of one that it met anywhere."""
    runs = objective("mlm", ngram=3, rate=0.15).runs
    assert runs.law == pytest.approx([6 / 11, 9 / 11])
    assert runs.rest == pytest.approx([11 / 18, 16 / 18])
    one = np.random.default_rng(0)
    drawn = np.array([runs.drawn(40, one) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(0.15, abs=0.006)
    assert objective("mlm", ngram=3, rate=1.0).runs.drawn(5, one).all()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("kind", "text", "groups"),
    [
        ("char", "ab, c1 d", ["ab", ",", " ", "c1", " ", "d"]),
        ("bpe", "hello, wörld x12\n end 数", ["hello", ",", " wörld", " x12", "\n", " end", " 数"]),
    ],
)
def test_words_of_our_tokenizers(kind, text, groups):
    made = tokenizer.make(schema.Tokenizer(kind=kind, vocab_size=262), [text], [], ("mask",))
    assert _words(made, text) == groups
    assert not words.of(made).continues[made.special["mask"]]


def _words(made, text):
    ids = np.array(made.encode(text))
    numbers = words.of(made).numbers(ids)
    assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1}
    return [made.decode(ids[numbers == i]) for i in range(numbers[-1] + 1)]


def test_words_of_other_tokenizers():
    from tokenizers import Tokenizer, models, pre_tokenizers

    def told(model, tokens, pre=None):
        inner = Tokenizer(model)
        inner.pre_tokenizer = pre
        found = words.of(tokenizer.Tokenizer(inner, {}, "file"))
        return found and found.numbers(np.array([inner.token_to_id(t) for t in tokens])).tolist()

    def ids(*tokens):
        return {token: i for i, token in enumerate(tokens)}

    pieces = ["un", "##know", "##n", "word"]
    assert told(models.WordPiece(ids(*pieces, "[UNK]"), unk_token="[UNK]"), pieces) == [0, 0, 0, 1]
    meta = ["▁un", "known", ",", "▁", "w", "ord", "<0xE4>", "<0x0A>", "x"]
    unigram = models.Unigram([(token, -1.0) for token in meta], unk_id=0, byte_fallback=True)
    assert told(unigram, meta, pre_tokenizers.Metaspace()) == [0, 0, 1, 2, 2, 2, 2, 3, 4]
    ends = ["un", "known</w>", "word</w>", "x"]
    assert told(models.BPE(ids(*ends), [], end_of_word_suffix="</w>"), ends) == [0, 0, 1, 2]
    assert told(models.WordLevel(ids("a", "b"), unk_token="a"), ["a", "b"]) == [0, 1]
    assert told(models.BPE(ids("a", "b"), []), ["a", "b"]) is None


def test_words_are_needed():
    unknown = Vocabulary(61, VOCABULARY.special)
    with pytest.raises(ValueError, match=r"objective.whole_words=true needs to know where words begin"):
        objective("mlm", vocabulary=unknown, whole_words=True)
    with pytest.raises(ValueError, match=r"objective=span_mlm, whose spans are of whole words, needs"):
        objective("span_mlm", vocabulary=unknown)


# ---------------------------------------------------------------- copies, and other windows


class Windowed:
    seq_len, pad, documents = LENGTH, 0, False

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"tokens": np.arange(LENGTH + 1) + i}


def test_copies_come_back():
    def epochs(**options):
        found = []
        for number in range(5):
            ids = loader.MicroSteps(Windowed(8), objective("mlm", **options), 7, 8, 8, 0, 1, 1)[number]
            # Windows come in another order in each epoch; their texts differ by what they begin with.
            text = torch.where(ids["labels"] >= 0, ids["labels"], ids["ids"])
            found.append(ids["ids"][text[:, 0].argsort()])
        return [[torch.equal(a, b) for b in found] for a in found]

    assert epochs(duplicates=2) == [[(i - j) % 2 == 0 for j in range(5)] for i in range(5)]
    assert epochs() == [[i == j for j in range(5)] for i in range(5)]


def test_another_window_is_any_but_its_own():
    made, rows = objective("mlm", pair="nsp"), samples(4)
    seen = set()
    for draw in range(60):
        found = collate.drawn(made, rows, 1, np.random.default_rng(draw))
        seen |= {i for i, row in enumerate(rows) if row is found["other"]}
    assert seen == {0, 2, 3}
    assert "other" not in collate.drawn(made, rows[:1], 0, np.random.default_rng(0))
    assert collate.drawn(objective("mlm"), rows, 1, np.random.default_rng(0)) is rows[1]
    # The only window there is: what follows in it is what follows.
    prepared = [made.prepare(rows[0], np.random.default_rng(i)) for i in range(40)]
    assert not any(p["pair_labels"] for p in prepared)


def test_pairs_need_a_model_that_tells_segments_apart():
    with pytest.raises(
        ValueError, match=r"mlm\(pair=nsp\) has 2 segments in a sample, but model=roberta tells 1 apart; set"
    ):
        compose(["model=roberta", "objective.pair=nsp"])


# ---------------------------------------------------------------- losses


def models(name, **settings):
    import transformers

    bert = dict(vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**bert, max_position_embeddings=40, **settings)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pair", "labels", "settings"),
    [
        ("BertForPreTraining", "nsp", "next_sentence_label", {}),
        ("AlbertForPreTraining", "sop", "sentence_order_label", {"embedding_size": 16}),
    ],
)
def test_the_loss_and_its_gradient_are_transformers(name, pair, labels, settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "hub"))
    from reference_models import become_gradients, refill, worst

    theirs, made = models(name, **settings), objective("mlm", pair=pair, rate=0.4)
    refill(theirs, seed=3)
    theirs.save_pretrained(tmp_path / "weights")
    assert "objective=mlm_only" not in describe(tmp_path / "weights").overrides
    ours = llmlab.load_hf(tmp_path / "weights", verbose=False)
    batch, _ = batch_of(made)
    assert 0 < batch["pair_labels"].sum() < 6 and not batch["valid"].all()
    loss = made.loss(ours.model.eval(), batch).mean()
    want = theirs(
        input_ids=batch["ids"],
        attention_mask=batch["valid"].long(),
        token_type_ids=batch["segments"],
        labels=batch["labels"],
        **{labels: batch["pair_labels"]},
    ).loss
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss.backward()
    want.backward()
    become_gradients(theirs)
    become_gradients(ours)
    theirs.save_pretrained(tmp_path / "theirs")
    llmlab.save_hf(ours, tmp_path / "ours")
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "theirs"))
    assert one.keys() == other.keys()
    assert max(worst(one[key], other[key]) for key in other) < 2e-5
    assert sum(bool(gradient.abs().max() > 1e-4) for gradient in other.values()) > 0.8 * len(other)


class Scores:
    """A model with these scores."""

    def __init__(self, **scores):
        self.scores = scores

    def __call__(self, batch, heads):
        found = {role: self.scores[role] if at is None else self.scores[role][at] for role, at in heads.items()}
        return Output(torch.zeros(1), found, None)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    made = objective("span_mlm")
    batch = batch_of(made)[0]
    none = {key: torch.full_like(value, -100) if "labels" in key else value for key, value in batch.items()}
    scores = [randn(6, LENGTH, 61).requires_grad_(), randn(6, batch["boundary_left"].shape[1], 61).requires_grad_()]
    loss = made.loss(Scores(tokens=scores[0], boundary=scores[1]), none).mean()
    loss.backward()
    assert loss == 0 and not any(s.grad.any() for s in scores)


TINY = ("size=nano", "model.dim=24", "model.n_heads=3", "model.n_layers=1", "model.vocab_size=61", "kernel=eager")


@pytest.mark.parametrize("words", [("model=bert",), ("model=albert",), ("model=spanbert",)])
def test_flops_are_those_of_a_step(words):
    cfg = compose([*words, *TINY, f"data.seq_len={LENGTH}"])
    model = build.build_model(cfg.spec, 0)
    options = {str(k): v for k, v in cfg.cfg.objective.items() if not str(k).startswith("_")}
    if "pair" in options:
        options["short"] = 0.0
    made = objective(str(cfg.cfg.objective["_part_"]), **options)
    batch, prepared = batch_of(made)
    counter = FlopCounterMode(display=False)
    with counter:
        made.loss(model, batch).mean().backward()
    told = cost.estimate({cost.TRAINED: model}, made, Listed(samples()))
    rows = sum(p.heads["tokens"] for sample in prepared for p in cost.passes(made, sample))
    assert rows == (batch["labels"] >= 0).sum()
    assert told.flops_per_token * LENGTH * 6 == pytest.approx(counter.get_total_flops(), rel=0.01)


class Listed(list):
    documents, seq_len = False, LENGTH

    def spread(self, n):
        return list(range(n))

    @property
    def tokens_per_sample(self):
        return float(LENGTH)
