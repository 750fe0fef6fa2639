"""Accelerators as their makers' data sheets have them, and what a training run takes of them.

Peaks are dense (without the factor 2 of structured sparsity), accumulated in float32. Memory is in units of 10^9 bytes:
what a driver shows beyond it is what the CUDA context and fragmentation take. Watts are of the whole board at its limit,
shared where a board is several of what trainer.devices counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.errors import UserError
from llmlab.registry import near

TERA = 10**12


@dataclass(frozen=True)
class Accelerator:
    """half, single: 10^12 FLOP/s in bfloat16 or float16, and in float32 as torch multiplies by default (no TF32)."""

    name: str
    half: float
    single: float
    gigabytes: float
    watts: float
    source: str
    bfloat16: bool = True

    def peak(self, precision: str) -> float:
        """FLOP/s of products under `precision`. UserError where the device lacks its numbers."""
        if precision.startswith("bf16") and not self.bfloat16:
            raise UserError(f"precision={precision}: device={self.name} has no bfloat16; choose precision=16-mixed")
        return TERA * (self.single if precision == "32-true" else self.half)

    @property
    def memory(self) -> int:
        return int(self.gigabytes * 10**9)


ACCELERATORS = {
    a.name: a
    for a in (
        # bfloat16 came with Ampere (compute capability 8.0): Volta and Turing have float16 only.
        Accelerator("v100", 125, 15.7, 32, 300, "NVIDIA V100 data sheet, SXM2", bfloat16=False),
        Accelerator("t4", 65, 8.1, 16, 70, "NVIDIA T4 data sheet", bfloat16=False),
        Accelerator("a10", 125, 31.2, 24, 150, "NVIDIA A10 data sheet"),
        Accelerator("a100_40gb", 312, 19.5, 40, 400, "NVIDIA A100 data sheet, SXM"),
        Accelerator("a100", 312, 19.5, 80, 400, "NVIDIA A100 data sheet, SXM 80 GB"),
        Accelerator("l4", 121, 30.3, 24, 72, "NVIDIA L4 data sheet"),
        Accelerator("l40s", 362, 91.6, 48, 350, "NVIDIA L40S data sheet"),
        # GeForce cards sum float16 products in float32 at half the rate of sums in float16, for which
        # the larger figures are.
        Accelerator("rtx3090", 71, 35.6, 24, 350, "NVIDIA GA102 white paper"),
        Accelerator("rtx4090", 165.2, 82.6, 24, 450, "NVIDIA Ada GPU architecture white paper"),
        Accelerator("h100", 989.4, 66.9, 80, 700, "NVIDIA H100 architecture white paper, SXM5"),
        Accelerator("h100_pcie", 756, 51.2, 80, 350, "NVIDIA H100 data sheet, PCIe"),
        Accelerator("h200", 989.4, 66.9, 141, 700, "NVIDIA H200 data sheet, SXM"),
        Accelerator("b200", 2250, 75, 180, 1000, "NVIDIA HGX B200 data sheet"),
        # torch sees the two dies of a board as two devices, so all is half of the data sheet's.
        Accelerator("mi250x", 191.5, 23.95, 64, 280, "AMD Instinct MI250X data sheet, one of the two dies of a board"),
        Accelerator("mi300x", 1307.4, 163.4, 192, 750, "AMD Instinct MI300X data sheet"),
    )
}


def accelerator(name: str) -> Accelerator:
    if name not in ACCELERATORS:
        raise UserError(f"device={name}: there is no such accelerator here; {near(name, ACCELERATORS)}")
    return ACCELERATORS[name]


@dataclass(frozen=True)
class Run:
    """A budget on so many devices: what it computes, and what that takes. kilowatt_hours: of the boards at their limit."""

    tokens: int
    flops: float
    seconds: float
    tokens_per_second: float
    kilowatt_hours: float


def run(tokens: int, flops_per_token: float, device: Accelerator, count: int, precision: str, mfu: float) -> Run:
    """mfu: share of the devices' peak at which the model's own FLOPs are done (PaLM, arXiv:2204.02311, appendix B)."""
    rate = mfu * device.peak(precision) * count
    seconds = tokens * flops_per_token / rate
    energy = seconds * device.watts * count / 3.6e6
    return Run(tokens, tokens * flops_per_token, seconds, rate / flops_per_token, energy)
