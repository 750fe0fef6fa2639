"""Numbers that transformers' strict configs refuse are never written: an export says so in a line, or is read by the class."""

from dataclasses import replace
from pathlib import Path

import pytest
from families import mostly_slow, spec, tiny, woken
from reference_models import BUILT, PADDED

import llmlab
from llmlab.errors import UserError
from llmlab.hub.families.gemma3 import scalar

UNEVEN = ("model.dim=36", "model.n_heads=5", "model.head_dim=8")


def exported(family: str, folder: Path) -> str | None:
    """A tiny model whose heads do not divide its width, saved; why not, if it is refused."""
    try:
        llmlab.save_hf(woken(spec(*tiny(family, *UNEVEN, *PADDED.get(family, ())))), folder)
    except UserError as e:
        return str(e)
    return None


@pytest.mark.parametrize("family", mostly_slow(BUILT, ["llama3", "xlnet"]))
def test_heads_that_do_not_divide_the_width(family, transformers, tmp_path):
    refusal = exported(family, tmp_path / "out")
    if refusal is not None:
        assert "\n" not in refusal
        return
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    cls = getattr(transformers, config.architectures[0])
    _, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


@pytest.mark.parametrize(("scale", "nearest"), [(0.3, 11), (3.0, 1), (1e-5, 10**9), (0.25 + 1e-9, 16)])
def test_a_scale_that_is_no_whole_number_to_the_power_of_minus_two(scale, nearest):
    usual = spec(*tiny("gemma3"))
    other = replace(usual, sizes=replace(usual.sizes, attention=replace(usual.sizes.attention, scale=scale)))
    with pytest.raises(
        UserError, match=f"scale={scale} has no place in .*; the nearest is {nearest}, of .*={nearest**-0.5}$"
    ):
        scalar(other)


@pytest.mark.parametrize("family", mostly_slow(["gemma2", "gemma3"]))
def test_gemmas_scale_is_written_as_a_whole_number_or_not_at_all(family, transformers, tmp_path):
    with pytest.raises(UserError, match="^model.attention.scale=0.3 has no place") as e:
        llmlab.save_hf(woken(spec(*tiny(family, "model.attention.scale=0.3"))), tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())
    suggested = str(e.value).rpartition("=")[2]
    llmlab.save_hf(woken(spec(*tiny(family, f"model.attention.scale={suggested}"))), tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").query_pre_attn_scalar == 11
