"""The losses and gradients of TRL on the same batch with the same tiny model."""

import copy
import importlib

import numpy as np
import pytest
import torch

from llmlab import registry
from llmlab.data import collate
from llmlab.slots import Vocabulary

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl")

SIZE = 64
PREFERENCES = [
    {"prompt": [5, 6, 7], "answers": [[8, 9, 10, 1], [11, 1]]},
    {"prompt": [12, 13], "answers": [[14, 15, 1], [16, 17, 18, 19, 1]]},
    {"prompt": [20, 21, 22, 23], "answers": [[24, 1], [25, 26, 1]]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(theirs, their reference, ours, our reference): a LLaMA and another one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmlab.hub.load import load_hf

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1,
        pad_token_id=0, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    theirs, found = [LlamaForCausalLM(config) for _ in range(2)], []
    for i, model in enumerate(theirs):
        folder = tmp_path_factory.mktemp(f"llama{i}")
        model.save_pretrained(folder)
        found.append(load_hf(folder, verbose=False).model)
    return (*theirs, *found)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(SIZE)}, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="t1", pad_token="t0", unk_token="t2")


def trainer(kind, config, model, tokenizer, tmp_path, rows, *, home=trl, **how):
    from datasets import Dataset

    args = getattr(home, config)(
        output_dir=str(tmp_path),
        bf16=False,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=4,
        max_length=None,
        **how.pop("args", {}),
    )
    return getattr(home, kind)(
        model=copy.deepcopy(model), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **how
    )


def words(ids):
    return " ".join(f"t{i}" for i in ids)


def rows_of(pairs):
    """(input_ids, attention_mask, completion_mask) of (prompt, answer), padded on the right."""
    width = max(len(p) + len(a) for p, a in pairs)
    shape = (len(pairs), width)
    ids, mask, answer = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for i, (p, a) in enumerate(pairs):
        ids[i, : len(p) + len(a)] = torch.tensor([*p, *a])
        mask[i, : len(p) + len(a)] = 1
        answer[i, len(p) : len(p) + len(a)] = 1
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": answer}


def ours(name, samples, model, reference=None, **options):
    """(loss, gradient of the table) of a method of ours."""
    method = registry.load("alignment", name, options)(Vocabulary(SIZE, {"eos": 1}), 32)
    batch = collate.batch([method.prepare(s, np.random.default_rng(0)) for s in samples], "pad")
    loss = method.loss(model, batch, **({} if reference is None else {"reference": reference})).mean()
    model.zero_grad()
    loss.backward()
    table = next(p for n, p in model.named_parameters() if "embedding" in n)
    return loss.item(), table.grad


KIN = {
    "dpo": ("sigmoid", {}, {}),
    "hinge": ("hinge", {}, {}),
    "robust": ("robust", {"label_smoothing": 0.1}, {}),
    "apo_zero": ("apo_zero", {}, {}),
    "apo_down": ("apo_down", {}, {}),
    "sppo": ("sppo_hard", {}, {"beta": 0.1}),
    "ipo": ("ipo", {}, {"average": True}),  # TRL's divides by the number of tokens, the paper's does not
}


@pytest.mark.parametrize("name", KIN)
def test_dpo_and_its_kin(name, models, tokenizer, tmp_path):
    theirs, reference, model, our_reference = models
    loss_type, more, options = KIN[name]
    rows = [{"prompt": "t5", "chosen": "t6", "rejected": "t7"}]
    args = {"loss_type": [loss_type], "beta": 0.1, **more}
    made = trainer(
        "DPOTrainer", "DPOConfig", theirs, tokenizer, tmp_path, rows, args=args, ref_model=copy.deepcopy(reference)
    )
    batch = rows_of([(s["prompt"], s["answers"][k]) for k in (0, 1) for s in PREFERENCES])
    made.model.zero_grad()
    wanted = made.compute_loss(made.model, batch)
    wanted.backward()
    loss, slope = ours(name, PREFERENCES, model, our_reference, **options)
    assert loss == pytest.approx(wanted.item(), abs=1e-5, rel=1e-5)
    torch.testing.assert_close(slope, made.model.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)


def test_a_reward_model(models, tokenizer, tmp_path):
    from transformers import LlamaForSequenceClassification

    from llmlab.hub.load import load_hf

    torch.manual_seed(1)
    config = copy.deepcopy(models[0].config)
    config.num_labels = 1
    theirs = LlamaForSequenceClassification(config)
    theirs.save_pretrained(tmp_path / "reward")
    model = load_hf(tmp_path / "reward", verbose=False).model
    role = next(iter(model.heads))
    rows = [{"prompt": "t5", "chosen": "t6", "rejected": "t7"}]
    args = {"center_rewards_coefficient": 0.01}
    made = trainer("RewardTrainer", "RewardConfig", theirs, tokenizer, tmp_path, rows, args=args)
    batch = rows_of([(s["prompt"], s["answers"][k]) for k in (0, 1) for s in PREFERENCES])
    wanted = made.compute_loss(made.model, {k: v for k, v in batch.items() if k != "completion_mask"})

    def called(read, heads):
        found = model(read, heads={role: None})
        return found._replace(heads={"scalar": found.heads[role]})

    method = registry.load("alignment", "reward", {"centre": 0.01})(Vocabulary(SIZE, {"eos": 1}), 32)
    loss = method.loss(called, collate.batch([method.prepare(s, None) for s in PREFERENCES], "pad")).mean()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    made.model.zero_grad()
    wanted.backward()
    loss.backward()
    table = next(p for n, p in model.named_parameters() if "embedding" in n)
    torch.testing.assert_close(table.grad, made.model.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)


def test_kto(models, tokenizer, tmp_path):
    theirs, reference, model, our_reference = models
    samples = [
        {"prompt": s["prompt"], "answer": s["answers"][i % 2], "good": i != 1} for i, s in enumerate(PREFERENCES)
    ]
    for i, s in enumerate(samples):
        s["other"] = samples[(i + 1) % len(samples)]
    rows = [
        {"prompt": "t5", "completion": "t6", "label": True},
        {"prompt": "t5", "completion": "t7", "label": False},
    ] * 2
    args = {"beta": 0.1, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    made = trainer(
        "KTOTrainer", "KTOConfig", theirs, tokenizer, tmp_path, rows, args=args, ref_model=copy.deepcopy(reference)
    )
    batch = rows_of([(s["prompt"], s["answer"]) for s in samples])
    other = rows_of([(s["prompt"], s["other"]["answer"]) for s in samples])
    batch |= {f"KL_{name}": value for name, value in other.items()} | {"label": [s["good"] for s in samples]}
    batch["label"] = torch.tensor(batch["label"])
    made.model.zero_grad()
    wanted = made.compute_loss(made.model, batch)
    wanted.backward()
    loss, slope = ours("kto", samples, model, our_reference, good_weight=1.3, bad_weight=0.7)
    assert loss == pytest.approx(wanted.item(), abs=1e-6)
    torch.testing.assert_close(slope, made.model.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)


ALONE = {
    "cpo": {"nll_over": "tokens"},  # TRL's mean is over tokens, the paper's over answers
    "orpo": {"nll_over": "text"},  # TRL's is of the prompt too, the paper's is not
}


@pytest.mark.parametrize("name", ALONE)
def test_methods_without_a_reference(name, models, tokenizer, tmp_path):
    theirs, _, model, _ = models
    home = importlib.import_module(f"trl.experimental.{name}")
    rows = [{"prompt": "t5", "chosen": "t6", "rejected": "t7"}]
    kind = name.upper()
    made = trainer(f"{kind}Trainer", f"{kind}Config", theirs, tokenizer, tmp_path, rows, home=home, args={"beta": 0.1})
    batch = {}
    for which, k in (("chosen", 0), ("rejected", 1)):
        read = rows_of([(s["prompt"], s["answers"][k]) for s in PREFERENCES])
        labels = torch.where(read["completion_mask"] == 1, read["input_ids"], -100)
        named = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "labels": labels}
        batch |= {f"{which}_{key}": value for key, value in named.items()}
    made.model.zero_grad()
    wanted = made.compute_loss(made.model, batch)
    wanted.backward()
    loss, slope = ours(name, PREFERENCES, model, **ALONE[name])
    assert loss == pytest.approx(wanted.item(), abs=1e-5, rel=1e-5)
    torch.testing.assert_close(slope, made.model.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)
    assert ours(name, PREFERENCES, model)[0] != pytest.approx(wanted.item(), rel=1e-3)  # as its paper has it


def test_sft_packed_is_trl_s_padded(models, tokenizer, tmp_path):
    theirs, _, model, _ = models
    samples = [
        {
            "messages": [s["prompt"], s["answers"][0], s["prompt"][:1], s["answers"][1]],
            "roles": ["context", "assistant"] * 2,
        }
        for s in PREFERENCES
    ]
    rows = [{"prompt": "t5", "completion": "t6"}]
    made = trainer("SFTTrainer", "SFTConfig", theirs, tokenizer, tmp_path, rows)
    read = rows_of([([], np.concatenate(s["messages"])) for s in samples])
    labels = torch.full_like(read["input_ids"], -100)
    for row, s in zip(labels, samples, strict=True):
        at = 0
        for message, role in zip(s["messages"], s["roles"], strict=True):
            if role == "assistant":
                row[at : at + len(message)] = torch.tensor(message)
            at += len(message)
    made.model.zero_grad()
    wanted = made.compute_loss(made.model, {**{k: read[k] for k in ("input_ids", "attention_mask")}, "labels": labels})
    wanted.backward()
    method = registry.load("alignment", "sft", {})(Vocabulary(SIZE, {"eos": 1}), 64)
    packed = collate.prepare(method, [{**s, "messages": [np.array(m) for m in s["messages"]]} for s in samples], None)
    loss = method.loss(model, collate.batch([packed], "pad")).mean()
    model.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    table = next(p for n, p in model.named_parameters() if "embedding" in n)
    torch.testing.assert_close(table.grad, made.model.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)
