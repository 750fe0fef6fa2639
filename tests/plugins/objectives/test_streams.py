"""Objectives with a second stream: their models see what the papers say, cost what is counted, and equal transformers'."""

import numpy as np
import pytest
import torch
from families import build, mostly_slow, spec, tiny
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import llmlab
from llmlab import registry
from llmlab.check.parts import targets
from llmlab.check.subject import Case, CheckFailed, Subject
from llmlab.data import collate
from llmlab.errors import UserError
from llmlab.slots import Pass, Vocabulary
from llmlab.training.cost import estimate
from llmlab_plugins.mask.direction import Permutation

LENGTH, SIZE, ROWS = 12, 61, 2
VOCABULARY = Vocabulary(SIZE, {"mask": SIZE - 1, "eos": SIZE - 2})
SETTINGS = {
    "plm": ("plm", {"one_in": 3}),
    "plm of all": ("plm", {"one_in": 1}),
    "plm behind a memory": ("plm", {"one_in": 2, "memory": 5}),
    "mpnet": ("mpnet", {"rate": 0.4, "masked": 1.0, "random": 0.0}),
}
QUICK = ("plm behind a memory", "mpnet")
FAMILY = {"plm": "xlnet", "mpnet": "mpnet"}
DOCUMENTS = np.arange(LENGTH + 1) // 4


def objective(name, options, length=LENGTH):
    return registry.load("objective", name, options)(VOCABULARY, length)


def samples(made, documents=None, rows=ROWS, tokens=None):
    """Prepared samples of distinct tokens."""
    rng, found = np.random.default_rng(0), []
    for _ in range(rows):
        text = rng.permutation(SIZE - 2)[: made.seq_len + 1] if tokens is None else tokens
        found.append(made.prepare({"tokens": text, "documents": documents}, np.random.default_rng(1)))
    return found


def batch_of(made, **how):
    return collate.batch(samples(made, **how), "stack")


def test_half_of_the_windows_are_read_from_their_ends():
    made, rng = objective("plm", {"backwards": 0.5, "memory": 3}), np.random.default_rng(0)
    text, given = np.arange(LENGTH + 1), np.arange(LENGTH + 1) < 4
    sample = {"tokens": text, "given": given, "documents": DOCUMENTS}
    drawn = [made.prepare(sample, rng) for _ in range(400)]
    read = [tuple(np.append(one["before_ids"], one["ids"][: LENGTH - 3]).tolist()) for one in drawn]
    ways = (tuple(range(LENGTH)), tuple(range(LENGTH))[::-1])
    assert set(read) == set(ways) and abs(read.count(ways[1]) - 200) < 50  # five deviations
    assert all(given[label] == 0 for one in drawn for label in one["labels"] if label >= 0)
    assert all((DOCUMENTS[one["ids"][: LENGTH - 3]] == one["documents"][: LENGTH - 3]).all() for one in drawn)


class Watching:
    """A model that keeps the scores that its heads gave."""

    def __init__(self, model):
        self.model = model

    def __call__(self, batch, heads=None, memory=None):
        output = self.model(batch, heads=heads, memory=memory)
        self.scores = output.heads.get("tokens")
        return output


@pytest.mark.parametrize(
    "documents", [pytest.param(None, marks=pytest.mark.slow), DOCUMENTS], ids=["one text", "documents"]
)
@pytest.mark.parametrize("name", mostly_slow(SETTINGS, QUICK))
@torch.no_grad()
def test_a_target_is_predicted_from_what_comes_before_it_in_its_document(name, documents):
    """Each token of the sample is changed, and what changes with it is compared with the order."""
    part, options = SETTINGS[name]
    made = objective(part, options)
    model = Watching(build(*tiny(FAMILY[part], f"objective={part}")))
    batch = batch_of(made, documents=documents, rows=1)
    m, length = options.get("memory", 0), LENGTH - options.get("memory", 0)
    made.loss(model, batch)
    before, rank = model.scores, batch["rank"][0, :length]
    order = rank.argsort()[(rank == 0).sum() :] + m
    assert torch.isfinite(before).all() and len(before) == len(order) == made.n_queries
    assert batch["labels"][batch["labels"] != -100].tolist() == batch["ids"][0, order - m].tolist()
    for token in range(LENGTH):
        key, at = ("before_ids", token) if token < m else ("ids", token - m)
        changed = batch[key].clone()
        changed[0, at] = (changed[0, at] + 1) % (SIZE - 2)
        made.loss(model, {**batch, key: changed})
        moved = (model.scores - before).abs().amax(-1) > 1e-6
        place = order.tolist().index(token) if token in order else -1  # what is no target comes before all
        together = torch.ones(len(order)) if documents is None else torch.tensor(documents[order] == documents[token])
        assert moved.tolist() == ((torch.arange(len(order)) > place) & together.bool()).tolist(), token


def test_a_text_without_targets_gives_zero_and_no_gradient():
    for part, options in SETTINGS.values():
        made, model = objective(part, options), build(*tiny(FAMILY[part], f"objective={part}"))
        batch = batch_of(made, tokens=np.full(LENGTH + 1, SIZE - 2), documents=DOCUMENTS)
        loss = made.loss(model, batch).mean()
        loss.backward()
        assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters()), part


def test_tokens_that_are_given_or_special_are_no_targets():
    for part, options in SETTINGS.values():
        tokens = np.array([5, SIZE - 2, 6, 7, 8, 9, 10, SIZE - 1, 11, 12, 13, 14, 15])
        sample = {"tokens": tokens, "given": np.arange(13) < 4}
        for seed in range(20):
            prepared = objective(part, options).prepare(sample, np.random.default_rng(seed))
            assert set(prepared["labels"]) <= {-100, 8, 9, 10, 11, 12, 13, 14}


def test_targets_that_see_each_other_are_found_by_the_check(monkeypatch):
    """Each query is shown all of the text but its own token, so that in no order one comes before the other."""
    words = tiny("xlnet", "objective=plm", "model.max_positions=24", "model.n_layers=1")
    subject = Subject(Case("plm", words, "part", parts=(("objective", "plm"),)))
    targets.hidden(subject)

    def allowed(self, q, k, data):
        text = ~data["queries"][:, None, k[0]]
        return text & (data["rank"][:, None, k[0]] != data["rank"][:, q[:, 0], None]) | (q == k)

    monkeypatch.setattr(Permutation, "allowed", allowed)
    with pytest.raises(CheckFailed, match="targets see answers of targets that see theirs"):
        targets.hidden(subject)


class Texts:
    """As many samples as are asked for."""

    documents, tokens_per_sample = False, float(LENGTH)

    def __len__(self):
        return 1

    def spread(self, n):
        return list(range(n))

    def __getitem__(self, i):
        return {"tokens": np.arange(LENGTH + 1)}


@pytest.mark.parametrize("name", mostly_slow([n for n in SETTINGS if n != "plm of all"], QUICK))
def test_the_cost_is_what_torch_counts(name):
    part, options = SETTINGS[name]
    made = objective(part, options)
    model = build(
        *tiny(FAMILY[part], f"objective={part}", "kernel=eager", "model.dim=64", "model.max_positions=12"), wake=False
    )
    with (counter := FlopCounterMode(display=False)):
        made.loss(model, batch_of(made, rows=1)).mean().backward()
    cost = estimate({"model": model}, made, Texts())
    assert cost.dense * LENGTH == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert not cost.sources  # all of it could be run, though there are more tokens than positions


def test_pairs_are_those_of_the_order():
    """n tokens that all see, and P targets: n^2 pairs, and for each target and its query 2 n and its place in the order."""
    made, model = objective("plm", {"one_in": 3}), build(*tiny("xlnet", "objective=plm"), wake=False)
    cost, n, p = estimate({"model": model}, made, Texts()), 8, 4
    hidden = (n + 2 * p) ** 2 - (n * n + 2 * p * n + p * p)
    width = sum(layer.attention.pair_width for layer in model.stacks["main"].layers)
    assert (cost.dense - cost.flops_per_token) * LENGTH == pytest.approx(3 * 2 * hidden * width)
    assert made.passes(samples(made)[0]) == [Pass(16, heads={"tokens": 4}, places=12)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("mask=bidirectional",),
            "objective=plm can't be trained under mask=bidirectional, which would let text see queries",
        ),
        (
            ("mask=compensated",),
            "mask=compensated reads placeholders of each sample, which objective=plm does not give",
        ),
        (("model=t5",), "objective=plm trains encoder or decoder models, but model=t5 is an encoder-decoder; choose "),
    ],
)
def test_what_does_not_fit_is_refused(words, line):
    with pytest.raises(UserError, match=line):
        spec("objective=plm", *words)


# ---------------------------------------------------------------- transformers


@torch.no_grad()
def refill(model):
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.25)


@torch.no_grad()
def assert_gradients(reference, ours, folder):
    """As files: both write their gradients where the weights were."""
    for model, to in ((reference, "theirs"), (ours, "ours")):
        for p in model.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        model.save_pretrained(folder / to) if to == "theirs" else llmlab.save_hf(model, folder / to)
    want, got = (load_file(folder / n / "model.safetensors") for n in ("theirs", "ours"))
    assert set(got) == set(want) and sum(g.abs().max() > 1e-5 for g in want.values()) > 0.7 * len(want)
    for n, gradient in want.items():
        torch.testing.assert_close(got[n], gradient, rtol=1e-3, atol=2e-6, msg=n)


def trained_by(folder, mask):
    """A checkpoint, to be trained under a mask."""
    ours = llmlab.load_hf(folder, verbose=False)
    ours.model.stacks["main"].mask = registry.load("mask", mask, {})()
    return ours


def hidden(rank):
    """transformers' perm_mask: 1 where a token, or its query, does not see another. Its content stream sees itself anyway."""
    return ((rank[:, None] >= rank[:, :, None]) & (rank > 0)[:, None]).float()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"one_in": 3}, {"one_in": 1, "memory": 5}], ids=["partial", "behind a memory"])
def test_loss_and_gradient_are_xlnets(options, tmp_path):
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNetConfig(vocab_size=SIZE, d_model=30, n_layer=2, n_head=5, d_inner=44, mem_len=None)
    reference = XLNetLMHeadModel(config).eval()
    refill(reference)
    reference.save_pretrained(tmp_path / "weights")
    made, ours = objective("plm", options), trained_by(tmp_path / "weights", "permutation")
    batch = batch_of(made, rows=3)
    length = LENGTH - made.memory
    rank, mems = batch["rank"][:, :length], None
    if made.memory:
        with torch.no_grad():
            mask = hidden(batch["before_rank"])
            mems = reference(input_ids=batch["before_ids"], perm_mask=mask, use_mems=True).mems
    where = batch["positions"][:, length:] - made.memory
    theirs = reference(
        input_ids=batch["ids"][:, :length],
        perm_mask=hidden(rank),
        target_mapping=torch.nn.functional.one_hot(where, length).float(),
        labels=batch["labels"][:, length:].contiguous(),
        mems=mems,
    )
    theirs.loss.backward()
    loss = made.loss(ours.model, batch).mean()
    loss.backward()
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)
    assert_gradients(reference, ours, tmp_path)


@pytest.mark.slow
def test_with_one_target_loss_and_gradient_are_those_of_masked_mpnet(tmp_path):
    """A query then sees what its placeholder sees, which is the mask token of a masked text."""
    from transformers import MPNetConfig, MPNetForMaskedLM

    sizes = dict(hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44)
    reference = MPNetForMaskedLM(MPNetConfig(vocab_size=SIZE, max_position_embeddings=40, **sizes)).eval()
    refill(reference)
    reference.save_pretrained(tmp_path / "weights")
    made = objective("mpnet", {"rate": 0.01, "masked": 1.0, "random": 0.0})
    ours, batch = trained_by(tmp_path / "weights", "compensated"), batch_of(made, rows=3)
    where = torch.arange(LENGTH) == batch["positions"][:, -1:]
    text = batch["ids"][:, :LENGTH].clamp(min=2)  # 1 is padding to it
    batch["ids"][:, :LENGTH] = text
    labels = torch.where(where, text, -100)
    batch["labels"][:, -1] = text[where]
    theirs = reference(input_ids=text.masked_fill(where, SIZE - 1), labels=labels)
    theirs.loss.backward()
    loss = made.loss(ours.model, batch).mean()
    loss.backward()
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)
    assert_gradients(reference, ours, tmp_path)
