"""Objectives over records: the same loss and gradients as transformers, their cost, negatives of other ranks, weak labels."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llmlab
from llmlab import registry
from llmlab.check import learning
from llmlab.check.subject import Case, Subject
from llmlab.data import collate, stand_in
from llmlab.slots import Output, Vocabulary
from llmlab.training import cost
from llmlab.training.gathered import Gathered

VOCABULARY = Vocabulary(61, {"eos": 1, "pad": 0, "cls": 2, "sep": 3, "mask": 4})
FAST = ("multiple_choice",)
SLOW = ("classify", "token_classify", "qa_span", "seq2seq", "seq2seq_decoder", "contrastive", "contrastive_margin")


def objective(name, **options):
    return registry.load("objective", name, options)(VOCABULARY, 24)


# ---------------------------------------------------------------- transformers

BERT = dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44,
            max_position_embeddings=40)  # fmt: skip
T5 = dict(
    vocab_size=61, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0
)


def tokens(*shape):
    return torch.randint(5, 61, shape, generator=torch.Generator().manual_seed(sum(shape)))


IDS, KINDS = tokens(4, 16), (torch.arange(16) > 6).long().expand(4, -1).contiguous()
VALID = torch.ones(4, 16, dtype=torch.bool)
WORDS = torch.where(IDS % 3 > 0, IDS % 3, -100)
SPAN, CLASSES, RIGHT = (
    torch.tensor([[7, 9], [8, 8], [0, 0], [10, 15]]),
    torch.tensor([0, 2, 1, 2]),
    torch.tensor([1, 0]),
)
TARGET = torch.cat([tokens(4, 6), torch.ones(4, 1, dtype=torch.long)], 1)
ROWS = {"row_ids": IDS.view(2, 2, 16), "row_segments": KINDS.view(2, 2, 16), "row_valid": VALID.view(2, 2, 16)}
OURS = {"ids": IDS, "segments": KINDS, "valid": VALID}
THEIRS = {"input_ids": IDS, "token_type_ids": KINDS, "attention_mask": VALID.long()}
CASES = {
    "classify": ("BertForSequenceClassification", OURS | {"labels": CLASSES}, THEIRS | {"labels": CLASSES}),
    "token_classify": ("BertForTokenClassification", OURS | {"labels": WORDS}, THEIRS | {"labels": WORDS}),
    "qa_span": (
        "BertForQuestionAnswering",
        OURS | {"span": SPAN},
        THEIRS | {"start_positions": SPAN[:, 0], "end_positions": SPAN[:, 1]},
    ),
    "multiple_choice": (
        "BertForMultipleChoice",
        ROWS | {"answer": RIGHT},
        {name: value.view(2, 2, 16) for name, value in THEIRS.items()} | {"labels": RIGHT},
    ),
    "seq2seq": (
        "T5ForConditionalGeneration",
        {
            "source_ids": IDS,
            "source_valid": VALID,
            "ids": torch.cat([torch.zeros_like(TARGET[:, :1]), TARGET[:, :-1]], 1),
            "labels": TARGET,
        },
        {"input_ids": IDS, "labels": TARGET},
    ),
}


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_transformers(name, tmp_path):
    import transformers

    architecture, batch, given = CASES[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    settings = dict(T5) if name == "seq2seq" else dict(BERT, attn_implementation="eager")
    settings["num_labels"] = {"multiple_choice": 1, "qa_span": 2}.get(name, 3)
    reference = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    saved = tmp_path / "weights"
    reference.save_pretrained(saved)
    if name == "multiple_choice":  # the same tensors: a classifier of one class
        config = (saved / "config.json").read_text()
        (saved / "config.json").write_text(config.replace("MultipleChoice", "SequenceClassification"))
    loaded = llmlab.load_hf(saved, verbose=False)
    model = loaded.model
    if name == "multiple_choice":
        model.heads["scalar"] = model.heads["classes"]
    want, loss = reference(**given).loss, objective(name).loss(model, batch).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    want.backward()
    loss.backward()
    if name == "multiple_choice":
        del model.heads["scalar"]
    with torch.no_grad():
        for parameter in [*reference.parameters(), *loaded.parameters()]:
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    reference.save_pretrained(tmp_path / "theirs")
    llmlab.save_hf(loaded, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    for key, gradient in theirs.items():
        assert torch.allclose(ours[key], gradient, rtol=1e-4, atol=2e-6), key
    assert max(float(g.abs().max()) for g in theirs.values()) > 1e-2


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_its_flops_are_those_of_the_real_loss(name):
    family = {"seq2seq": "t5", "seq2seq_decoder": "llama3"}.get(name, "bert")
    # The eager kernel computes the pairs that a mask hides, as the dense count has them.
    words = (
        f"model={family}",
        f"objective={name}",
        "kernel=eager",
        "model.dim=32",
        "model.n_layers=2",
        "model.n_heads=2",
    )
    subject = Subject(Case(name, words))
    made, model = learning.build_objective(subject), subject.fresh().train()
    samples = stand_in.StandIns(made, 4, 16, 40)
    counted = cost.estimate({"model": model}, made, samples)
    with FlopCounterMode(display=False) as counter:
        for i in range(4):
            prepared = made.prepare(samples[i], np.random.default_rng(i))
            batch = collate.batch([prepared], "pad" if name != "contrastive" else "stack", most=1)
            made.loss(model, batch).mean().backward()
    assert counted.dense * 16 * 4 == pytest.approx(counter.get_total_flops(), rel=0.01)


# ---------------------------------------------------------------- negatives of other ranks


class Vectors(nn.Module):
    """Hidden states that are rows of a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(61, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, batch, heads=None):
        return Output(self.table[batch["ids"]], {}, None)


class Projecting(Vectors):
    """The same with a head."""

    def forward(self, batch, heads=None):
        output = super().forward(batch)
        return output._replace(heads={role: torch.tanh(output.hidden[:, 0] * 3 - 1) for role in heads})


def test_the_mlp_stays_behind_after_training_where_a_text_is_its_own_like():
    alike, of_pairs = (objective("contrastive", mlp=True, positives=kind) for kind in ("dropout", "pairs"))
    text = {"ids": tokens(4, 5)}
    two = collate.batch([of_pairs.prepare(sample, None) for sample in pairs(4)], "pad")

    def value(made, batch, model, training):
        return made.loss(model.train(training), batch).mean().item()

    for made, batch, stays in ((alike, text, False), (of_pairs, two, True)):
        with_it, without = (value(made, batch, Projecting(), training) for training in (True, False))
        plain = objective("contrastive", positives="pairs" if stays else "dropout")
        assert value(plain, batch, Projecting(), True) != pytest.approx(with_it)
        assert without == pytest.approx(with_it if stays else value(plain, batch, Projecting(), False))


class Ranks:
    """Sums over ranks that are threads of this process."""

    def __init__(self, n):
        self.barrier, self.given = threading.Barrier(n), [None] * n

    def total(self, rank):
        def summed(tensor):
            self.given[rank] = tensor
            self.barrier.wait()
            found = torch.stack([t.detach() for t in self.given]).sum(0)
            self.barrier.wait()
            return found

        return summed


def pairs(n):
    """Records of two similar texts, every other one with a negative."""
    chance = np.random.default_rng(0)
    rows = lambda i: [chance.integers(5, 61, 3) for _ in range(2 + i % 2)]  # noqa: E731
    return [{"rows": rows(i)} for i in range(n)]


def test_two_ranks_have_the_loss_and_gradient_of_one():
    made, model = objective("contrastive", positives="pairs", temperature=0.5, pool="mean"), Vectors().train()
    prepared = [made.prepare(sample, None) for sample in pairs(6)]
    whole = made.loss(model, collate.batch(prepared, "pad"))
    whole.mean().backward()
    ranks, found = Ranks(2), [None, None]

    def train(rank):
        mine, own = Vectors().train(), objective("contrastive", positives="pairs", temperature=0.5, pool="mean")
        own.gather = lambda rows: (Gathered.apply(rows, rank, 2, ranks.total(rank)), rank * len(rows))
        # The first rank's records have no negative at all.
        share = [prepared[i] for i in ((0, 2, 4), (1, 3, 5))[rank]]
        loss = own.loss(mine, collate.batch(share, "pad"))
        (loss.terms["contrast"][0] / 6).backward()
        found[rank] = (float(loss.terms["contrast"][0].detach()), mine.table.grad)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found[0][0] + found[1][0] == pytest.approx(float(whole.terms["contrast"][0].detach()), rel=1e-6)
    assert torch.allclose(found[0][1] + found[1][1], model.table.grad, atol=1e-6)
    with torch.no_grad():
        alone = [made.loss(model, collate.batch(prepared[i::2], "pad")).terms["contrast"][0] for i in (0, 1)]
    assert float(sum(alone)) < found[0][0] + found[1][0] - 1, "fewer negatives"


# ---------------------------------------------------------------- weak labels


def test_a_confidence_weighs_a_record_and_not_the_others():
    made, labels = objective("classify"), torch.tensor([0, 1, 1])
    scores = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    model = lambda batch, heads: Output(torch.zeros(1), {"classes": scores}, None)  # noqa: E731
    each = nn.functional.cross_entropy(scores, labels, reduction="none")
    loss = made.loss(model, {"labels": labels, "confidence": torch.tensor([1.0, 0.5, 0.0])})
    assert loss.mean().item() == pytest.approx((each[0] + each[1] / 2).item() / 3)
    assert loss.terms["nll"][1] == 3 == loss.logs["accuracy"][1]
    nobody = made.loss(model, {"labels": labels, "confidence": torch.zeros(3)})
    assert nobody.mean() == 0


def test_sequences_of_a_sample_are_padded_and_so_are_pieces_of_a_batch():
    made = objective("multiple_choice")
    prepared = [
        made.prepare(sample, None) | {"answer": np.asarray(1)} for sample in ({**p, "answer": 1} for p in pairs(4))
    ]
    batch = collate.batch(prepared, "pad", pad=9)
    assert batch["row_ids"].shape == (4, 3, 8) == batch["row_valid"].shape
    assert batch["row_valid"].sum(-1).tolist() == [[3, 3, 3 * (i % 2)] for i in range(4)]
    assert (batch["row_ids"][~batch["row_valid"]] == 9).all()
    # As `llmlab plan` makes one micro-batch of another.
    pieces = [{name: value[i].numpy() for name, value in batch.items()} for i in range(4)]
    assert torch.equal(collate.batch(pieces, "pad")["row_ids"], batch["row_ids"])
