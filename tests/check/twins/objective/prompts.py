"""Twin of the objective reinforce, from its papers."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.objective import BALANCE, SIZE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, log_softmax

REFUSED: Settings = {
    "reinforce": [
        *(({}, {key: 0}) for key in ("samples", "max_new", "batches", "epochs")),
        ({}, {"temperature": 0.0}),
    ],
}


@twin(
    "objective",
    "reinforce",
    source="Williams 1992, equation 4; the baseline: Kool et al. 2019, equation 8; importance ratios in later steps",
)
def reinforce(given: Given) -> Arrays:
    o = given.options
    rollout = [o[key] for key in ("samples", "max_new", "temperature", "batches", "epochs")]
    made: Arrays = {"shown": np.array(0.0), "fixed_counts": np.array(1.0)}
    made["rollout"] = np.array([*rollout, o["batches"] * o["epochs"]], np.float64)
    for key, rewards in ((k, v) for k, v in given.inputs.items() if k.startswith("rewards/")):
        # With one answer to each prompt, the baseline is that of the answers to other prompts.
        grid = rewards if rewards.shape[1] > 1 else rewards.T
        baseline = np.zeros_like(grid)
        for row, at in np.ndindex(grid.shape):
            others = np.delete(grid[row], at)
            baseline[row, at] = others.mean() if len(others) else 0.0
        made[f"advantages/{key.removeprefix('rewards/')}"] = (grid - baseline).reshape(rewards.shape)
    for i in range(4):
        record = {k.rpartition("/")[2]: v for k, v in given.inputs.items() if k.startswith(f"record/{i}/")}
        prompt = record["prompt"]
        answer = record.get("answer", np.zeros(o["max_new"], np.int64))
        text, silent = np.concatenate([prompt, answer]), len(prompt) - 1
        made |= {
            f"prepared/ids/{i}": text[:-1],
            f"prepared/labels/{i}": np.concatenate([np.full(silent, -100), answer]),
            f"prepared/log_probabilities/{i}": np.concatenate(
                [np.zeros(silent), record.get("log_probabilities", np.zeros(len(answer)))]
            ),
            f"prepared/advantage/{i}": np.asarray(record.get("advantage", 0.0)),
            f"prepared/reward/{i}": np.asarray(record.get("reward", 0.0)),
            f"prepared/answer_length/{i}": np.array(len(answer)),
            f"n_targets/policy/{i}": np.array(1),
            f"passes/{i}": np.array([[len(text) - 1, 1, 1, len(answer)]], np.float64),
        }
    rows = given.inputs["batch/reward"]
    labels, scores = given.inputs["batch/labels"], given.inputs["batch/scores/tokens"]
    loss, of_half, slope = 0.0, 0.0, np.zeros_like(scores)
    for row, t in np.argwhere(labels != -100):
        log_p = log_softmax(scores[row, t, :SIZE] / o["temperature"])  # the other rows of the table are never drawn
        label = labels[row, t]
        ratio = np.exp(log_p[label] - given.inputs["batch/log_probabilities"][row, t])
        advantage = given.inputs["batch/advantage"][row]
        loss -= advantage * ratio
        half = log_softmax(bfloat16(scores[row, t, :SIZE]) / o["temperature"])[label]
        of_half -= advantage * np.exp(half - given.inputs["batch/log_probabilities"][row, t])
        slope[row, t, :SIZE] += advantage * ratio * np.exp(log_p) / o["temperature"]
        slope[row, t, label] -= advantage * ratio / o["temperature"]
    lengths = given.inputs["batch/answer_length"].sum()
    for batch in ("batch", "none"):
        made[f"{batch}/log/reward"] = np.array([rows.sum(), len(rows)])
        made[f"{batch}/log/answer_length"] = np.array([lengths, len(rows)])
    made |= {
        "batch/loss/policy": np.array([loss, len(rows)]),
        "batch/mean": np.array(loss / len(rows) + BALANCE),
        "half/mean": np.array(of_half / len(rows) + BALANCE),
        "batch/slope/tokens": slope / len(rows),
        "none/loss/policy": np.array([-rows.sum(), len(rows)]),
        "none/mean": np.array(-rows.mean()),
    }
    return made
