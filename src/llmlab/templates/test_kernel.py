"""my_kernel within a model, and against the reference kernel."""

import pytest
import torch

from llmlab.testing import cached_is_uncached, ids, learns, tiny


def test_a_model_learns_with_it():
    learns("kernel=my_kernel")


@torch.no_grad()
@pytest.mark.parametrize("parts", [("window=sliding", "window.left=3"), ("position=alibi",), ("model=bert",)])
def test_it_is_the_reference(parts: tuple[str, ...]):
    mine, reference = (tiny(*parts, f"kernel={kernel}") for kernel in ("my_kernel", "eager"))
    valid = torch.ones(2, 12).bool()
    # Padding at the left, as in a batch that is generated from: the rows of padding see nothing.
    valid[1, :3] = False
    batch = {"ids": ids(), "valid": valid}
    # float32's sums in another order differ by some 1e-6.
    torch.testing.assert_close(mine(batch).hidden, reference(batch).hidden, rtol=1e-4, atol=1e-5)


def test_generation_with_a_cache_is_that_without():
    cached_is_uncached(tiny("kernel=my_kernel"))


def test_off_by_one_weighs_less():
    plain, off = (tiny("kernel=my_kernel", f"kernel.off_by_one={b}") for b in ("false", "true"))
    assert not torch.allclose(plain({"ids": ids()}).hidden, off({"ids": ids()}).hidden)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"kernel=my_kernel can't do model\.attention\.softcap"):
        tiny("kernel=my_kernel", "model.attention.softcap=30")
