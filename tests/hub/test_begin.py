"""`init_from=hf=FOLDER`: training goes on from a Hugging Face checkpoint, whose model and tokenizer it takes."""

import json

import pytest
import torch
from families import build, mostly_slow, tiny

import llmlab
from llmlab import load_hf
from llmlab.errors import UserError
from llmlab.runs.compose import compose
from llmlab.runs.folder import load_model
from llmlab.training.run import train

RECIPE = [
    "data=files",
    "data.seq_len=16",
    "train.batch_size=4",
    "train.validation_batches=2",
    "train.sample=false",
    "trainer.accelerator=cpu",
    "budget.steps=1",
]


@pytest.fixture(scope="module")
def made(transformers, tmp_path_factory, words):
    """A small LLaMA with a tokenizer, as transformers writes it, and a text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    size = words.save(folder)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
        tie_word_embeddings=False,
        initializer_range=0.3,
        eos_token_id=words.eos,
        bos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder, model


def overrides(folder, words, *more):
    return [*RECIPE, f"data.path={words.text}", f"init_from=hf={folder}", *more]


def test_the_model_and_the_tokenizer_are_the_checkpoints(made, words, tmp_path):
    folder, theirs = made
    composed = compose(overrides(folder, words, "optimizer.lr=1e-30"))
    assert composed.cfg.init_from == f"hf={folder}"
    assert (composed.cfg.model.dim, composed.cfg.position.theta, composed.cfg.tokenizer.kind) == (16, 5000.0, "file")
    done = train(composed, tmp_path / "run")
    model, tokenizer = load_model(tmp_path / "run")
    ids = torch.arange(20)[None] % 7
    torch.testing.assert_close(model({"ids": ids}).heads["tokens"], theirs(ids).logits)
    assert tokenizer.encode("the fox runs") == json.loads(words.expected)
    assert done["overrides"][-2] == f'init_from="hf={folder}"'
    written = load_hf(folder, verbose=False).model.state_dict()
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_other_ways_to_type_it(made, words):
    for way in (f"hf:{made[0]}", f"'hf={made[0]}'", f'"hf={made[0]}"'):
        cfg = compose([*RECIPE, f"data.path={words.text}", f"init_from={way}"]).cfg
        assert cfg.model.dim == 16


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("model.dim=32", "model.dim=32 contradicts init_from=hf=.*, whose model has model.dim=16; leave it out"),
        ("model=gpt2", "model=gpt2 contradicts init_from=hf=.*model=llama3.*"),
        ("size=micro", "size=micro: the model of hf=.* has a size of its own; leave it out"),
        ("position=none", "position=none contradicts init_from=hf=.*, whose model has position=rope; leave it out"),
        ("attention=mla", "attention=mla.* is not what the model of .* has; leave it out"),
    ],
)
def test_what_contradicts_is_refused(made, words, typed, line):
    with pytest.raises(UserError, match=f"^{line}$"):
        compose(overrides(made[0], words, typed))


def test_what_agrees_or_is_of_the_recipe_is_taken(made, words):
    cfg = compose(
        overrides(made[0], words, "model.dim=16", "model.dropout=0.1", "attention=gqa", "optimizer.lr=0.1")
    ).cfg
    assert (cfg.model.dropout, cfg.optimizer.lr) == (0.1, 0.1)
    assert compose(overrides(made[0], words, "tokenizer=char")).cfg.tokenizer.kind == "char"


def test_a_folder_that_is_none(words, tmp_path):
    with pytest.raises(UserError, match="^hf=nowhere: there is no such folder"):
        compose([f"data.path={words.text}", *RECIPE, "init_from=hf=nowhere"])
    with pytest.raises(UserError, match="holds no config.json"):
        compose([f"data.path={words.text}", *RECIPE, f"init_from=hf={tmp_path}"])


def test_damaged_weights_are_refused_before_a_folder_is_made(made, words, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(made[0], bad)
    tensors = load_file(bad / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, bad / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing$"):
        train(compose(overrides(bad, words)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_and_the_chat_template_go_along(transformers, made, words, tmp_path, capsys):
    from llmlab import save_hf
    from llmlab.commands import cli

    save_hf(load_hf(made[0]), tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made[0] / name).read_bytes()
    chat = tmp_path / "chat"
    save_hf(load_hf(made[0]), chat)
    words.save(chat, "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}")
    train(compose(overrides(chat, words)), tmp_path / "run")
    for step, argv in enumerate((["format=llmlab"], ["format=hf"])):
        run = tmp_path / ("run", "llmlab")[step]
        to = tmp_path / argv[0].partition("=")[2]
        assert cli.run(["export", f"run={run}", f"to={to}", *argv]) == 0, capsys.readouterr().err
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "runs"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "the fox<end>runs<end>"
    assert tokenizer.eos_token == "<end>"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.eos_token_id == 0


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    rows = [{"text": f"the {word} runs", "label": word} for word in ("fox", "dog", "cat")] * 20
    file = tmp_path_factory.mktemp("reviews") / "reviews.jsonl"
    file.write_text(
        "".join(json.dumps({**r, "text": f"{r['text']} {'the ' * (i % 9)}"}) + "\n" for i, r in enumerate(rows))
    )
    return file


OWN = {
    "xlnet": ("plm", "objective=mlm"),
    "mpnet": ("mpnet", "objective=mlm", "position.pad_id=1", "position.offset=2"),
    "chatglm1": ("mix", "objective=mlm", "+head@heads.tokens=lm"),
    "bert": ("mlm", "objective=mlm_only"),
    "electra": ("rtd",),
    "bart": ("denoise",),
}


@pytest.mark.parametrize("family", mostly_slow(OWN, ("xlnet",)))
def test_a_family_goes_on_by_its_own_objective(family, words, tmp_path):
    """As config.json has it, where it tells: a BERT without its head for pairs learns tokens alone."""
    own, *how = OWN[family]
    made = build(*tiny(family, *how), wake=False)
    llmlab.save_hf(made, tmp_path / "hf")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{line}. " for line in words.text.read_text().split(" runs ")))
    start = [*RECIPE, f"data.path={text}", f"init_from=hf={tmp_path / 'hf'}", "tokenizer=char", "optimizer.lr=1e-30"]
    composed = compose(start)
    assert composed.cfg.objective["_part_"] == own
    train(composed, tmp_path / "run")
    weights = load_model(tmp_path / "run")[0].state_dict()
    there = {k: v for k, v in made.state_dict().items() if not k.startswith("heads.") or k in weights}
    assert len(there) > 9
    for name, tensor in there.items():
        torch.testing.assert_close(weights[name], tensor)
    if "objective=mlm" in how:
        assert load_hf(tmp_path / "hf", verbose=False).model.spec.stacks[0].mask.name == "bidirectional"
        if family == "xlnet":
            assert compose([*start, "objective=mlm"]).cfg.objective["_part_"] == "mlm"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_classifier_begins_from_an_encoder(transformers, words, reviews, tmp_path, capsys, head):
    (tmp_path / "hf").mkdir()
    size = words.save(tmp_path / "hf")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=size, max_position_embeddings=64, num_labels=3, **sizes)
    theirs = getattr(transformers, head)(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    start = [
        *RECIPE,
        f"data.path={reviews}",
        f"init_from=hf={tmp_path / 'hf'}",
        "objective=classification",
        "optimizer.lr=1e-30",
    ]
    done = train(compose(start), tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    ids = torch.arange(20)[None] % 7
    torch.testing.assert_close(model({"ids": ids}).hidden, theirs.base_model(ids).last_hidden_state)
    assert done["data"]["labels"] == ["cat", "dog", "fox"]
    if head == "BertForMaskedLM":
        assert "init_from: of the heads classes is new and tokens of it is left out" in done["notes"]
    else:
        torch.testing.assert_close(model({"ids": ids}).heads["classes"], theirs(ids).logits)
