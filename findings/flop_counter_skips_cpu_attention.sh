#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts no FLOPs for scaled_dot_product_attention on CPU tensors, and all of them for the same
# call on the meta device.
#
# Behaviour. On a CPU scaled_dot_product_attention runs one fused operator, for which the counter has no formula; what it has
# no formula for it leaves out without a word. Meta tensors take the decomposed path, whose two products are counted. The
# linears of a layer are counted on both.
#
# Output seen (queries, keys, values of 1 x 2 heads x 4 tokens x width 8: two products of 2 * 2 * 4 * 4 * 8 = 512 FLOPs):
#   cpu:  attention 0, linear 1024
#   meta: attention 1024, linear 1024
#
# One would have guessed that the count belongs to the call, not to the device, as the numbers are those of the shapes. It
# matters because a formula for a model's FLOPs that is checked on a CPU against this counter agrees when it leaves the scores
# of attention out, and disagrees when it has them: the right count is the one on meta tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


seen = {}
for device in ("cpu", "meta"):
    q, k, v = (torch.zeros(1, 2, 4, 8, device=device) for _ in range(3))
    x, weight = torch.zeros(8, 8, device=device), torch.zeros(8, 8, device=device)
    seen[device] = flops(lambda: scaled_dot_product_attention(q, k, v)), flops(lambda: linear(x, weight))
    print(f"{device}: attention {seen[device][0]}, linear {seen[device][1]}")
ok = seen == {"cpu": (0, 1024), "meta": (1024, 1024)}
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
