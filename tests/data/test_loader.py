import itertools

import numpy as np
import pytest
import torch

from llmlab.data import Stream, Windows
from llmlab.data.loader import train_loader, validation_loader
from llmlab.data.order import index
from llmlab.errors import UserError

SEED, BATCH, STEPS = 5, 8, 7


class Fixed:
    """Every token is a target. `prepared` counts the calls."""

    fixed_counts = True

    def __init__(self):
        self.prepared = 0

    def prepare(self, sample, rng):
        self.prepared += 1
        return {"ids": sample["tokens"][:-1], "labels": sample["tokens"][1:], "noise": rng.integers(1 << 30)}

    def targets(self, prepared):
        return {"nll": int((prepared["labels"] != -100).sum())}


class Varying(Fixed):
    """As many targets as the sample's own randomness says."""

    fixed_counts = False

    def prepare(self, sample, rng):
        prepared = super().prepare(sample, rng)
        hidden = rng.random(len(prepared["labels"])) < rng.random()
        return {**prepared, "labels": np.where(hidden, -100, prepared["labels"])}


@pytest.fixture
def windows():
    return Windows(Stream(np.arange(20 * 6 + 1, dtype=np.uint16), np.array([0])), 6)  # 20: 7 steps are 2.8 epochs


def load(windows, objective, micro=BATCH, world=1, rank=0, accumulate=1, **options):
    return list(
        train_loader(
            windows,
            objective,
            SEED,
            BATCH,
            micro,
            rank=rank,
            world=world,
            accumulate=accumulate,
            steps=STEPS,
            **options,
        )
    )


def steps_of(windows, objective, micro, world, accumulate):
    """Batches of each step, put together from all ranks and micro-batches."""
    ranks = [load(windows, objective(), micro, world, rank, accumulate) for rank in range(world)]
    for k in range(STEPS):
        parts = [ranks[r][k * accumulate + j] for j, r in itertools.product(range(accumulate), range(world))]
        assert len({int(p["counts"]["nll"]) for p in parts}) == 1
        whole = {name: torch.cat([p[name] for p in parts]) for name in parts[0] if name != "counts"}
        yield {**whole, "counts": parts[0]["counts"]}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name] if name == "counts" else torch.equal(a[name], b[name]), name


def test_a_step_is_a_stretch_of_the_shuffled_stream(windows):
    batches = load(windows, Fixed())
    firsts = [int(row[0]) // 6 for batch in batches for row in batch["ids"]]
    assert firsts == [index(SEED, p, 20) for p in range(STEPS * BATCH)]
    assert sorted(firsts[:20]) == sorted(firsts[20:40]) == list(range(20))


@pytest.mark.parametrize("objective", [Fixed, Varying])
@pytest.mark.parametrize(("micro", "world", "accumulate"), [(4, 1, 2), (2, 1, 4), (4, 2, 1), (2, 2, 2), (1, 4, 2)])
def test_ranks_and_accumulation_do_not_change_a_step(windows, objective, micro, world, accumulate):
    for one, many in zip(
        load(windows, objective()), steps_of(windows, objective, micro, world, accumulate), strict=True
    ):
        same(one, many)
        assert int(one["counts"]["nll"]) == int((one["labels"] != -100).sum())


def test_counts_differ_between_steps(windows):
    assert len({int(b["counts"]["nll"]) for b in load(windows, Varying())}) > 3


@pytest.mark.parametrize("start", [0, 1, 4, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_gives_the_rest(windows, start, workers):
    whole = load(windows, Varying(), 2, accumulate=4)
    rest = load(windows, Varying(), 2, accumulate=4, start_step=start, num_workers=workers)
    assert len(rest) == (STEPS - start) * 4
    for a, b in zip(whole[start * 4 :], rest, strict=True):
        same(a, b)


def test_length_is_that_of_the_whole_run(windows):
    loader = train_loader(windows, Fixed(), SEED, BATCH, 2, accumulate=4, start_step=3, steps=STEPS)
    assert len(loader) == STEPS * 4


def test_randomness_differs_by_sample_epoch_and_seed(windows):
    def noise(seed):
        loader = train_loader(windows, Fixed(), seed, BATCH, BATCH, steps=STEPS)
        return [int(n) for batch in loader for n in batch["noise"]]

    assert len(set(noise(1)) | set(noise(2))) == 2 * STEPS * BATCH
    assert noise(1) == noise(1)


def test_samples_are_prepared_once_a_step(windows):
    fixed, varying = Fixed(), Varying()
    load(windows, fixed, 2, world=2, accumulate=2)
    load(windows, varying, 2, world=2, accumulate=2)
    assert fixed.prepared == STEPS * BATCH // 2  # its own half
    assert varying.prepared == STEPS * BATCH  # the other rank's too, to count


def test_refusals(windows):
    with pytest.raises(UserError, match=r"train\.batch_size=8 is not .*: 4 x 1 x 1"):
        train_loader(windows, Fixed(), SEED, BATCH, 4)
    with pytest.raises(
        UserError, match=r"train.batch_size=32 is more than the 20 windows of data.seq_len=6 .*121 tokens"
    ):
        train_loader(windows, Fixed(), SEED, 32, 32)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3, 8, 32])
@pytest.mark.parametrize("limit", [None, 1, 9, 50])
def test_each_held_out_window_counts_once(windows, world, micro, limit):
    ranks = [list(validation_loader(windows, Varying(), micro, r, world, limit)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [
        (ids, labels)
        for batches in ranks
        for b in batches
        if "filler" not in b
        for ids, labels in zip(b["ids"], b["labels"], strict=True)
    ]
    fillers = sum(len(b["ids"]) for batches in ranks for b in batches if "filler" in b)
    counted = {int(ids[0]) // 6: labels for ids, labels in rows if (labels != -100).any()}
    reference = {}
    for b in validation_loader(windows, Varying(), 1):
        if (b["labels"] != -100).any():
            reference[int(b["ids"][0, 0]) // 6] = b["labels"][0]
    n = 20 if limit is None else min(limit, 20)
    assert sorted(counted) == [i for i in range(n) if i in reference]
    assert all(torch.equal(counted[i], reference[i]) for i in counted)
    assert 0 <= fillers < world and len(rows) == n
    assert sum(int((labels != -100).sum()) for _, labels in rows) == sum(
        int((reference[i] != -100).sum()) for i in range(n) if i in reference
    )


class Likely(Fixed):
    measures = {"nll": "bits"}


@pytest.mark.parametrize(("micro", "world", "limit"), [(8, 1, None), (3, 2, None), (2, 3, 5), (4, 4, 1)])
def test_bytes_of_what_is_measured(micro, world, limit):
    """Of the targets of the windows that are there, each once; a rank without a window has none."""
    sizes = np.random.default_rng(0).integers(1, 300, size=20 * 6 + 4).astype(np.uint16)
    windows = Windows(Stream(np.arange(len(sizes), dtype=np.uint16), np.array([0]), sizes), 6)
    ranks = [list(validation_loader(windows, Likely(), micro, r, world, limit)) for r in range(world)]
    n = len(windows) if limit is None else limit
    counted = [b for batches in ranks for b in batches if "filler" not in b]
    assert sum(int(b["bytes"].sum()) for b in counted) == sizes[1 : 1 + n * 6].sum()
    assert all(len(b["bytes"]) == len(b["labels"]) for batches in ranks for b in batches)
    assert "bytes" not in next(iter(validation_loader(windows, Fixed(), micro)))
    bare = Windows(Stream(windows.stream.tokens, windows.stream.starts), 6)
    assert "bytes" not in next(iter(validation_loader(bare, Likely(), micro)))
