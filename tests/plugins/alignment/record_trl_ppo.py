"""Rollouts and steps of TRL's PPOTrainer, written to trl_ppo.json and trl_ppo.safetensors beside this file.

    python record_trl_ppo.py

The trainer left TRL with 1.13: trl 1.12.0 is installed into a folder of its own, which comes first on the path of a process of
its own; the other packages are those that are there.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TRL = "1.12.0"
HERE = Path(__file__)
PAD, EOS, SIZE, ANSWER = 0, 1, 16, 5
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [12], [13, 14], [15, 3, 2]]
LLAMA = {
    "vocab_size": SIZE, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "eos_token_id": EOS, "pad_token_id": PAD, "max_position_embeddings": 32, "initializer_range": 0.6,
    "tie_word_embeddings": False,
}  # fmt: skip
COMMON = {
    "temperature": 0.8, "kl_coef": 0.3, "gamma": 0.9, "lam": 0.8, "cliprange": 0.15, "cliprange_value": 0.1, "vf_coef": 0.4,
}  # fmt: skip
CASES = {
    # Answers go on behind an end of text, so that all are as long as may be.
    "whole": {"kl_estimator": "k1", "missing_eos_penalty": 0.7},
    "whole_k3": {"kl_estimator": "k3"},
    "ended": {"kl_estimator": "k1", "stop_token": "eos", "missing_eos_penalty": 0.7},
}
STEPS = {"whole": (0, 3), "ended": (3,)}  # of which the weights and gradients are kept
ROLLOUT = ("responses", "logprobs", "ref_logprobs", "values", "scores", "advantages", "returns")


def main():
    with TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, f"trl=={TRL}"]
        subprocess.run(install, check=True)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        subprocess.run([sys.executable, str(HERE), "record"], check=True, env={**os.environ, "PYTHONPATH": path})


def record():
    import torch
    import transformers
    import trl
    from safetensors.torch import save_file

    assert trl.__version__ == TRL, f"{trl.__file__} is {trl.__version__}"
    tensors, cases = {}, {}
    for name, how in CASES.items():
        # A token of padding that is drawn by chance is the end of an answer to TRL.
        for seed in itertools.count():
            steps, found = one_rollout(how, seed)
            if usable(found["responses"], "stop_token" in how):
                break
        cases[name] = {"options": how, "steps": {at: steps[at] for at in STEPS.get(name, ())}}
        for key, tensor in found.items():
            if not key[0].isdigit() or int(key[0]) in STEPS.get(name, ()):
                tensors[f"{name}.{key}"] = tensor
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    text = {"versions": versions, "prompts": PROMPTS, "model": LLAMA, "common": COMMON, "cases": cases}
    HERE.with_name("trl_ppo.json").write_text(json.dumps(text, indent=1) + "\n")
    save_file(tensors, HERE.with_name("trl_ppo.safetensors"))


def usable(responses, stops):
    rows = responses.tolist()
    kept = [row[: row.index(EOS)] if EOS in row and stops else row for row in rows]
    ends = [row.index(EOS) for row in rows if EOS in row]
    enough = sum(0 < at < ANSWER - 1 for at in ends) >= (2 if stops else 1) and len(ends) < len(rows)
    return enough and not any(PAD in row for row in kept)


def one_rollout(how, seed):
    """(what the steps are as text, tensors) of two epochs of two mini-batches over one rollout."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.manual_seed(seed)
    policy, reference = (LlamaForCausalLM(LlamaConfig(**LLAMA)) for _ in range(2))
    critic, reward = (LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1)) for _ in range(2))
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(SIZE)}, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=f"t{EOS}", pad_token=f"t{PAD}", unk_token="t2", padding_side="left"
    )
    learning = {"policy": policy, "critic": critic}
    tensors = {f"reference.{name}": p.detach().clone() for name, p in reference.named_parameters()}
    steps = []
    with TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False, save_strategy="no",
            disable_tqdm=True, seed=seed, per_device_train_batch_size=3, gradient_accumulation_steps=2, num_mini_batches=2,
            num_ppo_epochs=2, total_episodes=len(PROMPTS), num_sample_generations=0, response_length=ANSWER,
            learning_rate=0.02, **COMMON, **how,
        )  # fmt: skip
        rows = Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS])
        made = PPOTrainer(args, tokenizer, policy, reference, reward, rows, critic)
        backward, whiten = made.accelerator.backward, ppo_trainer.masked_whiten

        def whitened(values, mask, shift_mean=True):
            tensors["raw_advantages"] = values.clone()
            return whiten(values, mask, shift_mean)

        def hooked(loss):
            of = sys._getframe(1).f_locals  # train() keeps all that it computes to itself
            if not steps:
                tensors.update({name: of[name].detach().clone() for name in (*ROLLOUT, "queries")})
            parameters = {f"{role}.{n}": p for role, model in learning.items() for n, p in model.named_parameters()}
            before = {n: 0.0 if p.grad is None else p.grad.clone() for n, p in parameters.items()}
            tensors.update({f"{len(steps)}.{n}": p.detach().clone() for n, p in parameters.items()})
            backward(loss)
            # It divides by the number of accumulated micro-batches; here each is a mini-batch.
            slopes = {n: (p.grad - before[n]) * args.gradient_accumulation_steps for n, p in parameters.items()}
            tensors.update({f"{len(steps)}.slope.{n}": slope for n, slope in slopes.items()})
            terms = {name: of[name].item() for name in ("loss", "pg_loss", "vf_loss")}
            steps.append({"rows": of["micro_batch_inds"].tolist(), **terms})

        made.accelerator.backward, ppo_trainer.masked_whiten = hooked, whitened
        try:
            made.train()
        finally:
            ppo_trainer.masked_whiten = whiten
    return steps, tensors


if __name__ == "__main__":
    record() if sys.argv[1:] == ["record"] else main()
