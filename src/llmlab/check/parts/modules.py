"""Checks of norms, feed-forwards, blocks, heads and embeddings as modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from llmlab.check.parts.fixtures import build_random, part_sizes, randn, tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close, generator, random_ids
from llmlab.model.experts import GroupedLinear, linears
from llmlab.modules import Linear
from llmlab.slots import Aux, Context, Position

NAMES = ("attention", "cross_attention", "ffn")


def _norm(subject: Subject) -> Callable[[int, float], nn.Module]:
    """The norm factory of the model's last layer."""
    return subject.spec.stacks[-1].layers[-1].parts["norm"].factory()


def _token_function(subject: Subject) -> Callable[[Tensor], Tensor]:
    """The part as a function of (B, T, D): a norm, a feed-forward, or a block whose sublayers are linear maps."""
    spec, sizes = tested_part(subject, "norm", "ffn", "block"), part_sizes(subject)
    if spec.slot == "norm":
        return build_random(spec.factory(), sizes.dim, sizes.norm_eps)
    if spec.slot == "ffn":
        return build_random(spec.factory(), sizes.dim, sizes.ffn_dim, linears(Linear, sizes.ffn))
    block = build_random(spec.factory(), sizes, _norm(subject), NAMES)
    maps = {name: randn(sizes.dim, sizes.dim, seed=i) * 0.2 for i, name in enumerate(NAMES)}
    sublayers = {name: partial(_linear_map, w) for name, w in maps.items()}
    # f=f binds the map of this name; a lambda that closes over a loop sees its last value.
    return lambda x: block(x, {n: (lambda y, f=f: (f(y), None)) for n, f in sublayers.items()})[0]


def _linear_map(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.to(x.dtype)


@torch.no_grad()
def tokens(subject: Subject) -> None:
    """The output for a token depends on that token alone, in whatever order, number and shape tokens are given."""
    f, dim = _token_function(subject), part_sizes(subject).dim
    x = randn(2, 5, dim)
    want = f(x)
    if want.shape != x.shape:
        raise CheckFailed(f"(2, 5, {dim}) becomes {tuple(want.shape)}")
    assert_close(f(x.flip(1)), want.flip(1), "tokens in another order")
    assert_close(f(x[:1, 2:3]), want[:1, 2:3], "one token alone")
    if subject.case.parts[0][0] != "block":
        assert_close(f(x.flatten(0, 1)), want.flatten(0, 1), "tokens without a batch")
    changed = x.clone()
    changed[0, 1] += 3
    out = f(changed)
    out[0, 1] = want[0, 1]
    assert_close(out, want, "another token changed")


@torch.no_grad()
def experts(subject: Subject) -> None:
    """A feed-forward of experts is that of each expert on its tokens, and halves of its width add up to the whole."""
    spec, sizes = tested_part(subject, "ffn"), part_sizes(subject)
    n, width = 3, 16
    grouped = build_random(spec.factory(), sizes.dim, width, linears(partial(GroupedLinear, n), sizes.ffn))
    # The second expert has no token: an empty group is a case of its own in grouped products.
    x, ends = randn(8, sizes.dim), torch.tensor([2, 2, 8], dtype=torch.int32)
    got = grouped(x, ends)
    for e, (a, b) in enumerate(((0, 2), (2, 2), (2, 8))):
        dense = build_random(spec.factory(), sizes.dim, width, linears(Linear, sizes.ffn))
        for (name, p), (_, whole) in zip(dense.named_parameters(), grouped.named_parameters(), strict=True):
            p.copy_(whole[e].view_as(p)) if whole.shape[0] == n else _not_per_expert(name)
        assert_close(got[a:b], dense(x[a:b]), f"expert {e}, among others and alone")
    # Without biases: each of the two halves would add the output's.
    whole = build_random(spec.factory(), sizes.dim, width, partial(Linear, bias=False))
    halves = []
    for half in (slice(0, width // 2), slice(width // 2, width)):
        part = build_random(spec.factory(), sizes.dim, width // 2, partial(Linear, bias=False))
        for module, other in zip(part.modules(), whole.modules(), strict=True):
            if getattr(module, "role", None) == "ffn_in":
                module.weight.copy_(other.weight[half])
            elif getattr(module, "role", None) == "ffn_out":
                module.weight.copy_(other.weight[:, half])
        halves.append(part(x))
    assert_close(halves[0] + halves[1], whole(x), "two halves of its inner width, added up")


def _not_per_expert(name: str) -> None:
    raise NotApplicable(f"{name} is not one of each expert")


@torch.no_grad()
def first_norm(subject: Subject) -> None:
    """A norm with its first values leaves a sound scale, in float32 whatever it is given, and gives back the dtype."""
    spec, sizes = tested_part(subject, "norm"), part_sizes(subject)
    norm = build_random(spec.factory(), sizes.dim, sizes.norm_eps)
    constants = getattr(norm, "constants", {})
    for name, p in norm.named_parameters():
        p.fill_(constants.get(name, 0.0))
    x = randn(4, 6, sizes.dim)
    size = float(norm(x).square().mean().sqrt())
    if not 0.1 < size < 10:
        raise CheckFailed(f"with its first values it makes vectors of size 1 ones of size {size:.3g}")
    half = (20 * x).bfloat16()
    got, want = norm(half), norm(half.float())
    if got.dtype != torch.bfloat16:
        raise CheckFailed(f"it is given bfloat16 but gives {got.dtype}")
    off = float(((got.float() - want).abs() / want.abs().clamp(min=1e-6)).max())
    # Rounding to bfloat16 alone is off by 2^-8 at most, half of its spacing of 2^-7.
    if not off < 1.5 * 2**-8:
        raise CheckFailed(
            f"in bfloat16 values are off by up to {off:.2%}: more than is lost when it is computed in float32 and rounded"
        )


@torch.no_grad()
def wiring(subject: Subject) -> None:
    """A block passes each sublayer's losses on, leaves out what it is not given, and reads what it is given."""
    spec, sizes = tested_part(subject, "block"), part_sizes(subject)
    block = build_random(spec.factory(), sizes, _norm(subject), NAMES)
    x, aux_of_ffn = randn(2, 5, sizes.dim), Aux(torch.tensor(2.5))

    def given(*names: str, factor: float = 1.0) -> tuple[Tensor, Aux | None, list[str]]:
        order: list[str] = []

        def sublayer(name: str, y: Tensor) -> tuple[Tensor, Aux | None]:
            order.append(name)
            return factor * y.roll(1, -1), aux_of_ffn if name == "ffn" else None

        out, aux = block(x, {name: partial(sublayer, name) for name in names})
        return out, aux, order

    whole, aux, order = given(*NAMES)
    if aux is not aux_of_ffn:
        raise CheckFailed("the losses of a sublayer are lost")
    if sorted(order) != sorted(NAMES):
        raise CheckFailed(f"of the sublayers {', '.join(NAMES)} it calls {', '.join(order)}")
    for left_out in NAMES:
        names = [n for n in NAMES if n != left_out]
        out, _, order = given(*names)
        if sorted(order) != sorted(names) or torch.equal(out, whole):
            raise CheckFailed(f"without {left_out} it calls {', '.join(order)}, with the same result or others")
    if torch.equal(given(*NAMES, factor=2.0)[0], whole):
        raise CheckFailed("what sublayers give makes no difference")


@torch.no_grad()
def chosen_rows(subject: Subject) -> None:
    """A head that reads a token at a time says of some tokens what it says of them among all."""
    name = tested_part(subject, "head").name
    model, batch = subject.model, subject.batch()
    chosen = torch.rand(batch["ids"].shape, generator=generator(4)) < 0.4
    roles = [role for role, part in subject.spec.heads.items() if part.name == name and role in subject.token_roles]
    for role in roles:
        whole = model(batch, heads={role: None}).heads[role]
        assert_close(model(batch, heads={role: chosen}).heads[role], whole[chosen], "some tokens alone")
    if not roles:
        raise NotApplicable("it reads a text, not a token")


@torch.no_grad()
def vectors(subject: Subject) -> None:
    """Without positions an embedding gives a token the same vector wherever it stands, and its table's rows count."""
    spec, sizes = tested_part(subject, "embedding"), part_sizes(subject).but(token_types=2)
    if not spec.attribute("table"):
        raise NotApplicable("it has no table of tokens")
    embedding = build_random(spec.factory(), sizes.but(embed_dim=sizes.dim), Position(), _norm(subject), None)
    text = random_ids(2, 6)
    context = Context(6, ids=text, segments=text % 2)
    want = embedding(text, context)
    if want.shape != (2, 6, sizes.dim) or embedding.weight.shape != (sizes.vocab_size, embedding.embed_dim):
        raise CheckFailed(f"(2, 6) tokens become {tuple(want.shape)}, of a table {tuple(embedding.weight.shape)}")
    back = text.flip(1)
    assert_close(embedding(back, Context(6, ids=back, segments=back % 2)), want.flip(1), "tokens in another order")
    embedding.weight[text[0, 2]] += 1.0
    moved = (embedding(text, context) != want).any(-1)
    if not torch.equal(moved, text == text[0, 2]):
        raise CheckFailed("with one row of its table the vectors of other tokens change, or none")
    shared = build_random(spec.factory(), sizes, Position(), _norm(subject), embedding)
    if shared.weight is not embedding.weight or any(p.shape == embedding.weight.shape for p in shared.parameters()):
        raise CheckFailed("a stack that shares the table has one of its own")
