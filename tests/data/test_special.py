"""Special tokens that files beside a tokenizer.json name: those, and the ids, that AutoTokenizer of transformers has."""

import json

import pytest

from llmlab.config import schema
from llmlab.data import special
from llmlab.data.template import Template
from llmlab.data.tokenizer import BESIDE, from_file, make
from llmlab.errors import UserError

TEXT = "the cat sat on the mat\n"
CONFIG, MAP, ADDED = special.CONFIG, special.MAP, special.ADDED
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def byte_level(folder, tokens):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=300, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False),
    )
    inner.save(str(folder / "tokenizer.json"))


def put(folder, files):
    for name, content in files.items():
        about = {"tokenizer_class": "PreTrainedTokenizerFast", **content} if name == CONFIG else content
        (folder / name).write_text(json.dumps(about))


# The tokens of the vocabulary, and the files beside it.
CASES = {
    "config": (["<x>", "</s>"], {CONFIG: {"eos_token": "<x>"}}),
    "map alone": (["<x>", "</s>"], {CONFIG: {}, MAP: {"eos_token": "<x>"}}),
    "map, object": (["<x>", "[SEP]"], {CONFIG: {}, MAP: {"eos_token": {"content": "<x>", **FLAGS}}}),
    "config, object": (["<x>"], {CONFIG: {"eos_token": {"__type": "AddedToken", "content": "<x>", **FLAGS}}}),
    "map above config": (["<a>", "<b>"], {CONFIG: {"eos_token": "<a>"}, MAP: {"eos_token": "<b>", "bos_token": "<a>"}}),
    "map says none": (["<a>"], {CONFIG: {"bos_token": "<a>", "eos_token": "<a>"}, MAP: {"bos_token": None}}),
    "decoder above map": (
        ["<a>"],
        {CONFIG: {"eos_token": "<a>", "added_tokens_decoder": {}}, MAP: {"eos_token": "<b>"}},
    ),
    "decoder": (
        ["<a>"],
        {
            CONFIG: {
                "eos_token": "<z>",
                "added_tokens_decoder": {
                    "400": {"content": "<z>", **FLAGS, "special": True},
                    "301": {"content": "<y>", **FLAGS, "special": False},
                },
            }
        },
    ),
    "not in the vocabulary": (["</s>"], {CONFIG: {"eos_token": "<|im_end|>"}}),
    "several missing": (
        ["<s>"],
        {CONFIG: {r + "_token": f"<{r}>" for r in ("mask", "cls", "pad", "sep", "unk", "bos", "eos")}},
    ),
    "all there": (["<s>", "</s>", "<u>", "<m>"], {MAP: {"bos_token": "<s>", "cls_token": "<s>", "unk_token": "<u>"}}),
    "additional": (["<s>"], {CONFIG: {"eos_token": "<s>", "additional_special_tokens": ["<m>", "<n>"]}}),
    "additional in both": (
        ["<s>"],
        {CONFIG: {"additional_special_tokens": ["<m>"]}, MAP: {"additional_special_tokens": ["<n>"]}},
    ),
    "additional in the map": (["<s>"], {CONFIG: {}, MAP: {"additional_special_tokens": ["<n>", "<o>"]}}),
    "of the model's own": (
        ["<s>"],
        {CONFIG: {"image_token": "<img>", "extra_special_tokens": {"audio_token": "<au>"}}},
    ),
    "extra, a list": (
        ["<s>"],
        {CONFIG: {"extra_special_tokens": ["<m>"]}, MAP: {"extra_special_tokens": ["<n>", "<m>"]}},
    ),
    "added_tokens.json": (["<s>"], {CONFIG: {"eos_token": "<e>"}, ADDED: {"<q>": 401, "<e>": 400}}),
    "no file": (["<s>", "</s>"], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_transformers_has_them(name, tmp_path):
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    tokens, files = CASES[name]
    byte_level(tmp_path, tokens)
    put(tmp_path, {CONFIG: {}, **files})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = from_file(str(tmp_path), ())
    named = special.read_special(ours.beside, "here")
    assert {role: ours.inner.token_to_id(token["content"]) for role, token in named.roles.items()} == {
        role: i for role in special.ROLES if (i := getattr(theirs, f"{role}_token_id")) is not None
    }
    assert named.names == theirs.special_tokens_map
    assert ours.inner.get_vocab() == theirs.get_vocab() and ours.vocab_size == len(theirs)
    text = TEXT + "".join(theirs.get_added_vocab()) + " <s> x </s>"
    assert ours.encode_marked(text) == theirs(text, add_special_tokens=False)["input_ids"]
    if theirs.eos_token_id is not None:
        assert from_file(str(tmp_path), ("eos",)).special["eos"] == theirs.eos_token_id
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ image_token }}"
    wanted = theirs.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
    assert Template(template, named.names).render([{"role": "user", "content": "x"}]) == wanted


def test_where_no_file_names_it_the_id_of_the_config_and_then_a_usual_name_is_taken_with_a_line(tmp_path, capsys):
    byte_level(tmp_path, ["[SEP]", "<|endoftext|>", "<x>"])
    put(tmp_path, {CONFIG: {}})
    assert from_file(str(tmp_path), ("eos", "sep")).special == {"eos": 1, "sep": 0}
    line = "nothing there names the eos token of the tokenizer; <|endoftext|> is taken\n"
    assert capsys.readouterr().err == f"llmlab: {tmp_path}: {line}"
    put(tmp_path, {"generation_config.json": {"eos_token_id": [0, 1]}})
    assert from_file(str(tmp_path), ("eos",)).special == {"eos": 0}
    put(tmp_path, {"config.json": {"eos_token_id": 2, "pad_token_id": -1}})
    assert from_file(str(tmp_path), ("eos", "pad")).special == {"eos": 2, "pad": 271}
    assert capsys.readouterr().err == ""


def test_what_the_model_has_no_row_for_is_left_out_with_a_line(tmp_path, capsys):
    byte_level(tmp_path, ["</s>"])
    put(tmp_path, {CONFIG: {"eos_token": "</s>", "bos_token": "<1>", "pad_token": "<2>"}})
    n = from_file(str(tmp_path), ()).vocab_size - 2
    for table in (n + 1, None):
        put(tmp_path, {"config.json": {"vocab_size": n + 1}})
        assert from_file(str(tmp_path), ("eos",), table).vocab_size == n + 1
    assert capsys.readouterr().err == f"llmlab: {tmp_path}: the model has no row for <2>, which is left out\n" * 2


def test_what_a_run_keeps_says_the_same_again(tmp_path):
    byte_level(tmp_path, ["<x>", "</s>"])
    put(tmp_path, {CONFIG: {"chat_template": "{{ bos_token }}"}, MAP: {"eos_token": "<x>", "bos_token": "<new>"}})
    made = make(schema.Tokenizer(kind="file", path=str(tmp_path)), [], [], ("eos",))
    (tmp_path / "run").mkdir()
    made.save(tmp_path / "run")
    again = type(made).load(tmp_path / "run")
    assert again.beside == made.beside and set(made.beside) == {CONFIG, MAP} < set(BESIDE)
    assert (again.special, again.vocab_size) == (made.special, made.vocab_size)
    assert Template.from_files(again.beside, "run").render([]) == "<new>"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (CONFIG, [], "must be an object, but is a list []"),
        (CONFIG, {"eos_token": 5}, "eos_token must be a text or an object, but is 5"),
        (CONFIG, {"eos_token": {"lstrip": True}}, "eos_token.content is missing"),
        (CONFIG, {"added_tokens_decoder": {"x": {"content": "<a>"}}}, "added_tokens_decoder.x must be an id"),
        (CONFIG, {"added_tokens_decoder": {"1": "<a>"}}, "added_tokens_decoder.1 must be an object, but is '<a>'"),
        (CONFIG, {"additional_special_tokens": "<a>"}, "additional_special_tokens must be a list"),
        (CONFIG, {"chat_template": [{"template": "x"}]}, "chat_template[0].name is missing"),
        (CONFIG, {"chat_template": 1}, "chat_template must be"),
        (MAP, {"bos_token": ["<s>"]}, "bos_token must be a text or an object, but is a list"),
        (MAP, "x", "must be an object, but is 'x'"),
        (ADDED, {"<a>": "1"}, "<a> must be a whole number, but is '1'"),
        ("config.json", {"eos_token_id": "x"}, "eos_token_id must be a whole number or a list, but is 'x'"),
        ("generation_config.json", {"eos_token_id": [1, "x"]}, "eos_token_id[1] must be a whole number"),
    ],
)
def test_what_is_wrong_is_a_line_that_names_the_file(name, content, said, tmp_path):
    byte_level(tmp_path, ["<s>"])
    put(tmp_path, {CONFIG: {}})
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError) as e:
        from_file(str(tmp_path), ("eos",))
    line = str(e.value)
    assert "\n" not in line and name in line and str(tmp_path) in line and said in line


def models_of(vocabulary):
    from tokenizers import Tokenizer, models

    first = next(iter(vocabulary))
    yield Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    yield Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=first))
    yield Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=first))
    yield Tokenizer(models.Unigram([(token, 0.0) for token in vocabulary], unk_id=0))  # ids by place: no gaps


@pytest.mark.parametrize("vocabulary", [{"a": 0, "b": 1}, {"a": 0, "b": 7}, {"a": 3, "b": 9}, {"a": 0, "b": 2, "c": 8}])
@pytest.mark.parametrize("there", [(), ("<p>",), ("b", "<p>")])
def test_what_is_left_out_is_what_the_library_would_number_beyond_the_table(vocabulary, there):
    """Also where the ids have gaps: of a model's tokens the library goes by their number, of added ones by their ids."""
    names = ["<x>", "b", "<y>", "", "<z>"]
    for table in range(12):
        for all_of_them, ours in zip(models_of(vocabulary), models_of(vocabulary), strict=True):
            for inner in (all_of_them, ours):
                inner.add_tokens(list(there))
            all_of_them.add_special_tokens(names)
            ids = {t: all_of_them.token_to_id(t) for t in names if t}
            left_out = special.Special(more=tuple({"content": t} for t in names)).apply(ours, table)
            assert left_out == [t for t in ("<x>", "<y>", "<z>") if ids[t] >= table]
            assert all(ours.token_to_id(t) == i for t, i in ids.items() if t not in left_out)


def test_a_new_token_that_would_get_the_id_of_another_is_refused():
    for inner in models_of({"a": 1, "b": 2}):
        if inner.token_to_id("a") == 1:
            with pytest.raises(UserError, match=r"a new token, <e>, would get the id 2, which b has"):
                special.add(inner, "<e>")
            assert special.add(inner, "b") == 2
        else:
            assert special.add(inner, "<e>") == 2
