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
    """One set of weights, trained with rope at one length, on characters of the standard library that it has not seen."""
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

    @torch.no_grad()
    def loss(length: int, *choice: str) -> float:
        other = build_model(spec(*own, *choice), 1).eval()
        other.load_state_dict(model.state_dict())
        end = (len(held) - 1) // (4 * LENGTH) * 4 * LENGTH
        ids, targets = held[:end].view(-1, length), held[1 : end + 1].view(-1, length)
        logits = torch.cat([other({"ids": rows}).heads["tokens"] for rows in ids.split(16)])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()

    dual_chunk = ("position=dual_chunk", "kernel=eager")
    trained = loss(LENGTH)
    assert loss(LENGTH, *dual_chunk) == pytest.approx(trained, abs=1e-4)
    assert trained < 2.2, "it has learnt: letters by their frequencies give 3.0"
    assert loss(4 * LENGTH, *dual_chunk) < trained + 0.05
    assert loss(4 * LENGTH) > trained + 0.3
