"""The classes of each family: those that transformers has, under its names, and every other head is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import ids, mostly_slow, spec, tiny, woken
from reference_models import BUILT, LACKING, PADDED
from safetensors import safe_open

import llmlab
from llmlab.config.spec import PartSpec
from llmlab.errors import UserError
from llmlab.hub.entry import Entry, Head, part
from llmlab.hub.families import entries

KINDS = ("", "FOR_CAUSAL_LM_", "FOR_MASKED_LM_", "FOR_SEQ_TO_SEQ_CAUSAL_LM_", "FOR_PRETRAINING_", "FOR_TEXT_ENCODING_",
         "FOR_NEXT_SENTENCE_PREDICTION_", "FOR_SEQUENCE_CLASSIFICATION_", "FOR_TOKEN_CLASSIFICATION_",
         "FOR_QUESTION_ANSWERING_")  # fmt: skip
# Of transformers, and not read here: decoders torn off an encoder-decoder, and heads on T5's stacks.
UNREAD = {"BartForCausalLM", "PegasusForCausalLM"} | {
    f"{name}For{kind}"
    for name in ("T5", "MT5")
    for kind in ("QuestionAnswering", "SequenceClassification", "TokenClassification")
}
# The end of a class's name, and the head that a model has where its family has no such class.
HEADS: dict[str, dict[str, PartSpec]] = {
    "Model": {},
    "SequenceClassification": {"scalar": part("head", "scalar", n_classes=3, pool="end")},
    "TokenClassification": {"labels": part("head", "token", n_classes=3)},
    "QuestionAnswering": {"span": part("head", "span")},
}


def of_transformers(transformers, model_type: str) -> set[str]:
    """The names of a family's classes in the tables of its Auto classes, for the kinds of heads that we have."""
    auto = transformers.models.auto.modeling_auto
    tables = (getattr(auto, f"MODEL_{kind}MAPPING_NAMES") for kind in KINDS)
    return {name for table in tables if (name := table.get(model_type)) is not None}


def test_the_names_are_those_of_the_auto_classes(transformers):
    for model_type, entry in entries().items():
        if model_type not in LACKING:
            assert set(entry.architectures) == of_transformers(transformers, model_type) - UNREAD, model_type


def entry_of(family: str) -> Entry:
    return next(entry for entry in entries().values() if family in entry.families)


def of_kind(entry: Entry, kind: str) -> Head | None:
    """The head of a family's class of a kind. XLNet's for spans ends with "Simple"."""
    return next(
        (h for n, h in entry.architectures.items() if n.removesuffix("Simple").endswith(kind) and not h.stacks), None
    )


def export(family: str, kind: str, folder: Path) -> None:
    """A tiny model with the head of a kind of class, random weights, saved."""
    entry, usual = entry_of(family), spec(*tiny(family, *PADDED.get(family, ())))
    head = of_kind(entry, kind)
    # ModernBERT's class for spans has as many outputs as there are labels, and two are what it can use.
    config = {**entry.defaults, **entry.write(usual), "num_labels": 2 if kind == "QuestionAnswering" else 3}
    heads = HEADS[kind] if head is None else head.heads(config)
    llmlab.save_hf(woken(replace(usual, heads=heads)), folder)


CASES = [(family, kind) for family in BUILT for kind in HEADS]
HAS = [f"{family} {kind}" for family, kind in CASES if kind == "Model" or of_kind(entry_of(family), kind)]
LACKS = [f"{family} {kind}" for family, kind in CASES if f"{family} {kind}" not in HAS]
QUICK = (
    "phi TokenClassification",
    "mixtral QuestionAnswering",
    "gemma3 SequenceClassification",
    "phi QuestionAnswering",
)


@pytest.mark.parametrize("case", mostly_slow(HAS, QUICK))
@torch.no_grad()
def test_a_class_reads_what_is_saved_for_its_head(case, transformers, tmp_path):
    family, kind = case.split()
    export(family, kind, tmp_path / "ours")
    model = llmlab.load_hf(tmp_path / "ours", verbose=False)
    cls = getattr(transformers, model.config["architectures"][0])
    reference, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    arguments = {"input_ids": ids(1, 9)}
    if model.begin is not None:
        # The class makes the decoder's ids of the source, and BART's for texts reads the hidden state at the source's eos.
        arguments["input_ids"][0, -1] = reference.config.eos_token_id
    elif reference.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = ids(1, 7, seed=1)
    ours, theirs = model(**arguments), reference.eval()(**arguments)
    assert ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)

    reference.save_pretrained(tmp_path / "theirs")
    assert names(tmp_path / "theirs") == names(tmp_path / "ours")


@pytest.mark.parametrize("case", mostly_slow(LACKS, QUICK))
def test_a_head_without_a_class_is_refused_with_those_that_there_are(case, tmp_path):
    family, kind = case.split()
    with pytest.raises(UserError, match="has no place for heads [^;]*; known: ") as e:
        export(family, kind, tmp_path / "ours")
    assert "\n" not in str(e.value)
    assert all(name in str(e.value) for name in entry_of(family).architectures)
    assert not list(tmp_path.iterdir())


def names(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())
