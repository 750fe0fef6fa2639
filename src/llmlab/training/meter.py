"""The speed of a run: tokens a second over steady steps, and that against the machine's measured matmul peak."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import TypedDict

import torch

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import read_json
from llmlab.runs.record import cpu_name

WARMUP_STEPS = 3  # the first ones allocate memory, and compile where layers are compiled


class Meter:
    """Tokens and seconds between `mark`s; what lies between `pause` and `go` (validation, checkpoints) does not count."""

    def __init__(self, tokens_per_step: int, step: int, last_step: int):
        self.tokens_per_step = tokens_per_step
        # A short run would have no steady step otherwise.
        self.begin = step + min(WARMUP_STEPS, (last_step - step) // 4)
        self.tokens = 0
        self.seconds = 0.0
        self.recent = 0.0  # tokens a second between the last two marks
        self._step: int | None = None
        self._since = self._paused = 0.0

    def start(self, step: int, device: torch.device) -> None:
        """Call at the step `begin`: measuring starts behind the warm-up."""
        if device.type == "cuda":  # kernels run behind the code that launches them, so a clock needs this
            torch.cuda.synchronize(device)
        self._step, self._since = step, time.perf_counter()

    def pause(self) -> None:
        self._paused = time.perf_counter()

    def go(self) -> float:
        """Seconds since `pause`."""
        paused = time.perf_counter() - self._paused
        self._since += paused
        return paused

    def mark(self, step: int) -> None:
        """Work up to `step` is done (the caller has waited for the device)."""
        if self._step is None or step <= self._step:
            return
        now = time.perf_counter()
        # Two marks may fall on one tick of a coarse clock.
        tokens, seconds = (step - self._step) * self.tokens_per_step, max(now - self._since, 1e-9)
        self.recent = tokens / seconds
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self._step, self._since = step, now

    @property
    def tokens_per_second(self) -> float | None:
        """None before any steady step was measured."""
        return self.tokens / self.seconds if self.seconds else None


def mfu(flops_per_second: float, devices: int, device: torch.device, dtype: torch.dtype, cache: Path) -> float:
    """Share of the matmul peak of `devices` like this one (PaLM: Chowdhery et al. 2022, arXiv:2204.02311, where the peak is
    the data sheet's; here it is measured). A run that beats the measured peak (a noisy machine when it
    was measured) has it measured again, and raises it if need be: a share is at most 1."""
    each = flops_per_second / devices
    peak = matmul_peak(device, dtype, cache)
    if each > peak:
        peak = matmul_peak(device, dtype, cache, at_least=each)
    return each / peak


class Peak(TypedDict):
    """A measured peak in the cache."""

    flops_per_second: float


def matmul_peak(device: torch.device, dtype: torch.dtype, cache: Path, *, at_least: float = 0.0) -> float:
    """FLOP/s of the best square product of this device, dtype and number of threads; measured once, then kept in `cache`."""
    what = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads",
        str(dtype),
        torch.get_float32_matmul_precision(),  # "high" computes float32 products in TF32 on GPUs
        torch.__version__,
    )
    file = cache / f"peak-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.json"
    known = 0.0
    with contextlib.suppress(OSError, UserError):
        known = float(read_json(file, Peak)["flops_per_second"])
    if known > at_least:
        return known
    peak = max(known, at_least, measure_peak(device, dtype))
    cache.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps({"what": what, "flops_per_second": peak}))
    return peak


@torch.no_grad()
def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """The best of several sizes, each repeated for `seconds`."""
    best = 0.0
    for n in (2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        out = torch.empty(n, n, device=device, dtype=dtype)
        # Once before the clock runs: at its first product cuBLAS loads kernels and takes a workspace.
        torch.mm(a, b, out=out)
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            repeats = (
                10 if device.type == "cuda" else 1
            )  # so that launching and waiting weigh little beside the products
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, b, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, repeats * 2 * n**3 / (time.perf_counter() - start))
    return best


def peak_memory(device: torch.device) -> int:
    """Bytes: of the accelerator as torch allocated them, else the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage(2): kilobytes on Linux, bytes on macOS.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
