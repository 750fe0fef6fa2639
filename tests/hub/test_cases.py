"""The stored reference checkpoints: outputs within each case's own tolerance, and back out bit for bit.

They are not part of the project. The folder is $LLMLAB_PARITY, else ../shared/parity beside the repository.
"""

import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from families import mostly_slow
from safetensors.torch import load_file

import llmlab

ROOT = Path(os.environ.get("LLMLAB_PARITY") or Path(__file__).parents[3] / "shared" / "parity") / "cases"
NAMES = r"""(
    phi$|falcon|gpt2|gpt_neo|llama|mi[sx]tral|gemma2?(_hub)?$|qwen[23]|gemma3|deepseek_v3|albert|m?t5|bart|pegasus|spanbert_qa|
    bert|roberta|deberta_v2|electra|distilbert|mpnet|modernbert|xlnet|
    gpt1|opt|bloom|mpt$|stablelm|
    olmo2?$|glm4?(_hub)?$|chatglm|phi3|qwen1|deepseek_v2
)"""
CASES = sorted(p.name for p in ROOT.iterdir() if re.match(NAMES, p.name, re.X)) if ROOT.is_dir() else []


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("model*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    "name", mostly_slow(CASES, CASES[::7]) or [pytest.param(None, id="not run: no reference checkpoints here")]
)
def test_case(name, tmp_path):
    if name is None:
        warnings.warn(f"parity cases: not run; {ROOT} does not exist (set LLMLAB_PARITY)", stacklevel=1)
        return
    folder = ROOT / name
    meta = json.loads((folder / "meta.json").read_text())
    outputs = load_file(folder / "outputs.safetensors")
    model = llmlab.load_hf(folder, verbose=False)
    with torch.no_grad():
        got = model(**load_file(folder / "inputs.safetensors"))
    for output in meta["outputs"]:
        want, rows = outputs[output], outputs[f"mask.{output}"].bool()
        assert got[output].shape == want.shape, output
        assert rows.any()
        assert (got[output].double() - want)[rows].abs().max() <= meta["atol_float32"], output

    llmlab.save_hf(model, tmp_path)
    ours, theirs = weights(tmp_path), weights(folder)
    names = {name: name for name in theirs}
    if name == "bert_hub":  # older names of the norms
        names = {n: n.replace("gamma", "weight").replace("beta", "bias") for n in theirs}
    if name in ("gpt2_hub", "bloom_hub"):  # without the prefix
        names = {n: f"transformer.{n}" for n in theirs}
    stale = [n for n in theirs if names[n] not in ours]
    ignored = {
        "bert_hub": r"position_ids|pooler|seq_relationship|cls\.predictions\.decoder",
        "roberta_hub": r"position_ids$",
        "gpt2_hub": r"attn\.(masked_)?bias$",
        "gpt_neox_hub": r"attention\.((masked_)?bias|rotary_emb\.inv_freq)$",
        "llama3_hub": r"inv_freq$",
        "qwen3_hub": r"^lm_head",  # stored although tied
        "deepseek_v3_hub": r"layers\.\d+\.",
        "chatglm1": r"inv_freq$",
    }.get(name)
    assert all(ignored and re.search(ignored, n) for n in stale), stale
    assert set(ours) == {names[n] for n in theirs if n not in stale}
    for n in set(theirs) - set(stale):
        assert ours[names[n]].dtype == theirs[n].dtype
        assert torch.equal(ours[names[n]], theirs[n]), n
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
