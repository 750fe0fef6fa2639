"""Advantages, losses and gradients of TRL's PPOTrainer, as record_trl_ppo.py recorded them, with the same tiny models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import part
from safetensors import safe_open
from safetensors.torch import save_file

from llmlab.data import collate
from llmlab.hub.load import load_hf
from llmlab.slots import Answers, Vocabulary

FILE = Path(__file__).with_name("trl_ppo.json")
SAID = json.loads(FILE.read_text())
COMMON, ANSWER = SAID["common"], 5
EOS, SIZE = SAID["model"]["eos_token_id"], SAID["model"]["vocab_size"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FILE.with_suffix(".safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict


class Case:
    """One rollout. Its answers end where TRL has them end, which drew all to one length."""

    def __init__(self, name, recorded):
        self.how = SAID["cases"][name]
        self.of = {k.removeprefix(f"{name}."): v for k, v in recorded.items() if k.startswith(f"{name}.")}
        rows = self.of["responses"].tolist()
        self.stops = "stop_token" in self.how["options"]
        ends = [row.index(EOS) + 1 if self.stops and EOS in row else ANSWER for row in rows]
        self.lengths = np.array(ends)
        self.answers = [row[:n] for row, n in zip(rows, ends, strict=True)]
        self.prompts = [[i for i in row if i] for row in self.of["queries"].tolist()]
        self.real = np.arange(ANSWER) < self.lengths[:, None]

    def made(self, **options):
        estimator = self.how["options"]["kl_estimator"]
        of_loss = {
            "clip": COMMON["cliprange"],
            "value_clip": COMMON["cliprange_value"],
            "value_weight": COMMON["vf_coef"],
        }
        same = {name: COMMON[name] for name in ("temperature", "gamma", "lam")}
        method = part(
            "alignment", "ppo", max_new=ANSWER + 1, beta=COMMON["kl_coef"], estimator=estimator, **of_loss, **same, **options
        )  # fmt: skip
        return method(Vocabulary(SIZE, {"eos": EOS}), 32)

    def credit(self, **options):
        """Ours of the rollout. An answer that ended before its longest has one more state in TRL, whose KL is 0."""
        more = ((self.lengths < ANSWER) & self.stops).astype(int)
        of = {name: self.of[name].double().numpy() for name in ("logprobs", "ref_logprobs", "values", "scores")}
        for name in ("logprobs", "ref_logprobs"):
            of[name] = np.where(self.real, of[name], 0.0)
        measured = {"reference": of["ref_logprobs"], "value": of["values"], "kl": np.zeros(len(more))}
        # TRL has taken its penalty off the scores already.
        ended = np.zeros(len(more), bool)
        drawn = Answers(of["scores"], self.lengths + more, ended, of["logprobs"], measured, 1)
        return self.made(**options).credit(drawn)

    def batch(self, rows, **more):
        method = self.made()
        samples = []
        for i in rows:
            n = self.lengths[i]
            sample = {
                "prompt": self.prompts[i],
                "answer": self.answers[i],
                "log_probabilities": self.of["logprobs"][i, :n],
            }
            named = {"advantage": "advantages", "value": "values", "return": "returns"}
            samples.append(sample | {ours: self.of[theirs][i, :n] for ours, theirs in named.items()} | more)
        return method, collate.batch([method.prepare(sample, None) for sample in samples], "pad")

    def model(self, at, folder):
        """A model of ours with the weights of TRL's before step `at`, or the reference."""
        folder.mkdir(exist_ok=True)
        tensors = {k.removeprefix(f"{at}."): v for k, v in self.of.items() if k.startswith(f"{at}.")}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SAID["model"]}
        if at.endswith("critic"):
            # That for tokens has a bias, and TRL's, made for whole texts, none.
            tensors["score.bias"] = torch.zeros(1)
            config |= {"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "value"}}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return load_hf(folder, verbose=False).model


def as_critic(model):
    role = next(iter(model.heads))

    def called(read, heads):
        found = model(read, heads={role: heads["value"]})
        return found._replace(heads={"value": found.heads[role][:, 0]})

    return called


@pytest.mark.parametrize("name", SAID["cases"])
def test_advantages_and_returns(name, recorded):
    case = Case(name, recorded)
    raw, theirs = (
        case.credit(whiten=False),
        {k: case.of[k].numpy() for k in ("raw_advantages", "returns", "advantages")},
    )
    for ours, of in (("advantage", "raw_advantages"), ("return", "returns")):
        np.testing.assert_allclose(raw[ours][case.real], theirs[of][case.real], **CLOSE)
    if case.stops:
        # The value behind the end is learnt too, from the reward that stands there.
        assert (case.lengths < ANSWER).sum() >= 2
        return
    n = case.real.sum()
    # Theirs is the standard deviation of a sample.
    white = case.credit()["advantage"] * np.sqrt((n - 1) / n)
    np.testing.assert_allclose(white, theirs["advantages"], **CLOSE)


@pytest.mark.parametrize("step", ["0", "3"])
def test_the_loss_of_a_step_and_its_gradients(step, recorded, tmp_path):
    case = Case("whole", recorded)
    wanted = case.how["steps"][step]
    policy, critic = (case.model(f"{step}.{role}", tmp_path / role) for role in ("policy", "critic"))
    method, batch = case.batch(wanted["rows"])
    loss = method.loss(policy, batch, critic=as_critic(critic))
    means = {name: (sums / n).item() for name, (sums, n) in loss.terms.items()}
    assert means == pytest.approx({"policy": wanted["pg_loss"], "value": wanted["vf_loss"]}, rel=1e-5, abs=1e-5)
    assert loss.mean().item() == pytest.approx(wanted["loss"], rel=1e-5)
    loss.mean().backward()
    compare(policy, case, f"{step}.slope.policy")
    compare(critic, case, f"{step}.slope.critic")
    if step == "0":
        # The first step begins where the rollout ended; the reference is another model.
        reference = case.model("reference", tmp_path / "reference")
        measured = method.measure(policy, batch, reference=reference, critic=as_critic(critic))
        where = batch["labels"] != -100
        for ours, theirs in (("reference", "ref_logprobs"), ("value", "values")):
            torch.testing.assert_close(measured[ours][where], case.of[theirs][wanted["rows"]].flatten(), **CLOSE)
    else:
        assert loss.logs["clip_fraction"][0] > 0 and loss.logs["value_clip_fraction"][0] > 0


def test_the_policy_loss_of_answers_that_end(recorded, tmp_path):
    case = Case("ended", recorded)
    wanted = case.how["steps"]["3"]
    policy, critic = (case.model(f"3.{role}", tmp_path / role) for role in ("policy", "critic"))
    method, batch = case.batch(wanted["rows"])
    sums, n = method.loss(policy, batch, critic=as_critic(critic)).terms["policy"]
    assert (sums / n).item() == pytest.approx(wanted["pg_loss"], rel=1e-5)
    (sums / n).backward()
    compare(policy, case, "3.slope.policy")


def compare(model, case, prefix):
    """The gradients of a table and of the last layer, on which those of all between depend."""
    ours = {name: p.grad for name, p in model.named_parameters()}
    head = "lm_head.weight" if "policy" in prefix else "score.weight"
    for name, of in (("embedding", "model.embed_tokens.weight"), ("heads.", head)):
        slope = next(grad for key, grad in ours.items() if name in key and key.endswith("weight"))
        torch.testing.assert_close(slope, case.of[f"{prefix}.{of}"], **CLOSE)
