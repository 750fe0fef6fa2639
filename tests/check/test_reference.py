"""What `transformers` said is recorded for every family that it has, is still what it says, and is what our models say."""

import json

import pytest
import torch
from record_reference import LACKING, recorded

from llmlab.check import cases, reference
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.config.model_files import families

QUICK = ("llama3", "t5")
AGAIN = ("deepseek_v3", "gemma3", "mpnet", "qwen1", "bloom")  # asked anew in the tests
ANEW = "; python tests/check/record_reference.py"


def test_every_family_has_its_numbers():
    entries = reference.recorded()["families"]
    assert set(entries) == set(families()) - set(LACKING), ANEW
    for name, entry in entries.items():
        assert {len(numbers) for numbers in entry["logits"].values()} == {reference.N_LOGITS}, name
    assert reference.FILE.stat().st_size < 100_000


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in families() if f not in LACKING]
)
def test_a_family_is_what_the_reference_says(family, monkeypatch):
    """And would not be if a single weight were another by one in a thousand."""
    subject = Subject(cases.family_case(family))
    reference.reference(subject)
    if family not in QUICK:
        return
    settle = reference.path_seeded_model

    @torch.no_grad()
    def changed(spec):
        model = settle(spec)
        next(p for path, p in model.named_parameters() if path.endswith("ffn.up.weight"))[3, 5] += 1e-3
        return model

    monkeypatch.setattr(reference, "path_seeded_model", changed)
    with pytest.raises(CheckFailed, match="logits of full rows"):
        reference.reference(subject)


def test_what_was_not_asked_is_not_answered():
    for case in (
        cases.family_case("gpt3"),
        cases.family_case("llama3", ["ffn=geglu"]),
        cases.family_case("llama3", ["model.dim=64"]),
    ):
        with pytest.raises(NotApplicable):
            reference.reference(Subject(case))


def test_the_values_follow_from_the_path_alone():
    """numpy keeps the stream of PCG64; if it did not, or hashing did not, every number would be another."""
    assert reference.noise("stacks.main.norm.weight", torch.Size([3])).tolist() == [
        -0.8878984451293945,
        0.8286690711975098,
        0.9991415739059448,
    ]
    assert reference.noise("anywhere", torch.Size([0])).shape == (0,)
    many = reference.noise("anywhere", torch.Size([100, 100]))
    assert -1 <= many.min() < -0.99 and 0.99 < many.max() < 1 and abs(many.mean()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("family", AGAIN)
def test_the_reference_still_says_so(family):
    pytest.importorskip("transformers")
    again = json.loads(json.dumps(recorded(cases.family_case(family))))
    there = reference.recorded()["families"][family]
    assert {**again, "logits": None} == {**there, "logits": None}, ANEW
    for name, want in there["logits"].items():
        assert again["logits"][name] == pytest.approx(want, rel=1e-4, abs=1e-5)
