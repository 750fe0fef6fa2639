"""The same weights under another part, against models that were composed with it."""

import pytest
import torch

from llmlab.commands.swap import split, swapped
from llmlab.config.compose import compose
from llmlab.config.layout import resolve
from llmlab.errors import UserError
from llmlab.model.build import build_model

TINY = ("model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=61", "model.max_positions=8")
IDS = torch.arange(1, 41).view(2, 20)


def build(*overrides):
    return build_model(resolve(compose([*overrides, *TINY])), 1).eval()


@torch.no_grad()
def logits(model):
    return model({"ids": IDS}).heads["tokens"]


def same_memory(a, b):
    return all(x.data_ptr() == y.data_ptr() for x, y in zip(a.parameters(), b.parameters(), strict=True))


SWAPS = {
    "a part": (["position=dual_chunk", "kernel=eager"], ["position=dual_chunk", "position.theta=7000", "kernel=eager"]),
    "an option": (["position.scaling=linear", "position.factor=2"], ["position=rope", "position.theta=7000",
        "position.scaling=linear", "position.factor=2"]),
    "options of another part": (["position=dual_chunk", "position.chunk=3", "kernel=eager", "position.theta=90"],
        ["position=dual_chunk", "position.chunk=3", "position.theta=90", "kernel=eager"]),
    "a preset": (["position=rope_1m"], ["position=rope", "position.theta=1000000"]),
    "a window": (["window=sliding", "window.left=3"], ["window=sliding", "window.left=3", "position.theta=7000"]),
}  # fmt: skip


@pytest.mark.parametrize("case", [n if n == "a part" else pytest.param(n, marks=pytest.mark.slow) for n in SWAPS])
def test_is_the_model_that_was_composed_with_it(case):
    typed, composed = SWAPS[case]
    before = build("model=llama3", "position.theta=7000")
    after = swapped(before, typed)
    want = build("model=llama3", *composed)
    assert torch.equal(logits(after), logits(want)) and not torch.equal(logits(after), logits(before))
    assert same_memory(before, after) and not after.training
    assert swapped(before, []) is before


@pytest.mark.slow
def test_each_layer_keeps_its_own_options():
    before = build("model=gemma3")
    thetas = {layer.parts["position"].options["theta"] for layer in before.spec.stacks[0].layers}
    after = swapped(before, ["position=dual_chunk", "kernel=eager"])
    parts = [layer.parts["position"] for layer in after.spec.stacks[0].layers]
    assert {p.name for p in parts} == {"dual_chunk"} and {p.options["theta"] for p in parts} == thetas
    wrong = swapped(before, ["position.scaling=dynamic", "position.factor=2"])
    with pytest.raises(
        UserError, match=r"position=dual_chunk: it has no scaling=dynamic, which .*set position\.scaling"
    ):
        swapped(wrong, ["position=dual_chunk", "kernel=eager"])
    swapped(wrong, ["position=dual_chunk", "kernel=eager", "position.scaling=none"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["position=dual_chunk"], r"kernel=sdpa can't do a position with regions; choose kernel=eager"),
        (["position=learned"], r"position=learned: the weights do not fit: .*table.weight is missing there"),
        (["position=dualchunk"], r"there is no such position; did you mean dual_chunk"),
        (["position.chunk=3"], r"position\.chunk: there is no such key in position \(rope\)"),
        (["position=dual_chunk", "position.chunk=0", "kernel=eager"], r"position\.chunk=0 .* at least 1"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(typed, said):
    with pytest.raises(UserError, match=said) as e:
        swapped(build("model=llama3"), typed)
    assert "\n" not in str(e.value)


def test_words_about_parts_are_told_from_the_others():
    words = ["run=a", "position=dual_chunk", "seq_len=8", "position.chunk=3", "kernel=eager", "--json"]
    assert split(words) == (
        ["run=a", "seq_len=8", "--json"],
        ["position=dual_chunk", "position.chunk=3", "kernel=eager"],
    )
