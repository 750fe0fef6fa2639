"""rtd and replace_mlm beside transformers' classes for both halves of ELECTRA, and their cost beside torch's counter."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.config.compose import compose
from llmlab.data import stand_in
from llmlab.model import build
from llmlab.model.model import Shared
from llmlab.slots import Vocabulary
from llmlab.training import companions, cost

LENGTH, ROWS, SIZE, MASK = 24, 3, 61, 4


def objective(name="rtd", **options):
    return registry.load("objective", name, options)(Vocabulary(SIZE, {"pad": 0, "mask": MASK}), LENGTH)


def batch(of):
    rows = np.random.default_rng(1).integers(5, SIZE, size=(ROWS, LENGTH + 1))
    return stand_in.batch(of, rows, np.random.default_rng(2))


def small(*words):
    """(model, its generator) with first values."""
    composed = compose(
        ["model=electra", "model.dim=32", "model.n_layers=2", "model.vocab_size=61", "kernel=eager", *words]
    )
    model = build.build_model(composed.spec)
    (companion,) = companions.resolve(composed, model, None).values()
    generator = companion.assemble(model)
    build.materialise(generator)
    companion.fill(generator, 1)
    return model, generator


@pytest.mark.parametrize(
    ("name", "options"), [("rtd", {}), ("rtd", {"on": "masked"}), ("replace_mlm", {}), ("all_tokens_mlm", {})]
)
def test_the_cost_of_a_step_is_torchs(name, options):
    made = objective(name, **options)
    model, generator = small(f"objective={name}", *(f"objective.{k}={v}" for k, v in options.items()))
    data, models = batch(made), {"model": model, "generator": generator}
    with FlopCounterMode(display=False) as counter:
        made.loss(model, data, generator=generator).mean().backward()
    rows = [made.prepare({"tokens": row}, np.random.default_rng(0)) for row in data["ids"].numpy()]
    told = cost.estimate(models, made, stand_in.StandIns(made, 1, LENGTH, SIZE))
    assert len(rows) * told.dense * LENGTH == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_batch_without_targets_trains_the_discriminator_alone():
    made = objective()
    model, generator = small()
    none = made.prepare({"tokens": np.full(LENGTH + 1, MASK)}, np.random.default_rng(0))
    loss = made.loss(model, {k: torch.from_numpy(v)[None] for k, v in none.items()}, generator=generator)
    assert loss.terms["generator"] == (0, 0) and loss.logs["found"] == (0, 0)
    assert made.targets(none) == {"generator": 0, "replaced": LENGTH}
    loss.mean().backward()
    assert all(torch.isfinite(p.grad).all() and not p.grad.any() for p in generator.parameters() if p.grad is not None)
    assert model.heads["replaced"].out.weight.grad.any()


def test_each_token_is_drawn_as_often_as_its_probability():
    from llmlab_plugins.objective._generated import drawn

    logits, n = torch.tensor([0.0, 2.0, -1.0, 1.0]), 20_000
    ids = drawn(logits.expand(n, 4), (torch.arange(n) + 0.5) / n)
    torch.testing.assert_close(ids.bincount(minlength=4) / n, logits.softmax(-1), rtol=0, atol=1e-4)
    assert drawn(logits[None].repeat(2, 1), torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)).tolist() == [0, 3]


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_transformers_halves(transformers, tmp_path):
    """Without padding: its loss of the discriminator averages over all that attention_mask lets be seen."""
    from llmlab.hub.load import load_hf

    sizes = dict(vocab_size=SIZE, embedding_size=12, num_hidden_layers=2, max_position_embeddings=32)
    sizes |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2)
    torch.manual_seed(0)
    wide, narrow = (
        transformers.ElectraConfig(hidden_size=n, num_attention_heads=n // 8, intermediate_size=4 * n, **sizes)
        for n in (32, 16)
    )
    theirs = transformers.ElectraForPreTraining(wide), transformers.ElectraForMaskedLM(narrow)
    tables = [half.electra.embeddings for half in theirs]
    tables[1].word_embeddings.weight = tables[0].word_embeddings.weight
    tables[1].position_embeddings.weight = tables[0].position_embeddings.weight
    theirs[1].tie_weights()

    def ours(half, number):
        half.save_pretrained(tmp_path / str(number))
        return load_hf(tmp_path / str(number), verbose=False).model

    model, whole = (ours(half.eval(), i) for i, half in enumerate(theirs))
    first = model.all_stacks()[0]
    generator = build.assemble(whole.spec, Shared(first.embedding, first.position_at(0))).eval()
    build.materialise(generator)
    build.load(generator, {name: whole.state_dict()[name] for name in generator.state_dict()})

    made, read = objective(), []
    data = batch(made)
    model.register_forward_pre_hook(lambda _, given: read.append(given[0]["ids"]))
    loss = made.loss(model, data, generator=generator)
    loss.mean().backward()

    masked = theirs[1](input_ids=data["ids"], labels=data["labels"]).loss
    text = torch.where(data["labels"] >= 0, data["labels"], data["ids"])
    told = theirs[0](input_ids=read[0], attention_mask=torch.ones_like(text), labels=(read[0] != text).long()).loss
    assert (read[0] != text).any()
    total = masked + 50 * told
    total.backward()
    for name, want in (("generator", masked), ("replaced", told)):
        value, count = loss.terms[name]
        torch.testing.assert_close(value / count, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.mean(), total, rtol=1e-6, atol=0)
    for i, (half, mine) in enumerate(zip(theirs, (model, generator), strict=True)):
        with torch.no_grad():
            for parameter in half.parameters():
                parameter.copy_(parameter.grad if i == 0 or parameter.grad is not None else 0 * parameter)
        slopes = dict(ours(half, 2 + i).named_parameters())  # their gradients under our names
        for name, parameter in mine.named_parameters():
            torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-4, atol=1e-6, msg=name)
