"""Noised and infilled texts and mixtures: what they cost, what the reference computes of them, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.data import stand_in
from llmlab.errors import UserError
from llmlab.model import build, flops
from llmlab.slots import Vocabulary
from llmlab.training import cost

LENGTH = 32
TINY = ("model.dim=32", "model.n_layers=2", "model.n_heads=2", "kernel=eager", f"data.seq_len={LENGTH}")
TINY += ("model.max_positions=40",)


def made(*words):
    """(objective, model) of a config, for a vocabulary in which a full stop is every eighth id."""
    composed = compose([*TINY, *words])
    node = composed.cfg.objective
    names = registry.of_node("objective", node).special
    vocabulary = stand_in.vocabulary(320, names)
    options = {k: v for k, v in node.items() if not str(k).startswith("_")}
    objective = registry.load("objective", node["_part_"], options)(vocabulary, LENGTH)
    return objective, build.build_model(layout.resolve(composed, vocabulary=320), 1)


def batch(objective, rows=4):
    chance = np.random.default_rng(0)
    return stand_in.batch(objective, chance.integers(200, size=(rows, LENGTH + 1)), chance)


CASES = {
    "bart": ("model=bart",),
    "glm_2022": ("model=glm_2022",),
    "ul2 for a decoder": ("objective=ul2_decoder",),
    "a mixture for a decoder": ("objective=mix", "objective.of=[clm,span_corruption,mlm]"),
}


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_what_it_costs_is_what_torch_counts(words):
    objective, model = made(*words)
    # One text a batch: what pads a batch is not counted.
    one, told = batch(objective, 1), 0.0
    for each in cost.passes(objective, {k: v[0].numpy() for k, v in one.items()}):
        shares = {role: (each.tokens if n is None else n) / each.tokens for role, n in each.heads.items()}
        account = flops.account(model, each.tokens, source_length=each.source, heads=shares)
        told += account.training(dense=True) * account.tokens
    with FlopCounterMode(display=False) as counter:
        objective.loss(model, one).mean().backward()
    assert told == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_each_objective_of_a_mixture_is_drawn_by_its_weight_and_has_its_own_loss():
    objective, model = made("objective=mix", "objective.of=[clm,span_corruption,mlm]", "objective.weights=[1,2,5]")
    rng, text = np.random.default_rng(0), {"tokens": np.arange(LENGTH + 1)}
    drawn = np.bincount([objective.prepare(text, rng)["which"] for _ in range(2000)], minlength=3)
    want = 2000 * np.array([1, 2, 5]) / 8
    assert ((drawn - want) ** 2 / want).sum() < 20  # chi-squared of two degrees: once in 22,000 times
    whole = batch(objective, 8)
    loss = objective.loss(model, whole)
    assert loss.weights == pytest.approx({"clm": 1 / 8, "span_corruption": 2 / 8, "mlm": 5 / 8})
    for i, (name, part) in enumerate(zip(objective.names, objective.parts, strict=True)):
        rows = (whole["which"] == i).nonzero()[:, 0].tolist()
        alone = 0.0
        for row in rows:
            one = {k: v[row : row + 1] for k, v in whole.items()}
            if name == "span_corruption":  # its text, put together by hand: the source, then what the decoder reads
                n, t = int(one["source_valid"].sum()), int(one["valid"].sum())
                text = torch.cat([one["source_ids"][:, :n], one["ids"][:, :t]], 1)
                logits = model({"ids": text, "prefix_len": torch.tensor([n])}).heads["tokens"][0, n:]
                alone += torch.nn.functional.cross_entropy(logits, one["labels"][0, :t], reduction="sum").item()
                continue
            prefix = torch.tensor([0 if name == "clm" else LENGTH])
            given = {"ids": one["ids"], "labels": one["labels"], "prefix_len": prefix}
            alone += part.loss(model, given).terms["nll"][0].item()
        assert loss.terms[name][0].item() == pytest.approx(alone, rel=1e-4, abs=1e-6)
    counts = [objective.targets({k: v[row].numpy() for k, v in whole.items()}) for row in range(8)]
    assert {name: sum(c[name] for c in counts) for name in counts[0]} == {n: int(c) for n, (_, c) in loss.terms.items()}


def test_a_decoder_writes_what_ul2_has_taken_out_behind_what_is_left():
    objective, model = made("objective=ul2_decoder")
    assert type(model.all_stacks()[-1].spec.mask.factory()()).__name__ == "Prefix"
    names = registry.of_node("objective", compose([*TINY, "objective=ul2_decoder"]).cfg.objective).special
    special, seen = stand_in.vocabulary(320, names).special, set()
    rng, text = np.random.default_rng(0), np.arange(LENGTH + 1)
    for _ in range(60):
        sample = objective.prepare({"tokens": text}, rng)
        source, labels = sample["source_ids"], sample["labels"]
        assert len(source) + len(labels) <= LENGTH
        seen.add((objective.names[int(sample["which"])], int(source[0])))
        words = [i for i in np.concatenate([source, labels]) if i < 200]
        assert sorted(words) == list(range(len(words)))
    assert seen == {(mode, special[f"mode_{mode}"]) for mode in "rsx"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=t5", "objective=mix", "objective.of=[clm,mlm]"], "model=t5 is an encoder-decoder"),
        (
            ["objective=mix", "objective.of=[clm,classification]"],
            "that read labelled and text can't learn from the same",
        ),
        (["objective=mix", "objective.of=[clm,clmm]"], "did you mean clm"),
        (["model=glm_2022", "position=rope"], "choose position=glm_2d or rope_2d"),
        (["objective=blank_infilling", "mask=bidirectional"], "each token would see the answer"),
        (["objective=denoise"], "model=llama3 is a decoder"),
    ],
)
def test_what_can_not_be_trained_is_refused(words, said):
    with pytest.raises(UserError, match=said) as e:
        compose(words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["denoise", "gap_sentences"])
def test_sentences_need_a_full_stop(name):
    special = {"pad": 0, "eos": 1, "mask": 2}
    with pytest.raises(ValueError, match="no token of the tokenizer ends in a full stop"):
        registry.load("objective", name, {})(Vocabulary(9, special, text=lambda i: "a"), 8)
    text = {3: "a.", 4: '."', 5: "b", 6: " .\n"}
    made = registry.load("objective", name, {})(Vocabulary(7, special, text=lambda i: text.get(i, "")), 8)
    assert made.ends.tolist() == [3, 4, 6, 1]


def test_full_stops_in_a_row_end_one_sentence():
    from llmlab_plugins.objective._sentences import sentences

    found = sentences(np.array([5, 3, 3, 1, 5, 5, 3, 5]), np.array([3, 1]))
    assert [one.tolist() for one in found] == [[5, 3, 3, 1], [5, 5, 3], [5]]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "pegasus"])
def test_loss_and_gradient_are_the_references(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    import llmlab

    objective, model = made(f"model={family}")
    llmlab.save_hf(model, tmp_path)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager").train()
    given = batch(objective)
    loss = objective.loss(model, given).mean()
    loss.backward()
    want = reference(
        input_ids=given["source_ids"],
        attention_mask=given.get("source_valid", torch.ones_like(given["source_ids"])).long(),
        decoder_input_ids=given["ids"],
        labels=given["labels"],
    ).loss
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    own = next(p for n, p in model.named_parameters() if n.endswith("embedding.table.weight")).grad
    theirs = reference.get_input_embeddings().weight.grad
    # An embedding with a padding_idx learns nothing for that id as an input.
    others = torch.arange(len(own)) != reference.config.pad_token_id
    torch.testing.assert_close(own[others], theirs[others], rtol=1e-3, atol=1e-6)
