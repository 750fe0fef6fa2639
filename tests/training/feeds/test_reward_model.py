"""Runs whose reward is a finished reward model, one that prefers digits to letters."""

import json

import numpy as np
import pytest
import torch
from small_runs import numbers, run

from llmlab import registry
from llmlab.commands import eval_reward
from llmlab.commands.eval import evaluate
from llmlab.config.compose import compose
from llmlab.decoding.answers import Answer
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.plan.subject import of_config
from llmlab.runs import checkpoint, folder
from llmlab.slots import Rollout, Vocabulary
from llmlab.training import companions, recipe
from llmlab.training.feeds.acting import Actor

SHORT = ["train.log_every=1", "optimizer.lr=5e-3", "train.checkpoint_every=10", "train.keep=9"]
GRPO = ["alignment=grpo", "alignment.kl=none", "alignment.beta=0", "budget.steps=30", "train.batch_size=32"]


@pytest.fixture(scope="module")
def judge(task, tmp_path_factory):
    """A reward model that reads the tokens of `task`."""
    home = tmp_path_factory.mktemp("judge")
    lines = [
        {"prompt": f"{'abcdef'[i % 6] * (1 + i % 3)}{i % 10}=", "answers": [str(i % 7), "=abcdef"[i % 5 + i % 3]]}
        for i in range(160)
    ]
    (home / "ranked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = [w for w in task if not w.startswith(("reward=", "alignment."))]
    run(home / "run", *task, *SHORT, "alignment=reward", f"data.path={home / 'ranked.jsonl'}", "budget.steps=30")
    return home / "run"


@pytest.fixture(scope="module")
def judged(task, judge):
    """Overrides of a run that it judges."""
    own = [w for w in task if not w.startswith(("reward=", "tokenizer="))]
    return [*own, *SHORT, "tokenizer=file", f"tokenizer.path={judge}", "reward=model", f"models.reward={judge}"]


CONVERSATIONS = (("a1=", "7"), ("fff7=", "77"), ("=", "0123"), ("abc", "7"), ("ab3=", "a"))


@pytest.mark.parametrize("at_once", [2, 8])
def test_scores_are_those_that_the_reward_model_gives_itself(judge, at_once):
    model, tokenizer = folder.load_model(judge)
    (eos,) = tokenizer.stops
    prompts = [{"prompt": np.array(tokenizer.encode(p)), "rest": {}} for p, _ in CONVERSATIONS]
    # Some without an end, as they are that were cut off.
    written = [Answer([*tokenizer.encode(a), *[eos] * (i % 2)], []) for i, (_, a) in enumerate(CONVERSATIONS)]

    def scores(name, **options):
        reward = registry.load("reward", name, options)()
        actor = Actor(Rollout(1, 8, 1.0, 1, 1), reward, tokenizer, Vocabulary(tokenizer.vocab_size, {}), at_once)
        return actor.scores(prompts, written, {"reward": model})

    found = scores("model")
    for answer, prompt, score in zip(written, prompts, found, strict=True):
        hidden = model({"ids": torch.tensor([[*prompt["prompt"], *answer.ids]])}, heads={}).hidden[0, -1]
        assert score == pytest.approx((model.heads["scalar"].out.weight @ hidden).item(), abs=1e-5)
    both = scores("sum", of=("model", "length"), weights=(2.0, 1.0), options=({}, {"most": 1}))
    want = [2 * s - min(1.0, len(a) - 1) for s, (_, a) in zip(found, CONVERSATIONS, strict=True)]
    assert both == pytest.approx(want)


@pytest.mark.slow  # a run of GRPO: 2 s
def test_a_policy_learns_what_the_reward_model_prefers(judge, judged, column, at, tmp_path):
    record = run(tmp_path / "run", *judged, *GRPO)
    assert record["metrics"]["val_reward"] > column(tmp_path / "run", "reward")[0] + 1
    about = record["models"]["reward"]
    assert about["sha256"] == checkpoint.weights_sha256(folder.checkpoint_of(judge)) and not about["trains"]
    assert evaluate(str(tmp_path / "run"))["reward"] == pytest.approx(record["metrics"]["val_reward"], abs=1e-5)
    greedy = eval_reward.Arguments(run=str(tmp_path / "run"), samples=1, temperature=0)
    score, *_ = eval_reward.scored(greedy, ["reward=model", f"models.reward={judge}"])
    assert score["reward"]["mean"] == pytest.approx(record["metrics"]["val_reward"], abs=1e-5)
    assert score["reward"]["low"] < score["reward"]["mean"] < score["reward"]["high"]
    copy = at(tmp_path / "run", 20, tmp_path / "copy")
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(tmp_path / "run")


@pytest.mark.slow  # a run
def test_ppo_with_a_sum_of_a_reward_model_and_a_rule_and_a_critic_of_the_reward_model(judge, judged, column, tmp_path):
    both = ["reward=sum", "reward.of=[model,length]", "reward.weights=[1,2]", f"models.critic={judge}"]
    record = run(tmp_path / "run", *judged, *both, "alignment=ppo", "budget.steps=60")
    assert record["metrics"]["val_reward"] > column(tmp_path / "run", "reward")[0] + 1
    assert record["models"]["critic"]["trains"] and record["models"]["critic"]["source"] == str(judge)


@pytest.mark.slow  # three runs: 2 s
def test_a_critic_begins_as_the_reward_model_or_as_the_run_begins(judge, judged):
    whole, start = folder.load_model(judge)[0], folder.checkpoint_of(judge)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    hidden = whole({"ids": ids}, heads={}).hidden

    def critic(*words, start=None):
        made = recipe.Recipe.from_config(compose([*judged, "alignment=ppo", *words]))
        found = companions.begun(made.companions, start, made.model)[0]["critic"]
        model = found.assemble(made.model)
        build.materialise(model)
        found.fill(model, seed=0)
        return model.eval()

    one = critic(f"models.critic={judge}")
    want = hidden @ whole.heads["scalar"].out.weight[0]
    torch.testing.assert_close(one({"ids": ids}, heads={"value": None}).heads["value"], want)
    warm, first = critic(start=start), critic()
    torch.testing.assert_close(warm({"ids": ids}, heads={}).hidden, hidden)
    assert torch.equal(warm.heads["value"].out.weight, first.heads["value"].out.weight)
    assert not torch.allclose(first({"ids": ids}, heads={}).hidden, hidden)
    other = critic("models.critic=[model.n_layers=2]", start=start)
    assert len(other.all_stacks()[0].layers) == 2


def test_its_forwards_are_counted(judged):
    def cost(*more):
        words = {w.partition("=")[0]: w for w in [*judged, *GRPO, *more]}
        if more:
            del words["models.reward"]
        return of_config(compose(list(words.values()))).cost

    with_it, without = cost(), cost("reward=contains")
    (own,) = (p for p in with_it.passes if p.model == "reward")
    assert (own.account.tokens, own.times, own.trained) == (without.passes[0].account.tokens + 1, 1.0, False)
    assert with_it.flops_per_token - without.flops_per_token == pytest.approx(own.flops() / with_it.seq_len)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["models.reward=[size=nano]"], "models.reward: .size=nano. would be a model that has learnt nothing; give a finished"),
        (["models={}"], "reward=model judges with a finished model: models.reward=RUN or hf=FOLDER"),
        (["reward=sum", "reward.of=[exact,model]", "models={}"], "reward=sum judges with a finished model"),
        (["reward=exact"], "models.reward: alignment=grpo works with no other model"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_composed(judged, more, said):
    words = {w.partition("=")[0]: w for w in [*judged, *GRPO, *more]}
    if "models" in words:
        words.pop("models.reward"), words.pop("models")
    with pytest.raises(UserError, match=said):
        compose(list(words.values()))


def test_a_run_with_other_tokens_or_without_a_scalar_head_is_refused(judge, judged, tmp_path):
    other = [w for w in judged if not w.startswith("tokenizer")]
    with pytest.raises(
        UserError, match="models.reward=.*: its tokenizer is another|models.reward=.*it knows .* tokens"
    ):
        run(tmp_path / "run", *other, *GRPO, "tokenizer=bpe", "tokenizer.vocab_size=270")
    assert not (tmp_path / "run").exists()
