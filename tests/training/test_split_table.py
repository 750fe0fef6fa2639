"""Gradient-disentangled embedding sharing (DeBERTa-v3: He et al. 2021, arXiv:2111.09543): a table, and a delta beside it."""

import json

import pytest
import ranks
import torch
from small_runs import built, numbers, run

from llmlab.commands.export import export
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model import merging
from llmlab.plan import memory, subject
from llmlab.runs import checkpoint, folder
from llmlab.training import companions
from llmlab.training.recipe import Batches, Cut

GDES = ["model=deberta_v3", "models.generator=[model.n_layers=1]", "train.micro_batch_size=4"]
TABLE = "stacks.main.embedding.table."


@pytest.fixture(scope="module")
def often(tiny):
    every = [f"train.{key}=6" for key in ("validate_every", "checkpoint_every")]
    return [*tiny, *every, "train.log_every=1", "train.keep=9", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def gdes(often, tmp_path_factory):
    path = tmp_path_factory.mktemp("gdes") / "run"
    run(path, *often, *GDES)
    return path


def sharing(how, often):
    """(composed, recipe, the model, its generator) with first values, each table of them in its place."""
    composed, recipe, model, others = built([*often, *GDES, f"objective.sharing={how}"])
    return composed, recipe, model, others["generator"]


def test_gradients_are_those_of_two_tables_of_which_one_is_the_sum(often):
    """Beside two models with a table each, whose gradients the paper (section 3.2) gives: the generator's E has that of masked
    tokens, the delta that of lambda times the replaced ones by E + delta."""
    composed, recipe, model, generator = sharing("gdes", often)
    _, apart, twin, its_generator = sharing("none", often)
    table = model.stacks["main"].embedding.table
    assert not table.delta.any() and generator.stacks["main"].embedding.weight is table.base
    torch.manual_seed(0)
    with torch.no_grad():
        table.delta.normal_(0, 0.1)
        twin.load_state_dict(merging.merge(model).state_dict())
        own = its_generator.state_dict()
        its_generator.load_state_dict({**own, **generator.state_dict(), f"{TABLE}weight": table.base})
    batch = next(iter(Batches.from_config(composed.cfg, recipe, Cut.make(8, None, 1), 12).train(0, 1, 0)))
    ours = recipe.objective.loss(model, batch, generator=generator)
    theirs = apart.objective.loss(twin, batch, generator=its_generator)
    for name, (value, _) in theirs.terms.items():
        torch.testing.assert_close(ours.terms[name][0], value)
    ours.mean().backward()
    theirs.mean().backward()
    wanted = [m.stacks["main"].embedding.table.weight.grad for m in (its_generator, twin)]
    assert all(grad.abs().sum() > 0 for grad in wanted)
    torch.testing.assert_close([table.base.grad, table.delta.grad], wanted, rtol=1e-4, atol=1e-6)
    for one, other in ((model, twin), (generator, its_generator)):
        grads = {name: p.grad for name, p in other.named_parameters() if name != f"{TABLE}weight"}
        mine = {name: p.grad for name, p in one.named_parameters() if not name.startswith(TABLE)}
        torch.testing.assert_close(mine, grads, rtol=1e-4, atol=1e-6)


def test_it_begins_as_one_table_for_both_does(often):
    (_, _, one, of_one), (_, _, other, of_other) = (sharing(how, often) for how in ("embedding", "gdes"))
    merged = merging.merge(other)
    for mine, theirs in ((one, merged), (of_one, of_other)):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in mine.state_dict().items())
    assert merged.spec == one.spec


@pytest.mark.slow
def test_a_plan_counts_the_delta(often):
    one, two = (
        subject.of_config(compose([*(o for o in often if "model.dim" not in o), *GDES, f"objective.sharing={how}"]))
        for how in ("embedding", "gdes")
    )
    rows = 4 * one.spec.sizes.vocab_size * one.spec.sizes.dim
    found = [memory.plan(planned.training, memory.Where(), 4) for planned in (one, two)]
    for what in ("weights", "gradients"):
        assert getattr(found[1], what) - getattr(found[0], what) == rows
    # Two moments, and a count of steps for each parameter.
    assert found[1].states - found[0].states == 2 * rows + 4


@pytest.mark.slow
def test_checkpoints_have_the_table_and_the_delta_and_both_learn(gdes):
    first, last = (checkpoint.read(gdes / f"checkpoints/step={n:08d}")[0] for n in (6, 12))
    for name in (f"{TABLE}base", f"{TABLE}delta"):
        assert not torch.equal(first[name], last[name])
    assert first.keys() == last.keys() and not any(name.startswith(f"models.generator.{TABLE}") for name in last)
    assert json.loads((gdes / "model.json").read_text())["table_delta"] is True


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(gdes, tmp_path):
    ranks.back(gdes, tmp_path / "again")
    run(tmp_path / "again", f"resume={tmp_path / 'again'}")
    assert numbers(tmp_path / "again") == numbers(gdes)
    ours, theirs = (checkpoint.read(path / "checkpoints/step=00000012") for path in (tmp_path / "again", gdes))
    assert all(torch.equal(ours[0][name], t) for name, t in theirs[0].items())


@pytest.mark.slow
def test_an_export_has_one_table_and_another_run_begins_with_it(gdes, often, tmp_path):
    export(gdes, tmp_path / "whole")
    export(gdes, tmp_path / "generator", role="generator")
    trained, one, generator = (folder.load_model(p)[0] for p in (gdes, tmp_path / "whole", tmp_path / "generator"))
    assert trained.spec.table_delta and not one.spec.table_delta
    table = trained.stacks["main"].embedding.table
    assert torch.equal(generator.stacks["main"].embedding.weight, table.base)
    ids = torch.arange(12).view(1, -1) % 7
    assert torch.equal(one({"ids": ids}).heads["replaced"], trained({"ids": ids}).heads["replaced"])
    for how in ("gdes", "none", "embedding"):
        for start in (gdes, tmp_path / "whole"):
            model = sharing(how, often)[2]
            companions.load(model, companions.read_weights(folder.start_of(str(start)), model), "", begins=True)
            assert torch.equal(model.stacks["main"].embedding.weight, table.weight)


def test_a_part_without_a_table_is_refused(often):
    with pytest.raises(UserError, match="embedding=char_cnn has no `table`.*objective.sharing=embedding"):
        built([*often, *GDES, "embedding=char_cnn", "model.tie_embeddings=false"])


@pytest.mark.slow
def test_transformers_reads_the_folded_model(transformers, gdes, tmp_path):
    export(gdes, tmp_path / "hf", "hf")
    model, _ = folder.load_model(gdes)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(12).view(1, -1) % 7
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids).last_hidden_state, model({"ids": ids}, heads={}).hidden, rtol=1e-5, atol=1e-5
        )
