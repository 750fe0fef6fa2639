"""Observer of kernels, on a CPU; functions that PyTorch has for GPUs only are replaced (`llmlab.check.parts.stand_in`).

Inputs: `q`, `k`, `other_q` (B, N, S, H) and `v` (B, N, S, H'); a case with K key heads uses the first K heads of k and v, and
one with T queries the last T tokens of q; `scale`; `sink` (N,); `own_bias` (B, N, S, S), whose first row is the bias where all
rows share one; and for each CASE of `CASES` its `CASE.seen` (B, T, S) and `CASE.key_heads`, which is K.

Outputs, for each CASE that the kernel's `check` does not refuse: `CASE` (B, N, T, H'), 0 where a query sees nothing;
`CASE.kept`, if the kernel says what it keeps on a GPU: bytes in float32 and in bfloat16; `CASE.fused`, of a kernel for GPUs:
1 if it calls a function that PyTorch has for GPUs only. Also `abilities` and `trains`: 1 for each of `ABILITIES` and of
`TRAINS` that it does not refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check.subject import CheckFailed
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.visibility import Visible
from llmlab.slots import Context, Score, Term

ROWS, HEADS, WIDTH, V_WIDTH, LENGTH, SCALE = 2, 6, 4, 5, 7, 0.4
ABILITIES = ("softcap", "sink", "bias", "regions", "dropout")
TRAINS = (("cpu", "32-true"), ("cpu", "bf16-mixed"), ("cuda", "32-true"), ("cuda", "bf16-mixed"))
DOCUMENTS = torch.tensor([[4, 4, 4, 1, 1, 4, 4], [3, 3, 3, 3, 3, 3, 5]])
IN_ORDER = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [2, 2, 2, 2, 2, 3, 5]])
VALID = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
ALLOWED = torch.arange(ROWS * LENGTH * LENGTH).view(ROWS, LENGTH, LENGTH) % 3 > 0


@dataclass(frozen=True)
class KernelCase:
    """One call: the mask, the window's reach to the left, what the context has, and what the scores have."""

    mask: str = "causal"
    left: int | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    queries: int = LENGTH
    key_heads: int = HEADS
    softcap: float | None = None
    sink: bool = False
    bias: str = ""  # or "shared" by all rows, or their "own"
    regions: int = 0  # 0: one term; 2 or 3: dimensions of the region in which a second term counts

    def visible(self) -> Visible:
        mask = registry.load("mask", self.mask, {})()
        window = registry.load("window", *(("full", {}) if self.left is None else ("sliding", {"left": self.left})))()
        return Visible(mask, window, Context(self.queries, LENGTH - self.queries, **self.context))  # type: ignore[arg-type]

    def seen(self) -> Tensor:
        """(B, T, S) bool. A query that would see only padding sees itself."""
        at = torch.arange(LENGTH)
        seen = torch.ones(ROWS, LENGTH, LENGTH, dtype=torch.bool)
        if self.mask == "causal":
            seen = seen & (at[None] <= at[:, None])
        if self.left is not None:
            seen = seen & (at[:, None] - at[None] < self.left)
        if "documents" in self.context:
            seen = seen & (self.context["documents"][:, :, None] == self.context["documents"][:, None])
        if "valid" in self.context:
            shown = seen & self.context["valid"][:, None]
            seen = torch.where(shown.any(-1, keepdim=True), shown, seen & torch.eye(LENGTH, dtype=torch.bool))
        if "allowed" in self.context:
            seen = seen & self.context["allowed"]
        return seen[:, LENGTH - self.queries :]

    def flags(self) -> dict[str, bool]:
        asked = (self.softcap is not None, self.sink, bool(self.bias), bool(self.regions), False)
        return dict(zip(ABILITIES, asked, strict=True))


CASES = {
    "causal": KernelCase(),
    "full": KernelCase("bidirectional", key_heads=3),
    "one_key_head": KernelCase(key_heads=1),
    "window": KernelCase(left=3, key_heads=3),
    "padded": KernelCase(context={"valid": VALID}),
    "padded_full": KernelCase("bidirectional", context={"valid": VALID}, key_heads=3),
    "packed": KernelCase(context={"documents": IN_ORDER}, key_heads=3),
    "packed_full": KernelCase("bidirectional", context={"documents": IN_ORDER}),
    "returning": KernelCase(context={"documents": DOCUMENTS}),
    "allowed": KernelCase(context={"allowed": ALLOWED}),
    "one_new": KernelCase(queries=1),
    "three_new": KernelCase(queries=3, key_heads=3),
    "bias": KernelCase("bidirectional", bias="shared"),
    "own_bias": KernelCase(bias="own", key_heads=3),
    "padded_bias": KernelCase(bias="own", context={"valid": VALID}),
    "softcap": KernelCase(softcap=0.5),
    "softcap_bias": KernelCase(softcap=0.7, bias="shared", left=4),
    "sink": KernelCase(sink=True, left=2),
    "regions": KernelCase(regions=2, key_heads=3),
    "own_regions": KernelCase("bidirectional", regions=3),
}


def region_of(case: KernelCase) -> Tensor:
    """(B, S, S) bool: pairs more than one apart; if each row has its own region, more than two apart in row 1."""
    apart = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    return torch.stack([apart > 1, apart > (2 if case.regions == 3 else 1)])


def observe(setting: Setting) -> Observed:
    # Not at the top: llmlab.check.parts imports the check that calls this observer.
    from llmlab.check.parts.stand_in import gpu_calls

    kernel = build(setting)
    inputs = {name: 1.5 * uniform(name, ROWS, HEADS, LENGTH, WIDTH).float() for name in ("q", "k", "other_q")}
    inputs["v"] = uniform("v", ROWS, HEADS, LENGTH, V_WIDTH).float()
    inputs["scale"] = torch.tensor(SCALE).double()
    inputs["sink"] = uniform("sink", HEADS).float()
    inputs["own_bias"] = uniform("own_bias", ROWS, HEADS, LENGTH, LENGTH).float()
    inputs |= {f"{name}.seen": case.seen() for name, case in CASES.items()}
    inputs |= {f"{name}.key_heads": torch.tensor(case.key_heads) for name, case in CASES.items()}
    abilities = [_allows(kernel.check, **{a: a == ability for a in ABILITIES}) for ability in ABILITIES]
    trains = [not hasattr(kernel, "check_training") or _allows(kernel.check_training, *one) for one in TRAINS]
    outputs = {"abilities": torch.tensor(abilities), "trains": torch.tensor(trains)}
    call = _called_as_on_gpu if gpu_calls(kernel) else _called
    for name, case in CASES.items():
        if _allows(kernel.check, **case.flags()):
            outputs |= call(kernel, name, case, inputs)
    return Observed(given(setting, inputs), arrays(outputs))


def _allows(check: Any, *args: Any, **options: Any) -> bool:
    try:
        check(*args, **options)
    except ValueError:
        return False
    return True


def _called_as_on_gpu(kernel: Any, name: str, case: KernelCase, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from llmlab.check.parts.stand_in import replaced_by_reference

    outputs: dict[str, Tensor] = {}
    try:
        with replaced_by_reference(kernel):
            outputs = _called(kernel, name, case, inputs)
    except CheckFailed:
        if not outputs:
            raise
        return {**outputs, f"{name}.fused": torch.tensor(0)}  # it called no function for GPUs
    return {**outputs, f"{name}.fused": torch.tensor(1)}


@torch.no_grad()
def _called(kernel: Any, name: str, case: KernelCase, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new = LENGTH - case.queries
    q, other_q = (inputs[key][:, :, new:] for key in ("q", "other_q"))
    k, v = (inputs[key][:, : case.key_heads] for key in "kv")
    bias = {"": None, "shared": inputs["own_bias"][0], "own": inputs["own_bias"]}[case.bias]
    score, sink = Score(SCALE, case.softcap), inputs["sink"] if case.sink else None
    terms = [Term(q, k)]
    if case.regions:
        region = region_of(case)
        terms = [Term(q, k, ~region), Term(other_q, k, region)] if case.regions == 3 else [
            Term(q, k, ~region[0]), Term(other_q, k, region[0])]  # fmt: skip
    visible = case.visible()
    outputs = {name: kernel(terms, v, kernel.lower(visible), bias, score, sink, False)}
    if hasattr(kernel, "kept"):
        kept = []
        for dtype in (torch.float32, torch.bfloat16):
            cast = [Term(t.q_BNTH.to(dtype), t.k_BKSH.to(dtype), t.region) for t in terms]
            kept.append(kernel.kept(visible, cast, v.to(dtype), bias, score))
        outputs[f"{name}.kept"] = torch.tensor(kept)
    return outputs
