#!/usr/bin/env bash
# torch 2.13.0, FSDP2: the first forward of a module under fully_shard fails under torch.inference_mode; after one forward under
# no_grad the same call works.
#
# Behaviour. fully_shard allocates the memory into which parameters are gathered at the first forward, and keeps it. Allocated
# under inference_mode it holds inference tensors, whose version counter FSDP2 then asks for: RuntimeError, in this forward and in
# each later one, training included. Allocated in any other mode it serves forwards under inference_mode as well. Without
# fully_shard a module may begin under it.
#
# Output seen (one process, gloo; forwards one after the other, the last with a backward where it trains):
#   sharded, train:                            works
#   sharded, no_grad, inference_mode, train:   works
#   sharded, inference_mode:                   Inference tensors do not track version counter.
#   sharded, inference_mode, train:            Inference tensors do not track version counter.
#   not sharded, inference_mode, train:        works
#
# One would have guessed that inference_mode, which is no_grad with less to keep, works wherever no_grad does, and that a forward
# does not depend on which other one was before it. It matters because the first forward is often such a one: an evaluation of a
# loaded model, a check before the fit, the rollout of a policy. In a script that trains first the same line has always worked.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/rendezvous", rank=0, world_size=1)
x = torch.ones(2, 4)


def outcome(*modes, sharded=True):
    module = nn.Linear(4, 4)
    if sharded:
        fully_shard(module)
    said = "works"
    for mode in modes:
        try:
            with MODES[mode]():
                y = module(x)
            if mode == "train":
                y.sum().backward()
        except RuntimeError as e:
            said = str(e).splitlines()[0]
    return said


MODES = {"train": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
seen = {
    "sharded, train": outcome("train"),
    "sharded, no_grad, inference_mode, train": outcome("no_grad", "inference_mode", "train"),
    "sharded, inference_mode": outcome("inference_mode"),
    "sharded, inference_mode, train": outcome("inference_mode", "train"),
    "not sharded, inference_mode, train": outcome("inference_mode", "train", sharded=False),
}
dist.destroy_process_group()
for case, said in seen.items():
    print(f"{case + ':':<43}{said}")
failed = [case for case, said in seen.items() if "Inference tensors do not track" in said]
ok = failed == ["sharded, inference_mode", "sharded, inference_mode, train"]
ok &= all(said == "works" for case, said in seen.items() if case not in failed)
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
