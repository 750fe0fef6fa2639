"""Objectives with other models: a trained generator that shares the embedding, and a frozen teacher from a finished run."""

import csv
import json
import shutil

import pytest
import ranks
import torch
from small_runs import built, numbers, run

from llmlab.commands.eval import evaluate
from llmlab.commands.export import export
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model import build, roles
from llmlab.plan import memory, subject
from llmlab.runs import checkpoint, folder
from llmlab.training import companions
from llmlab.training.module import Offline
from llmlab.training.recipe import Batches, Cut

OFTEN = ["train.log_every=1", "train.validate_every=6", "train.checkpoint_every=6", "train.keep=9"]
# The tables are 20 wide; a generator of 32 alone would have some of 16.
ELECTRA = ["model=electra", "model.dim=80", "models.generator=[model.dim=32]"]
STUDENT = ["model=llama3", "objective=distill"]


@pytest.fixture(scope="module")
def often(tiny):
    return [*tiny, *OFTEN, "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def electra(often, tmp_path_factory):
    """Two micro-batches a step."""
    path = tmp_path_factory.mktemp("electra") / "run"
    run(path, *often, *ELECTRA, "train.micro_batch_size=4")
    return path


@pytest.fixture(scope="module")
def teacher(often, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "run"
    run(path, *often, "model=gpt2")
    return path


@pytest.fixture(scope="module")
def student(often, teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "run"
    with pytest.MonkeyPatch.context() as patch:
        modules = []
        patch.setattr(Offline, "on_train_end", lambda module: modules.append(module))
        run(path, *often, *STUDENT, f"models.teacher={teacher}")
    return path, modules[0]


def rows(path):
    with (path / "metrics.csv").open() as f:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(f)]


# ---------------------------------------------------------------- a trained one that shares the embedding


def test_the_record_and_the_folder_say_what_was_trained_beside(electra):
    record = json.loads((electra / "run.json").read_text())
    about = record["models"]["generator"]
    spec = folder.companion(electra, "generator")
    assert about["words"] == ["model.dim=32"] and about["trains"] and about["shares"] == ["embedding", "position"]
    assert (about["source"], about["sha256"]) == (None, None)
    assert spec.sizes.dim == 32 and spec.stacks[0].embedding.options["width"] == 20
    assert "models/generator.json" in record["files"]
    trained = folder.load(electra)[1].sizes
    shared = (trained.vocab_size + trained.max_positions) * 20
    assert about["parameters"]["total"] == sum(p.numel() for p in build.assemble(spec).parameters()) - shared


def test_checkpoints_hold_it_under_its_role_and_the_shared_table_once(electra):
    path = electra / "checkpoints/step=00000012"
    weights, state = checkpoint.read(path)
    own = {n.removeprefix("models.generator.") for n in weights if n.startswith("models.")}
    assert own == checkpoint.read_weights(path, "generator").keys()
    assert "stacks.main.embedding.table.weight" in checkpoint.read_weights(path)
    assert not any("embedding.table" in name or "positions" in name for name in own)
    paths = [path for group in state["optimizer_states"][0]["param_groups"] for path in group["params"]]
    assert sorted(paths) == sorted(weights) and len(set(paths)) == len(paths)
    (path / "models/generator.safetensors").rename(path / "models/gone")
    assert "generator.safetensors" in checkpoint.problem(path)
    (path / "models/gone").rename(path / "models/generator.safetensors")
    assert checkpoint.problem(path) is None


def test_the_first_step_is_that_of_the_loss_by_hand_and_the_shared_table_learns_from_both(electra, often):
    composed, recipe, model, others = built([*often, *ELECTRA])
    batches = Batches.from_config(composed.cfg, recipe, Cut.make(8, None, 1), 12)
    batch = next(iter(batches.train(0, 1, 0)))
    loss = recipe.objective.loss(model, batch, **others)
    table = model.stacks["main"].embedding.table.weight
    assert others["generator"].stacks["main"].embedding.weight is table
    places = model.stacks["main"].positions[0].table.weight
    assert not list(others["generator"].stacks["main"].positions.parameters())
    each = {name: value / count for name, (value, count) in loss.terms.items()}
    slopes = {name: torch.autograd.grad(mean, table, retain_graph=True)[0] for name, mean in each.items()}
    of_places = [torch.autograd.grad(mean, places, retain_graph=True)[0] for mean in each.values()]
    assert all(slope.abs().sum() > 0 for slope in (*slopes.values(), *of_places))
    total = each["generator"] + 50 * each["replaced"]
    total.backward()
    torch.testing.assert_close(table.grad, slopes["generator"] + 50 * slopes["replaced"])
    learning = [p for m in (model, *others.values()) for _, p, _ in roles.learning(m)]
    norm = torch.stack([p.grad.norm() for p in learning]).norm()
    first = rows(electra)[0]
    assert first["loss"] == pytest.approx(float(total.detach()), rel=1e-6)
    assert first["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
    assert {name: first[name] for name in each} == pytest.approx(
        {n: float(v.detach()) for n, v in each.items()}, rel=1e-6
    )


def test_two_models_of_one_shape_do_not_begin_alike(often):
    _, _, model, others = built([*often, *ELECTRA[:-1], "models.generator=[]"])
    one, other = (m.stacks["main"].layers[0].attention.q.weight for m in (model, others["generator"]))
    assert one.shape == other.shape and not torch.equal(one, other)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(electra, tmp_path):
    ranks.back(electra, tmp_path / "again")
    run(tmp_path / "again", f"resume={tmp_path / 'again'}")
    assert numbers(tmp_path / "again") == numbers(electra)
    (ours, state), (theirs, other) = (
        checkpoint.read(p / "checkpoints/step=00000012") for p in (tmp_path / "again", electra)
    )
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    moments = state["optimizer_states"][0]["state"]
    for path, values in other["optimizer_states"][0]["state"].items():
        assert all(torch.equal(moments[path][name], value) for name, value in values.items())


def test_an_export_is_the_companion_whole(electra, often, tmp_path):
    assert "step 12" in export(electra, tmp_path / "generator", role="generator")
    alone, tokenizer = folder.load_model(tmp_path / "generator")
    _, _, model, others = built([*often, *ELECTRA])
    companions.load(model, checkpoint.read_weights(electra / "checkpoints/step=00000012"), "")
    companions.load(
        others["generator"], checkpoint.read_weights(electra / "checkpoints/step=00000012", "generator"), ""
    )
    ids = torch.arange(12).view(1, -1) % tokenizer.vocab_size
    ours, theirs = (m.eval()({"ids": ids}).heads["tokens"] for m in (alone, others["generator"]))
    assert torch.equal(ours, theirs)
    export(electra, tmp_path / "hf", "hf", role="generator")
    assert json.loads((tmp_path / "hf/config.json").read_text())["embedding_size"] == 20
    with pytest.raises(UserError, match="no such model beside its own; did you mean generator"):
        export(electra, tmp_path / "other", role="generato")
    with pytest.raises(UserError, match="works with the role generator too"):
        evaluate(str(tmp_path / "generator"))


def test_eval_measures_what_the_last_validation_did(often, electra, tmp_path):
    found = evaluate(str(electra))
    run(tmp_path, *often, *ELECTRA, "train.micro_batch_size=4", "train.validation_batches=null")
    last = rows(tmp_path)[-1]
    assert found["loss"] == pytest.approx(last["val_loss"], abs=1e-5)
    assert found["generator"] == pytest.approx(last["val_generator"], abs=1e-6)


def test_a_plan_counts_all_models(often, electra):
    planned = subject.of_config(compose([*(o for o in often if "model.dim" not in o), *ELECTRA]))
    record = json.loads((electra / "run.json").read_text())
    counts = [record["parameters"]["total"], record["models"]["generator"]["parameters"]["total"]]
    found = memory.plan(planned.training, memory.Where(), 4)
    # Rows of the vocabulary are as many, but char's are known from the text alone.
    rows_more = (planned.spec.sizes.vocab_size - folder.load(electra)[1].sizes.vocab_size) * (20 + 1)
    assert found.weights == found.gradients == 4 * (sum(counts) + rows_more)
    generator = sum(p.flops() for p in planned.cost.passes if p.model == "generator")
    assert 0 < generator < planned.cost.flops_per_token * planned.cfg.data.seq_len


def test_init_from_brings_the_companion_that_was_trained_beside(often, electra, tmp_path):
    one = (*often, *ELECTRA, f"init_from={electra}", "optimizer.lr=1e-12", "budget.steps=1")
    run(tmp_path / "same", *one)
    weights = checkpoint.read_weights(electra / "checkpoints/step=00000012", "generator")
    begun = checkpoint.read_weights(tmp_path / "same/checkpoints/step=00000001", "generator")
    assert weights.keys() == begun.keys() and all(torch.allclose(t, begun[n]) for n, t in weights.items())
    assert rows(tmp_path / "same")[-1]["val_generator"] == pytest.approx(rows(electra)[-1]["val_generator"], abs=1e-6)
    run(tmp_path / "other", *one, "models.generator=[model.dim=16]")
    notes = json.loads((tmp_path / "other/run.json").read_text())["notes"]
    assert [n for n in notes if "models.generator begins anew" in n]


# ---------------------------------------------------------------- a frozen one from a finished run


def test_a_teacher_is_frozen_and_has_no_state(student, teacher):
    path, module = student
    about = json.loads((path / "run.json").read_text())["models"]["teacher"]
    kept = teacher / "checkpoints/step=00000012"
    assert about["weights"] == str(kept) and about["sha256"] == checkpoint.weights_sha256(kept)
    assert about["family"] == "gpt2" and not about["trains"]
    model = module.models["teacher"]
    assert not model.training and module.model.training
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    weights = checkpoint.read_weights(kept)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    ours, state = checkpoint.read(path / "checkpoints/step=00000012")
    assert not [name for name in ours if name.startswith("models.")]
    assert state["optimizer_states"][0]["state"].keys() == ours.keys()


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(often, teacher, tmp_path):
    run(
        tmp_path,
        *often,
        *STUDENT[1:],
        f"models.teacher={teacher}",
        f"init_from={teacher}",
        "model=gpt2",
        "budget.steps=1",
    )
    assert rows(tmp_path)[0]["divergence"] == 0


def test_a_resumed_student_finds_its_teacher_and_no_other(student, teacher, tmp_path):
    path, _ = student
    again, moved = tmp_path / "again", tmp_path / "moved"
    ranks.back(path, again)
    record = json.loads((again / "run.json").read_text())
    record["models"]["teacher"]["weights"] = str(tmp_path / "nowhere")
    (again / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"nowhere is gone.*models\.teacher=PATH"):
        run(again, f"resume={again}")
    shutil.copytree(teacher, moved)
    shutil.rmtree(moved / "checkpoints/step=00000012")
    with pytest.raises(UserError, match=r"not those that the run began with \(sha256"):
        run(again, f"resume={again}", f"models.teacher={moved}")
    with pytest.raises(UserError, match="keeps its own config"):
        run(again, f"resume={again}", "models.teacher=[size=nano]")
    shutil.copytree(teacher, moved, dirs_exist_ok=True)
    run(again, f"resume={again}", f"models.teacher={moved}")
    assert numbers(again) == numbers(path)
    assert json.loads((again / "run.json").read_text())["models"]["teacher"]["source"] == str(moved)


def test_a_plan_of_a_student_is_of_the_tokens_of_its_teacher(often, student, teacher):
    planned = subject.of_config(compose([*often, *STUDENT, f"models.teacher={teacher}"]))
    record = json.loads((student[0] / "run.json").read_text())
    assert planned.cost.flops_per_token == record["flops_per_token"]
    found = memory.plan(
        planned.training, memory.Where(), 4
    )  # runs the loss: both models have scores of the same tokens
    assert found.gradients == 4 * record["parameters"]["total"]
    assert found.weights == found.gradients + 4 * record["models"]["teacher"]["parameters"]["total"]


def test_eval_of_a_student_asks_its_teacher(student):
    found = evaluate(str(student[0]))
    assert found["loss"] == pytest.approx(found["nll"] + found["divergence"], abs=1e-6)


def test_a_teacher_of_another_tokenizer_is_refused_with_the_way_to_its_own(often, teacher, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(20):
        (texts / f"{i}.txt").write_text(f"ABC{i} " * 100)
    with pytest.raises(UserError, match=r"its tokenizer is another.*tokenizer=file tokenizer\.path=") as error:
        run(tmp_path / "run", *often, f"data.path={texts}", *STUDENT, f"models.teacher={teacher}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_companion_with_fewer_positions_than_a_sample_is_refused(often, teacher, tmp_path):
    with pytest.raises(UserError, match="models.teacher: it reads 24 tokens of each sample, more than the 16"):
        run(tmp_path / "run", *often, *STUDENT, f"models.teacher={teacher}", "data.seq_len=24")


def test_a_teacher_from_a_hugging_face_folder_is_the_same_one(student, often, teacher, tmp_path):
    export(teacher, tmp_path / "hf", "hf")
    run(tmp_path / "run", *often, *STUDENT, f"models.teacher=hf={tmp_path / 'hf'}", "budget.steps=2")
    ours, theirs = rows(tmp_path / "run"), rows(student[0])
    assert ours[0]["divergence"] == pytest.approx(theirs[0]["divergence"], abs=1e-6)
    about = json.loads((tmp_path / "run/run.json").read_text())["models"]["teacher"]
    assert about["source"] == f"hf={tmp_path / 'hf'}" and len(about["sha256"]) == 64


# ---------------------------------------------------------------- two ranks

STRATEGIES = ("ddp", "fsdp", "fsdp_tp", "zero1", "zero2", "zero3")
KINDS = {"electra": STRATEGIES, "student": ("fsdp", "fsdp_tp", "zero3"), "gdes": ("fsdp", "zero3")}
CASES = [(kind, strategy) for kind, strategies in KINDS.items() for strategy in strategies]


@pytest.fixture(scope="module")
def two(often, teacher, tmp_path_factory):
    """Runs of one process and of two, each of two also from its half."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("two")
    overrides = {
        "electra": ELECTRA,
        "student": [*STUDENT, f"models.teacher={teacher}"],
        "gdes": [*ELECTRA, "objective.sharing=gdes"],
    }
    runs = []
    for kind, own in overrides.items():
        last = {
            o.partition("=")[0]: o for o in (*often, *own, "train.clip=0.5", "optimizer.eps=1e-6", "optimizer.lr=1e-3")
        }
        run(root / kind, *last.values(), "train.micro_batch_size=4")
        for strategy in KINDS[kind]:
            path, micro = root / f"{kind}-{strategy}", 4 if strategy == "fsdp_tp" else 2
            where = [f"strategy={strategy}", "trainer.devices=2", f"train.micro_batch_size={micro}"]
            runs.append([*last.values(), *where, f"hydra.run.dir={path}"])
            runs += [["back", str(path), f"{path}-again"], [f"resume={path}-again"]]
    ranks.train(root / "logs", *runs)
    return root


# 18 runs of 12 steps on two ranks, half of them from their middle.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_two_ranks_follow_one_and_go_on_from_the_middle(two, kind, strategy):
    ours, theirs = rows(two / f"{kind}-{strategy}"), rows(two / kind)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    assert numbers(two / f"{kind}-{strategy}-again") == numbers(two / f"{kind}-{strategy}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_of_all_strategies_have_the_same_tensors(two, strategy):
    (ours, state), (theirs, other) = (
        checkpoint.read(two / name / "checkpoints/step=00000012") for name in (f"electra-{strategy}", "electra")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5, msg=name)
    assert state["optimizer_states"][0]["state"].keys() == other["optimizer_states"][0]["state"].keys()
