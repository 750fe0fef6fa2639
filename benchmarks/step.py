"""Tokens a second of the default experiment, beside a loop written by hand for the same model, in turn in one run.

    python benchmarks/step.py [--rounds 3] [--steps 120] [OVERRIDE ...]

The peer is plain PyTorch: a LLaMA of the same sizes in 60 lines, fused AdamW, clipping, random windows of the same
token stream. Each side runs in a process of its own; the two alternate, and the ratio of the medians is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARMUP = 10


def by_hand(steps: int, overrides: list[str]) -> float:
    """Tokens a second of the hand-written loop."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    import llmlab
    from llmlab.config.schema import Data, Tokenizer
    from llmlab.data.prepare import prepare

    cfg = llmlab.compose(overrides)
    corpus = prepare(Data(**cfg.data), Tokenizer(**cfg.tokenizer))
    m, seq, batch = cfg.model, cfg.data.seq_len, cfg.train.batch_size
    vocab = -(-corpus.vocabulary.size // 64) * 64
    width, kv = m.dim // m.n_heads, m.n_kv_heads

    class RMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(m.dim))

        def forward(self, x):
            return F.rms_norm(x, (m.dim,), self.weight, m.norm_eps)

    def turn(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = RMSNorm(), RMSNorm()
            self.q, self.o = (nn.Linear(m.dim, m.dim, bias=False) for _ in range(2))
            self.k, self.v = (nn.Linear(m.dim, kv * width, bias=False) for _ in range(2))
            self.gate, self.up = (nn.Linear(m.dim, m.ffn_dim, bias=False) for _ in range(2))
            self.down = nn.Linear(m.ffn_dim, m.dim, bias=False)

        def forward(self, x, cos, sin):
            h = self.norm1(x)
            q, k, v = (f(h).view(*x.shape[:2], -1, width).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = turn(q, cos, sin), turn(k, cos, sin)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv != m.n_heads)
            x = x + self.o(o.transpose(1, 2).flatten(2))
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(vocab, m.dim)
            self.blocks = nn.ModuleList(Block() for _ in range(m.n_layers))
            self.norm, self.head = RMSNorm(), nn.Linear(m.dim, vocab, bias=False)
            angles = torch.arange(seq)[:, None] / 500000.0 ** (torch.arange(0, width, 2) / width)
            self.cos, self.sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

        def forward(self, ids):
            x = self.table(ids)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return self.head(self.norm(x))

    torch.manual_seed(1)
    model = Llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    stream, rng = np.asarray(corpus.train.tokens), np.random.default_rng(1)
    mixed = str(cfg.precision) == "bf16-mixed"
    for step in range(steps):
        if step == WARMUP:
            start = time.perf_counter()
        at = rng.integers(0, len(stream) - seq - 1, batch)
        rows = torch.from_numpy(np.stack([stream[i : i + seq + 1] for i in at]).astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()
    return (steps - WARMUP) * batch * seq / (time.perf_counter() - start)


def by_llmlab(steps: int, overrides: list[str]) -> float:
    """Tokens a second of `llmlab train`, as run.json has it: over steady steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        quiet = ["train.validate_every=1000000", "train.checkpoint_every=1000000", "train.sample=false"]
        quiet += ["train.validation_batches=1", f"trainer.max_steps={steps}", f"hydra.run.dir={run}"]
        command = [sys.executable, "-m", "llmlab", "train", *overrides, *quiet]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr or done.stdout)
        return json.loads((run / "run.json").read_text())["tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--by-hand", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    if a.by_hand:
        print(by_hand(a.steps, a.overrides))
        return
    hand, ours = [], []
    for i in range(a.rounds):
        command = [sys.executable, __file__, "--by-hand", "--steps", str(a.steps), *a.overrides]
        hand.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
        ours.append(by_llmlab(a.steps, a.overrides))
        print(f"round {i + 1}: by hand {hand[-1]:,.0f} tokens/s, llmlab {ours[-1]:,.0f}", flush=True)
    ratio = statistics.median(ours) / statistics.median(hand)
    print(f"medians: by hand {statistics.median(hand):,.0f}, llmlab {statistics.median(ours):,.0f}; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
