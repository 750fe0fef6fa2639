"""A key of a batch that nothing reads changes nothing: it is refused in training and eval, and misspelt in a direct call."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import llmlab
from llmlab import registry
from llmlab.data import collate
from llmlab.errors import UserError
from llmlab.model import batch_keys
from llmlab.model.batch_keys import Watched
from llmlab.slots import Vocabulary
from llmlab.training.feeds import Feed
from llmlab.training.module import Offline

SMALL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=8", "tokenizer.vocab_size=257"]
IDS = torch.zeros(2, 8, dtype=torch.long)


@pytest.fixture(scope="module")
def model():
    return llmlab.build(SMALL)


def objective(**more):
    """Next tokens, with more keys in each sample."""
    made = registry.load("objective", "clm", {})(Vocabulary(257, {}), 8)
    prepare = made.prepare
    made.prepare = lambda sample, rng: {**prepare(sample, rng), **more}
    return made


def module(model, made):
    found = Offline(model.spec, made, None, None, Feed(), seed=1, horizon=1)
    found.model = model
    found.trainer = SimpleNamespace(accumulate_grad_batches=1, strategy=SimpleNamespace(data_world=1))
    return found


def batch(made):
    rng = np.random.default_rng(0)
    return collate.batch([made.prepare({"tokens": np.arange(9)}, rng) for _ in range(2)], "stack") | {
        "counts": {"nll": torch.tensor(16)}
    }


def test_a_key_that_is_read_by_name_is_known(model):
    model({"ids": IDS, "segments": IDS, "labels": IDS, "chance": IDS, "label": IDS})
    for name, meant in (("segmets", "segments"), ("document", "documents"), ("position", "positions")):
        with pytest.raises(
            ValueError, match=f"the batch has '{name}', which this model does not read; did you mean {meant}"
        ):
            model({"ids": IDS, name: IDS})


def test_training_refuses_what_neither_loss_nor_model_reads(model):
    made = objective(segmets=np.zeros(8, dtype=np.int64))
    with pytest.raises(UserError, match=r"objective=CausalLM: its samples have 'segmets'.*did you mean segments") as e:
        module(model, made).training_step(batch(made), 0)
    assert "\n" not in str(e.value)
    made = objective(source_ids=np.zeros(8, dtype=np.int64))  # of an encoder, which this model has not
    with pytest.raises(UserError, match="its samples have 'source_ids'"):
        module(model, made).training_step(batch(made), 0)


def test_a_measure_of_a_misspelt_name_is_refused(model):
    """It would be just a number: no perplexity, and lower would be better."""
    made = objective()
    for name, kind in (("nl", "bits"), ("nlls", "nll")):
        made.measures = {name: kind}
        with pytest.raises(UserError, match=f"measures has '{name}', but its loss has no such.*did you mean nll") as e:
            module(model, made)._loss(batch(made))
        assert "\n" not in str(e.value)
    made.measures = {"nll": "bits", "reward": "reward"}  # which a validation alone may have
    assert module(model, made)._loss(batch(made)).terms.keys() == {"nll"}


def test_it_is_looked_at_once_and_changes_no_number(model):
    made = objective(documents=np.zeros(8, dtype=np.int64))
    plain, watched = made.loss, []
    made.loss = lambda model, batch: (watched.append(isinstance(batch, Watched)), plain(model, batch))[1]
    trained = module(model, made)
    first, again = trained.training_step(batch(made), 0), trained.training_step(batch(made), 1)
    assert first == again == plain(model, batch(made)).mean()
    assert watched == [True, False]


def test_an_objectives_own_key_may_be_close_to_one_of_the_models():
    made = objective(position=np.zeros(8, dtype=np.int64))
    loss = made.loss
    made.loss = lambda model, batch: (batch["position"], loss(model, batch))[1]
    trained = module(llmlab.build(SMALL), made)
    trained.training_step(batch(made), 0)
    trained.training_step(batch(made) | {"bytes": torch.ones(2)}, 0)


def test_what_is_offered_need_not_be_taken(model):
    made = objective(prefix_len=np.int64(3))
    with pytest.raises(UserError, match="its samples have 'prefix_len'"):
        module(model, made).training_step(batch(made), 0)
    made.gives = ("prefix_len",)
    module(model, made).training_step(batch(made), 0)


def test_every_way_of_reading_counts():
    made = {"a": 1, "b": 2, "c": 3}
    one = Watched(made)
    assert "b" in one
    assert list(one) == ["a", "b", "c"]
    assert one.get("z") is None
    assert one.read == set()
    assert (one["a"], one.get("b")) == (1, 2)
    assert one.read == {"a", "b"}
    rest = one.without(("a", "b"))
    assert dict.keys(rest) == {"c"}
    assert rest["c"] == 3
    assert one.read == {"a", "b", "c"}
    copies = (
        lambda b: {**b, "a": 0},
        dict,
        lambda b: b | {},
        lambda b: dict(b.items()),
        lambda b: b.copy(),
        lambda b: list(b.values()),
    )
    for copied in copies:
        watched = Watched(made)
        copied(watched)
        assert watched.read == {"a", "b", "c"}


def test_all_objectives_read_what_they_prepare():
    """With documents or without, of the family that each trains."""
    families = {"clm": "llama3", "mlm": "bert", "span_corruption": "t5"}
    for name, family in families.items():
        built = llmlab.build(
            [f"model={family}", f"objective={name}", *SMALL[3:], "size=nano", "model.dim=16", "model.n_heads=2"]
        )
        special = {n: 200 + i % 50 for i, n in enumerate(registry.index()["objective", name].special)}
        made = registry.load("objective", name, {})(Vocabulary(257, special), 8)
        rng = np.random.default_rng(0)
        for documents in (None, np.zeros(9, dtype=np.int64)):
            samples = [made.prepare({"tokens": np.arange(9), "documents": documents}, rng) for _ in range(2)]
            watched = Watched(collate.batch(samples, "stack"))
            made.loss(built, watched)
            batch_keys.check(watched, made)
