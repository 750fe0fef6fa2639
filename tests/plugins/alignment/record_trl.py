"""Losses and gradients of TRL's GRPO and RLOO on given log-probabilities, written to trl.json beside this file.

python record_trl.py        with trl 1.16.0 installed
"""

import json
import types
from collections import defaultdict
from pathlib import Path

import torch
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

CASES = {
    "grpo": {"loss_type": "grpo", "beta": 0.04},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    # Its bound is of the ratio itself, not of how much it is above 1.
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.25},
    "rloo": {},
}
LENGTHS, LONGEST = (3, 5, 1, 4), 5
ADVANTAGES = [1.25, -0.5, 0.75, -1.5]


class Stub(types.SimpleNamespace):
    """A trainer with what its loss reads, and no model: log-probabilities are given."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.now, torch.zeros_like(self.now), None


class Alone:
    num_processes, sync_gradients = 1, True

    def reduce(self, x, reduction=None):
        return x

    gather = gather_for_metrics = reduce


def main():
    torch.manual_seed(0)
    shape = (len(LENGTHS), LONGEST)
    then = -torch.rand(shape, dtype=torch.float64) * 2
    now = then + 0.3 * torch.randn(shape, dtype=torch.float64)
    reference = then + 0.2 * torch.randn(shape, dtype=torch.float64)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).to(torch.float64)
    found = {"trl": trl.__version__, "lengths": LENGTHS, "advantages": ADVANTAGES, "cases": {}}
    for name, values in (("now", now), ("then", then), ("reference", reference)):
        found[name] = [row[:n].tolist() for row, n in zip(values, LENGTHS, strict=True)]
    for name, case in CASES.items():
        leaf = now.clone().requires_grad_()
        stub = Stub(
            now=leaf, beta=0.0, epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token", aux_loss_enabled=False,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
            max_completion_length=LONGEST, current_gradient_accumulation_steps=1, accelerator=Alone(),
            model=types.SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
            args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        )  # fmt: skip
        vars(stub).update(case)
        ids = torch.zeros(shape, dtype=torch.int64)
        inputs = {
            "prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask,
            "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64), "old_per_token_logps": then,
            "old_logps": (then * mask).sum(1), "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        loss = (RLOOTrainer if name == "rloo" else GRPOTrainer)._compute_loss(stub, None, inputs)
        (slope,) = torch.autograd.grad(loss, leaf)
        found["cases"][name] = {
            "loss": loss.item(),
            "slope": [row[:n].tolist() for row, n in zip(slope, LENGTHS, strict=True)],
        }
    Path(__file__).with_name("trl.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
