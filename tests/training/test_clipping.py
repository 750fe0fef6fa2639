"""Clipping by the norm, against PyTorch's, and of gradients in pieces against the whole."""

import math

import pytest
import torch

from llmlab.training.clipping import clip_by_norm


def parameters(*shapes, dtype=torch.float32, seed=0):
    """With gradients, of which those in half precision are no sums that it could hold."""
    made = [torch.nn.Parameter(torch.zeros(s, dtype=dtype)) for s in shapes]
    generator = torch.Generator().manual_seed(seed)
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return made


def clone(some):
    made = [torch.nn.Parameter(p.detach().clone()) for p in some]
    for a, b in zip(made, some, strict=True):
        a.grad = None if b.grad is None else b.grad.clone()
    return made


def with_gradients(*gradients, dtype=torch.float32):
    parameters = [torch.nn.Parameter(torch.zeros(3, dtype=dtype)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
    return parameters


@pytest.mark.parametrize("limit", [None, 1e-6, 0.5, 1000.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_clipping_is_torchs(limit, scale):
    ours = parameters((3, 4), (7,), ())
    for p in ours:
        p.grad *= scale
    ours.append(torch.nn.Parameter(torch.zeros(2)))  # one that no loss has reached
    theirs = clone(ours)
    norm = clip_by_norm(ours, limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
    torch.testing.assert_close(norm, expected)
    assert norm.dtype == torch.float32 and norm.shape == () and not norm.requires_grad
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)
    assert ours[-1].grad is None


def test_the_norm_after_is_the_limit_and_the_direction_stays():
    for limit in (1e-3, 0.3, 2.0):
        own = parameters((30,), (5, 6))
        before = torch.cat([p.grad.flatten() for p in own])
        norm = clip_by_norm(own, limit)
        after = torch.cat([p.grad.flatten() for p in own])
        assert norm.item() == pytest.approx(before.norm().item(), rel=1e-6) and norm > limit
        assert after.norm().item() == pytest.approx(limit, rel=1e-5)
        torch.testing.assert_close(after / after.norm(), before / before.norm())
        assert clip_by_norm(own, None).item() == pytest.approx(limit, rel=1e-5)  # measuring changes nothing
        assert torch.equal(torch.cat([p.grad.flatten() for p in own]), after)


def test_nothing_is_made_larger():
    """Below the limit gradients stay to the last digit, and no gradients have the norm 0."""
    own = parameters((4,))
    before = own[0].grad.clone()
    clip_by_norm(own, 1e9)
    assert torch.equal(own[0].grad, before)
    own[0].grad.zero_()
    assert clip_by_norm(own, 1.0) == 0 and torch.equal(own[0].grad, torch.zeros(4))
    for none in ([], [torch.nn.Parameter(torch.zeros(2))]):
        norm = clip_by_norm(none, 1.0)
        assert norm.item() == 0 and norm.shape == ()


def test_gradients_of_gradients_are_left_out():
    """Gradients that have a graph of their own are scaled as plain numbers."""
    weight = torch.nn.Parameter(torch.ones(3))
    (weight.grad,) = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)
    norm = clip_by_norm([weight], 1.0)
    assert not norm.requires_grad and weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_half_precision_is_summed_in_float32():
    """4,000 tensors with a norm of 1 each: bfloat16 would stop counting them."""
    own = [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(4000)]
    for p in own:
        p.grad = torch.ones(1, dtype=torch.bfloat16)
    norm = clip_by_norm(own, None)
    assert norm.item() == pytest.approx(4000**0.5, rel=1e-6) and norm.dtype == torch.float32


@pytest.fixture
def ranks(monkeypatch):
    """Makes a mesh of the ranks of one process, all of which have the pieces that it has."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def make(*shape):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=math.prod(shape))
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda t, group: t.mul_(torch.distributed.get_world_size(group))
        )
        return init_device_mesh("cpu", shape)

    yield make
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sharded(mesh, placements, local, p):
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(local, mesh, placements, run_check=False)
    parameter = torch.nn.Parameter(torch.zeros_like(whole))
    parameter.grad = whole
    return parameter, local.norm().item() ** 2 * p


@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_pieces_are_measured_whole(ranks, shape, limit):
    """Each rank has as many elements as this one, so the square of the whole is that of a piece times the pieces."""
    from torch.distributed.tensor import Replicate, Shard

    mesh = ranks(*shape)
    kinds = [[Shard(0)] * len(shape), [Replicate()] * len(shape)]
    kinds += [[Replicate(), Shard(0)], [Shard(0), Replicate()]] if len(shape) == 2 else []
    generator, made, square = torch.Generator().manual_seed(0), [], 0.0
    for placements in kinds:
        pieces = math.prod(n for n, p in zip(shape, placements, strict=True) if not p.is_replicate())
        parameter, own = sharded(mesh, placements, torch.randn(5, generator=generator), pieces)
        made.append(parameter)
        square += own
    before = [p.grad.to_local().clone() for p in made]
    norm = clip_by_norm(made, limit)
    assert norm.item() == pytest.approx(square**0.5, rel=1e-6) and norm.dtype == torch.float32 and norm.shape == ()
    factor = 1.0 if limit is None else limit / square**0.5
    for p, local in zip(made, before, strict=True):
        torch.testing.assert_close(p.grad.to_local(), local * factor, rtol=1e-5, atol=0)


def test_squares_of_pieces_are_summed_in_float64(ranks):
    """A large and many small ones, whose squares float32 would lose."""
    from torch.distributed.tensor import Shard

    mesh = ranks(2)
    large, small = torch.tensor([4096.0]), torch.tensor([0.5])
    made = [sharded(mesh, [Shard(0)], t, 2)[0] for t in (large, *[small] * 64)]
    assert clip_by_norm(made, None).item() == pytest.approx((2 * (4096.0**2 + 64 * 0.25)) ** 0.5, rel=1e-7)


def test_whole_gradients_among_pieces_are_refused(ranks):
    from torch.distributed.tensor import Shard

    made = [sharded(ranks(2), [Shard(0)], torch.ones(2), 2)[0], *parameters((2,))]
    with pytest.raises(AssertionError):
        clip_by_norm(made, 1.0)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_no_number_is_seen_in_the_norm(wrong):
    """The guard names the step by it (test_guard)."""
    assert not math.isfinite(clip_by_norm(with_gradients([3.0, 4.0, 0.0], [wrong, 0.0, 1.0]), 1.0))
