"""Learning with objectives that fit no likelihood and have several terms: a user's own, in user_objectives.py."""

import json
from pathlib import Path

import pytest
import torch
from gradients import gradients
from small_runs import numbers, run
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.commands.cli import run as llmlab
from llmlab.commands.eval import evaluate
from llmlab.config.compose import compose
from llmlab.data import Windows
from llmlab.errors import UserError
from llmlab.model import build, flops
from llmlab.model.build import build_model
from llmlab.runs import record
from llmlab.slots import Aux, Loss, Output, Pass, auxiliary
from llmlab.training import cost
from llmlab.training.recipe import Recipe
from llmlab.training.totals import Totals

SIMCSE = ["model=bert", "objective=simcse", "model.dropout=0.1"]
PAIRS = ["model=bert", "objective=masked_pairs"]


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, "user_objectives")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


# ---------------------------------------------------------------- a loss that is no likelihood, of two forwards


@pytest.fixture(scope="module")
def contrastive(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive") / "run"
    run(folder, *tiny, *SIMCSE, "train.log_every=3")
    return folder


def test_it_learns_and_nothing_is_called_a_perplexity(contrastive, capsys):
    found = record.read(contrastive)
    assert found["measures"] == {"accuracy": "accuracy"}
    assert set(found["metrics"]) == {"loss", "val_loss", "val_accuracy"}
    header = numbers(contrastive)[0]
    assert header == "step,tokens,loss,lr,grad_norm,contrast,accuracy,val_loss,val_accuracy"
    from llmlab.training.panel import rows

    said = dict(rows(found, "here"))
    assert "perplexity" not in said and said["accuracy"] == f"{found['metrics']['val_accuracy']:.4f}"


def test_it_is_evaluated_on_its_own_text_and_on_another(contrastive, corpus):
    own = evaluate(str(contrastive))
    assert {*own} == {"text", "targets", "loss", "accuracy"}
    text = evaluate(str(contrastive), str(corpus), batch_size=4)
    assert {*text} == {*own} and text["targets"] > 0


COUNTED = {"simcse": SIMCSE, "masked_pairs": PAIRS}


@pytest.mark.parametrize("objective", COUNTED)
def test_its_flops_are_those_of_the_real_loss(objective, tiny):
    """Dense, as the eager kernel computes the pairs that a mask hides."""
    words = [*tiny, *COUNTED[objective], "kernel=eager", "data.seq_len=32", "model.dim=32", "model.max_positions=32"]
    recipe = Recipe.from_config(compose(list({w.partition("=")[0]: w for w in words}.values())))
    windows, rows = Windows(recipe.corpus.train, 32), 8
    model = build_model(recipe.spec, 1)
    import numpy as np

    samples = [  # those that the cost is made of
        recipe.objective.prepare(windows[i * len(windows) // rows], np.random.default_rng(i)) for i in range(rows)
    ]
    batch = {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}
    with FlopCounterMode(display=False) as counter:
        recipe.objective.loss(model, batch).mean().backward()
    assert recipe.cost.dense * 32 * rows == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.slow  # a plan under every strategy, twice
def test_a_run_and_a_plan_say_the_same_flops(contrastive, tiny, capsys):
    words = [w for w in tiny if w.startswith(("data.seq_len", "model.", "train.batch"))]
    words += ["model=bert", "model.dropout=0.1", "model.vocab_size=64"]
    found = []
    for objective in ("simcse", "mlm"):
        assert llmlab(["plan", *words, f"objective={objective}", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["flops_per_token"] == record.read(contrastive)["flops_per_token"]
    two, one = (plan["memory"]["strategies"][0]["kept"] for plan in found)  # the other has a head, of few tokens
    assert 1.5 < two / one < 2.5  # two forwards are kept


@pytest.mark.slow  # the array of all parts
def test_check_knows_what_can_be_asked_of_it():
    from llmlab.check import case_checks, cases
    from llmlab.check.combinations import combinations

    asked = ["passes", "targets", "likelihood"]
    combinations.cache_clear()  # a test of another file may have made it, without the parts of this one
    try:
        found = {r.check: r.outcome for r in case_checks.check_case(cases.part_case(("objective", "simcse")), asked)}
    finally:
        combinations.cache_clear()
    assert found == {"built": "passed", "passes": "passed", "targets": "skipped", "likelihood": "skipped"}


def test_every_added_head_has_a_gradient_beside_a_loss_without_heads():
    """A head with one bias for all tokens gets the mean weight of its scores, which must not be 0."""
    from llmlab.check import learning
    from llmlab.check.subject import Case, Subject

    for name in ("replaced", "scalar"):
        case = Case(name, (*SIMCSE, "model.dim=32", "model.n_layers=1"), head=name)
        subject = Subject(case)
        found = learning.parameter_gradients(subject.model, learning.loss_function(subject, subject.model)().mean())
        last = [g for path, g in found.items() if path.startswith(f"heads.{name}.out.")]
        assert last and all(g is not None and g.any() for g in last)
        if name == "replaced":
            assert found["heads.replaced.out.bias"].item() == pytest.approx(0.5)


class Distilled:
    """The passes of a distillation, of a teacher that only answers."""

    def __init__(self, teacher="teacher", head="tokens"):
        self.teacher, self.head = teacher, head

    def prepare(self, sample, rng):
        return {"ids": sample["tokens"][:-1]}

    def targets(self, prepared):
        return {"kl": len(prepared["ids"]) // 2}

    def passes(self, prepared):
        tokens = len(prepared["ids"])
        own = Pass(tokens, heads={"tokens": None})
        return [own, Pass(tokens, model=self.teacher, trained=False, heads={self.head: tokens // 2})]


def test_a_companion_that_is_not_trained_costs_its_forwards(tiny):
    recipe = Recipe.from_config(compose([*tiny, "model=llama3"]))
    own, teacher = build.assemble(recipe.spec), build.assemble(Recipe.from_config(compose([*tiny, "model=gpt2"])).spec)
    windows, models = Windows(recipe.corpus.train, 16), {"model": own, "teacher": teacher}
    found = cost.estimate(models, Distilled(), windows)
    forward = flops.forward_flops(teacher, 16, heads={"tokens": 0.5}) / 16
    assert found.flops_per_token == pytest.approx(flops.training_flops_per_token(own, 16) + forward)
    assert found.parameters == flops.count_parameters(own)
    shown = found.forward
    assert shown["attention"] and shown["teacher: attention"]
    with pytest.raises(UserError, match="names the model 'tutor', but there is model, teacher"):
        cost.estimate(models, Distilled("tutor"), windows)
    with pytest.raises(UserError, match="names the head 'labels', which the model 'teacher' doesn't have"):
        cost.estimate(models, Distilled(head="labels"), windows)


# ---------------------------------------------------------------- two terms with counts of their own


def close(found, want):
    """The largest difference, as a share of the largest gradient."""
    assert found.keys() == want.keys()
    largest = max(float(g.abs().max()) for g in want.values())
    return max(float((found[n] - want[n]).abs().max()) for n in want) / largest


@pytest.fixture(scope="module")
def one_cut(tiny, tmp_path_factory):
    """The gradient of a step, its batch cut in two."""
    return gradients([*tiny, *PAIRS, "train.micro_batch_size=4"], tmp_path_factory.mktemp("cut"))


def test_the_gradient_is_that_of_the_whole_batch_at_once(tiny, one_cut):
    """A twin that knows nothing of Loss: a mean over all masked tokens and three times one over all pairs."""
    import numpy as np

    from llmlab.data.order import index
    from llmlab.seeds import key

    recipe = Recipe.from_config(compose([*tiny, *PAIRS]))
    windows, model = Windows(recipe.corpus.train, 16), build_model(recipe.spec, 1)
    rows = []
    for row in range(8):
        at = index(1, row, len(windows))
        rows.append(recipe.objective.prepare(windows[at], np.random.default_rng(key(1, "prepare", 0, at))))
    ids, whole, masked, paired = (torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0])
    shown, other = model({"ids": ids}), model({"ids": whole})
    nll = F.cross_entropy(shown.heads["tokens"][masked], whole[masked])
    unlike = 1 - F.cosine_similarity(shown.hidden.mean(1), other.hidden.mean(1))
    assert 0 < paired.sum() < 8 and len(set(masked.sum(1).tolist())) > 2
    (nll + 3 * unlike[paired].mean()).backward()
    assert close(one_cut, {n: p.grad for n, p in model.named_parameters()}) < 1e-6
    assert max(float(g.abs().max()) for g in one_cut.values()) > 1e-3


def test_each_term_is_shown_and_the_loss_is_their_sum(tiny, tmp_path):
    folder = tmp_path / "run"
    found = run(folder, *tiny, *PAIRS, "budget.steps=2")["metrics"]
    assert {*found} == {"loss", "val_loss", "val_perplexity", "val_masked", "val_pairs"}
    assert found["val_loss"] == pytest.approx(found["val_masked"] + 3 * found["val_pairs"])
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith(
        "step,tokens,loss,lr,grad_norm,masked,pairs,val_loss,val_perplexity,val_masked,val_pairs"
    )
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert float(row["loss"]) == pytest.approx(float(row["masked"]) + 3 * float(row["pairs"]))


def test_terms_that_are_not_counted_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "user_objectives")
    objective = registry.load("objective", "masked_pairs", {}).func
    monkeypatch.setattr(objective, "targets", lambda self, prepared: {"masked": 1})
    with pytest.raises(UserError, match=r"MaskedPairs.targets counts masked, but its loss has the terms masked, pairs"):
        run(tmp_path / "run", *tiny, *PAIRS)


# ---------------------------------------------------------------- what is shown


def pair(total, n):
    return torch.tensor(float(total)), torch.tensor(n)


def test_a_likelihood_is_what_an_objective_calls_one():
    totals = Totals({"policy": "nll", "text": "bits", "right": "accuracy"})
    for text in (6.0, 2.0):
        loss = Loss(
            {"policy": pair(2, 1), "gap": pair(1, 4)}, {"gap": 2.0}, {"text": pair(text, 4), "right": pair(1, 2)}
        )
        totals.add(loss, {"bytes": torch.tensor([3, 5])})
    found = totals.means()
    assert found["loss"] == 2.0 + 2 * 0.25
    assert found["perplexity"] == pytest.approx(torch.e**2) and found["text_perplexity"] == pytest.approx(torch.e)
    assert found["text_bits_per_byte"] == pytest.approx(8 / 0.6931471805599453 / 16)
    assert (found["right"], found["gap"]) == (0.5, 0.25)
    from llmlab import measures

    assert list(found) == measures.names(["policy", "gap"], list(totals.pairs)[:4], totals.measures, True)


def test_a_filler_counts_nowhere():
    totals, nothing = Totals({}), Totals({})
    loss = Loss({"nll": pair(6, 2)})
    totals.add(loss, {})
    totals.add(Loss({"nll": pair(float("nan"), 2)}), {"filler": torch.tensor(True)})
    nothing.add(loss, {"filler": torch.tensor(True)})
    assert totals.means() == {"loss": 3.0} and nothing.means() == {"loss": 0.0}


def test_the_balance_loss_of_several_forwards_is_their_mean():
    def output(loss, tokens):
        return Output(torch.zeros(1), {}, Aux(torch.tensor(loss), torch.tensor(tokens)))

    found = auxiliary(output(1.0, [[1, 2]]), output(3.0, [[0, 4]]), Output(torch.zeros(1), {}, None))
    assert found.loss == 2.0 and found.tokens_per_expert.tolist() == [[1, 6]]
    assert auxiliary(Output(torch.zeros(1), {}, None)) == Aux()
