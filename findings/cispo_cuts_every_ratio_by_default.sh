#!/usr/bin/env bash
# trl 1.16.0: GRPOTrainer with loss_type="cispo" and its own defaults multiplies every gradient by 0.2, and reports tokens as
# clipped of which none has moved.
#
# Behaviour. In the clipped losses epsilon_high is a distance from 1: ratios are cut at 1 + epsilon_high. With loss_type="cispo"
# it is the bound itself, min(ratio, epsilon_high). Unset it is the default of epsilon, 0.2, so that each token's weight is at
# most 0.2, also where the policy is still the one that wrote the answers and every ratio is 1. The help of the option says that
# it is another number there, and recommends 5; nothing refuses or warns of one below 1.
#
# Output seen (the first step of a small random GPT-2, where all ratios are 1: the norm of the gradient, over that of
# loss_type="dapo", and the share of tokens that are reported as clipped):
#   dapo                        1.00  clipped 0.00
#   cispo                       0.20  clipped 0.73
#   cispo, epsilon_high=0.28    0.28  clipped 0.73
#   cispo, epsilon_high=5.0     1.00  clipped 0.00
# (0.73 are the tokens of a positive advantage, the only ones that are counted; the others are cut as well.)
#
# One would have guessed that a loss that is chosen by name works by its defaults, that 0.28, as DAPO has it, means 1.28, and
# that nothing is clipped in a step from the policy itself. It matters because the run goes on and looks sound: only its gradient
# is a fifth of what it should be, beneath a clip of the norm, and with plain SGD or Adam's eps the steps are smaller; no ratio
# is ever told from another, as all of them are above the bound.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check trl==1.16.0
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import contextlib
import io
import os

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}
made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left")
dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
sizes = dict(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=1, pad_token_id=0, **dropouts)
settings = dict(
    max_steps=1, per_device_train_batch_size=8, num_generations=8, max_completion_length=6, beta=0.0, logging_steps=1,
    report_to="none", use_cpu=True, bf16=False, seed=0, max_grad_norm=1e9, save_strategy="no", disable_tqdm=True,
)


def first_step(**options):
    """(norm of the gradient, share of tokens that are reported as clipped)."""
    set_seed(0)  # the same model, and the same answers
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    trainer = GRPOTrainer(
        model,
        lambda completions, **_: [float(text.count("a") + len(text)) for text in completions],
        GRPOConfig(os.getcwd(), **settings, **options),
        train_dataset=Dataset.from_dict({"prompt": ["a b c"] * 8}),
        processing_class=tokenizer,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    (row,) = [row for row in trainer.state.log_history if "grad_norm" in row]
    return row["grad_norm"], row.get("cispo_clip_ratio", row.get("clip_ratio/region_mean"))


cases = {
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo"},
    "cispo, epsilon_high=0.28": {"loss_type": "cispo", "epsilon_high": 0.28},
    "cispo, epsilon_high=5.0": {"loss_type": "cispo", "epsilon_high": 5.0},
}
seen = {name: first_step(**options) for name, options in cases.items()}
whole = seen["dapo"][0]
for name, (norm, clipped) in seen.items():
    print(f"{name:<27} {norm / whole:.2f}  clipped {clipped:.2f}")
shares = [norm / whole for norm, _ in seen.values()]
ok = all(abs(share - wanted) < 1e-3 for share, wanted in zip(shares, (1, 0.2, 0.28, 1)))
ok &= [clipped > 0 for _, clipped in seen.values()] == [False, True, True, False]
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
