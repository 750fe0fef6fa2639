"""Throughput without pauses, and the share of what the machine can do."""

import time

import torch

from llmlab.training import meter

CPU = torch.device("cpu")


def test_pauses_and_the_warm_up_do_not_count():
    assert meter.Meter(100, 7, 9).begin == 7
    watch = meter.Meter(100, 0, 50)
    assert watch.begin == 3
    watch.mark(2)
    assert watch.tokens_per_second is None
    watch.start(3, CPU)
    time.sleep(0.05)
    watch.pause()
    time.sleep(0.3)
    watch.go()
    time.sleep(0.05)
    watch.mark(5)
    assert 0.1 <= watch.seconds < 0.25
    assert watch.tokens == 200


def test_mfu_is_at_most_one_and_the_peak_is_measured_once(tmp_path, monkeypatch):
    measured = iter([1e9, 2e9, 3e9])
    monkeypatch.setattr(meter, "measure_peak", lambda *_: next(measured))
    assert meter.mfu(0.5e9, 1, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(0.5e9, 1, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(1.0e9, 2, CPU, torch.float32, tmp_path) == 0.5
    assert meter.mfu(1.5e9, 1, CPU, torch.float32, tmp_path) == 0.75  # beaten: measured again
    assert meter.mfu(9e9, 1, CPU, torch.float32, tmp_path) == 1.0


def test_the_measured_peak_is_that_of_a_matmul():
    n = 512
    a = torch.randn(n, n)
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    rate = 5 * 2 * n**3 / (time.perf_counter() - start)
    assert meter.measure_peak(CPU, torch.float32, seconds=0.05) > rate / 4
