"""skipgram, cbow and glove in a model: what they run and learn, their cost, and that tokens of one kind come together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.config.compose import compose
from llmlab.config.layout import resolve
from llmlab.data.collate import batch as collated
from llmlab.data.corpus import Corpus
from llmlab.model.build import build_model
from llmlab.model.flops import forward_flops, training_flops_per_token
from llmlab.runs import vectors
from llmlab.slots import Vocabulary
from llmlab.training import cost, recipe

WORDS, LENGTH = 16, 12
SIZES = (
    "model.dim=16",
    "model.n_layers=1",
    "model.n_heads=2",
    f"model.vocab_size={WORDS}",
    f"model.max_positions={LENGTH}",
)
NAMES = ["skipgram", "cbow", "glove"]
OPTIONS = {"glove": {"window": 2}}


@pytest.fixture(scope="module")
def models():
    composed = {name: compose([f"objective={name}", *SIZES]) for name in NAMES}
    return {name: (c, build_model(resolve(c), 1)) for name, c in composed.items()}


def objective(name, **options):
    return registry.load("objective", name, options)(Vocabulary(WORDS, {"eos": 0}, pairs=counted), LENGTH)


def counted(window):
    """Of words of one kind 9 a pair, of others a quarter."""
    return lambda a, b: np.where((a < 9) == (b < 9), 9, 0.25).astype(np.float32)


def batch(part, rows):
    samples = [part.prepare({"tokens": row}, np.random.default_rng(i)) for i, row in enumerate(rows)]
    return samples, collated(samples, "stack")


def topics(n):
    """Texts of words of one kind each: 2 to 8, or 9 to 15."""
    rng = np.random.default_rng(0)
    return [rng.integers(2, 9, LENGTH + 1) + 7 * (i % 2) for i in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_runs_and_the_tables_alone_learn(name, models):
    composed, model = models[name]
    part = objective(name, **OPTIONS.get(name, {"subsample": 0.0, "window": 2, "negatives": 3}))
    samples, made = batch(part, topics(4))
    calls = []
    handle = model.stacks["main"].register_forward_hook(lambda *_: calls.append(1))
    with FlopCounterMode(display=False) as counter:
        loss = part.loss(model, made)
    handle.remove()
    assert not calls
    length = len(made["ids"][0])
    assert forward_flops(model, length, heads={"context": 1.0}) * 4 == counter.get_total_flops() > 0
    recipe.learning(composed.cfg).apply(model)
    with counter:
        part.loss(model, made).mean().backward()
    per_token = training_flops_per_token(model, length, heads={"context": 1.0})
    assert counter.get_total_flops() == pytest.approx(per_token * length * 4, rel=0.01)
    (only,) = cost.passes(part, samples[0])
    assert (only.tokens, dict(only.heads)) == (length, {"context": None})
    model.zero_grad()
    loss.mean().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == recipe.learning(composed.cfg).paths(model)
    biases = {"heads.context.bias", "heads.context.context_bias"} if name == "glove" else set()
    assert reached == {"heads.context.table.weight", "stacks.main.embedding.table.weight", *biases}
    (term,) = loss.terms
    halves = [part.loss(model, {k: v[at : at + 2] for k, v in made.items()}).terms[term] for at in (0, 2)]
    whole = loss.terms[term]
    assert sum(n for _, n in halves) == whole[1]
    torch.testing.assert_close(sum(s for s, _ in halves), whole[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_words_has_no_loss(name, models):
    part, (_, model) = objective(name), models[name]
    samples, made = batch(part, [np.zeros(LENGTH + 1, np.int64)])
    loss = part.loss(model, made)
    model.zero_grad()
    loss.mean().backward()
    assert list(part.targets(samples[0]).values()) == [0] and loss.mean() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_words_of_one_kind_come_together(name):
    model = build_model(resolve(compose([f"objective={name}", *SIZES])), 1)
    part = objective(name, **({} if name == "glove" else {"subsample": 0.0, "window": 3, "negatives": 4}))
    # Of words that are never near each other glove learns nothing, so some texts have both kinds.
    rows = topics(32) if name != "glove" else [np.random.default_rng(i).integers(2, 16, LENGTH + 1) for i in range(32)]
    _, made = batch(part, rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        part.loss(model, made).mean().backward()
        optimizer.step()
    table = vectors.of_model(model, part)[2:16]
    near = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
    assert min(near[:7, :7].min(), near[7:, 7:].min()) > near[:7, 7:].max()


def test_counts_are_those_of_the_training_part():
    tokens = np.array([3, 1, 1, 0], np.uint16)
    corpus = Corpus(None, {"vocab_size": 5, "special": {"eos": 0}}, SimpleNamespace(tokens=tokens), None)
    assert corpus.vocabulary.counts().tolist() == [1, 2, 0, 1, 0]
    part = registry.load("objective", "skipgram", {"power": 1.0})(corpus.vocabulary, 4)
    assert np.allclose(np.diff(part.noise, prepend=0), [0, 2 / 3, 0, 1 / 3, 0])
    assert np.allclose(part.kept[[1, 3]], np.sqrt(1e-3 / np.array([2 / 3, 1 / 3])))


def test_over_an_epoch_glove_has_its_papers_loss(models):
    """Equation 8 over the table of pairs, of texts that are a sample each."""
    rng = np.random.default_rng(2)
    rows = [np.append(rng.integers(1, 6, LENGTH - 1), [0, 0]) for _ in range(3)]
    times = np.zeros((WORDS, WORDS))
    for row in rows:
        for i, j in np.ndindex(LENGTH - 1, LENGTH - 1):
            times[row[i], row[j]] += 1 / abs(i - j) if 0 < abs(i - j) <= 4 else 0
    known = Vocabulary(WORDS, {"eos": 0}, pairs=lambda window: lambda a, b: times[a, b].astype(np.float32))
    part, model = registry.load("objective", "glove", {"window": 4, "x_max": 3.0})(known, LENGTH), models["glove"][1]
    _, made = batch(part, rows)
    loss, count = part.loss(model, made).terms["pairs"]
    head, table = model.heads["context"], model.stacks["main"].embedding.weight
    scores = table @ head.table.weight.T + head.context_bias[:, None] + head.bias
    there = torch.from_numpy(times) > 0
    error = (scores - torch.from_numpy(times).log())[there] ** 2
    want = ((torch.from_numpy(times) / 3).clamp(max=1) ** 0.75)[there] @ error.double()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    assert count == sum(2 * min(4, LENGTH - 2 - i) for _ in rows for i in range(LENGTH - 1))


# Of gensim 4.4.0: compute_ngrams_bytes and ft_hash_bytes, which are fastText's, signed bytes included.
HASHES = {
    ("cat", 3, 6): {
        "<ca": 1066916747, "<cat": 453988973, "<cat>": 3961428137, "cat": 108289031, "cat>": 1647127995, "at>": 3848351106,
    },
    ("日本", 3, 6): {"<日本": 3018758587, "<日本>": 3315313759, "日本>": 778196157},
    ("a", 3, 6): {"<a>": 2359087600},
    ("ab", 1, 2): {"<a": 1761008750, "a": 3826002220, "ab": 1294271946, "b": 3876335077, "b>": 2469146561},
    ("ïve", 3, 4): {
        "<ïv": 1943338633, "<ïve": 1145916804, "ïve": 1813711570, "ïve>": 445788548, "ve>": 3325088654,
    },
}  # fmt: skip


@pytest.mark.parametrize(("word", "shortest", "longest"), HASHES)
def test_ngrams_are_hashed_as_by_gensim(word, shortest, longest):
    known = Vocabulary(2, {}, text=lambda i: ["", f" {word} "][i])
    want = list(HASHES[word, shortest, longest].values())
    part = registry.load("objective", "fasttext", {"ngrams": (shortest, longest)})(known, LENGTH)
    found = part.subwords.of(np.array([[0], [1], [-1]]))
    assert found[1].tolist() == want and (found[[0, 2]] == -1).all()


def test_words_out_of_the_vocabulary_have_vectors():
    model = build_model(resolve(compose(["objective=fasttext", *SIZES, "heads.context.buckets=50"])), 1)
    names = ["", "cat", " cat", " dog", *map(str, range(4, WORDS))]
    part = registry.load("objective", "fasttext", {})(Vocabulary(WORDS, {"eos": 0}, text=lambda i: names[i]), LENGTH)
    table, head = vectors.of_model(model, part), model.heads["context"]
    own = head.words.weight.detach()
    assert torch.equal(table[0], own[0])  # of no letters there are no n-grams
    grams = head.grams.weight.detach()[[h % 50 for h in HASHES["cat", 3, 6].values()]]
    torch.testing.assert_close(table[2], torch.cat([own[[2]], grams]).mean(0))
    spelt = part.spelled(model, ["cat", "cats", "dog"])
    torch.testing.assert_close(spelt[[0, 2]], table[[2, 3]])
    shared = [h % 50 for h in part.subwords.hashes("cats")]
    torch.testing.assert_close(spelt[1], head.grams.weight.detach()[shared].mean(0))
    assert registry.load("objective", "skipgram", {})(Vocabulary(WORDS, {}), LENGTH).spelled is None


@pytest.mark.slow  # it traces a step of the model, once for each strategy
def test_a_plan_has_no_layers_in_its_step(capsys):
    from llmlab.commands import plan

    assert plan.main(["objective=cbow", *SIZES, f"data.seq_len={LENGTH}", "device=h100", "--json"]) == 0
    assert '"trainable": 512' in capsys.readouterr().out
