"""Texts longer than those of training."""

import argparse
import datetime
import inspect
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from families import spec
from torch.nn import functional as F

from llmlab.model.build import build_model

LENGTH = 32


@pytest.mark.slow  # it trains a model: 15 s
def test_dual_chunk_keeps_its_loss_at_four_times_the_length_where_rope_does_not():
    """One set of weights, trained with rope at one length, on characters of the standard library that it has not seen.

    Measured, with Python 3.11: 2.01 at that length. The four stretches of four times the length: rope 1.99, 2.52, 2.92, 2.93;
    dual_chunk 1.99, 2.00, 2.05, 2.01; YaRN 2.09, 2.16, 2.19, 2.15; dual_chunk with YaRN 2.09, 2.20, 2.30, 2.32.
    """
    text = "".join(Path(m.__file__).read_text() for m in (argparse, subprocess, threading, inspect, datetime))
    characters = sorted(set(text))
    data = torch.tensor([characters.index(c) for c in text])
    train, held = data[:-40_000], data[-40_000:]
    sizes = ("model.dim=64", "model.n_layers=2", "model.n_heads=4", f"model.max_positions={LENGTH}")
    own = ("model=llama3", *sizes, f"model.vocab_size={len(characters)}", "position.theta=10000")
    model = build_model(spec(*own), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=300, pct_start=0.07)
    chance = torch.Generator().manual_seed(0)
    for _ in range(300):
        starts = torch.randint(len(train) - LENGTH - 1, (32, 1), generator=chance)
        batch = train[starts + torch.arange(LENGTH + 1)]
        logits = model({"ids": batch[:, :-1]}).heads["tokens"]
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    end = (len(held) - 1) // (4 * LENGTH) * 4 * LENGTH

    @torch.no_grad()
    def losses(length: int, *choice: str) -> torch.Tensor:
        """Mean loss at each position of texts that long: (length,)."""
        other = build_model(spec(*own, *choice), 1).eval()
        other.load_state_dict(model.state_dict())
        ids, targets = held[:end].view(-1, length), held[1 : end + 1].view(-1, length)
        logits = torch.cat([other({"ids": rows}).heads["tokens"] for rows in ids.split(16)])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(0)

    yarn = ("position.scaling=yarn", "position.factor=4")
    dual_chunk = ("position=dual_chunk", "kernel=eager")
    trained = losses(LENGTH)
    torch.testing.assert_close(losses(LENGTH, *dual_chunk), trained, rtol=0, atol=1e-4)
    assert trained.mean() < 2.2, "it has learnt: letters by their frequencies give 3.0"
    plain, chunks, stretched, both = (
        losses(4 * LENGTH, *choice).view(4, LENGTH).mean(1) for choice in ((), dual_chunk, yarn, (*dual_chunk, *yarn))
    )
    torch.testing.assert_close(plain[0], chunks[0], rtol=0, atol=1e-4)
    assert chunks.max() < trained.mean() + 0.05, "in each stretch of that length"
    assert plain[1:].min() > trained.mean() + 0.25 and plain.mean() > trained.mean() + 0.3
    assert chunks.mean() < stretched.mean() < plain.mean() and both.mean() < plain.mean()
