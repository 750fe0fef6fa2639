"""Conversations: the shapes in which they are kept, what a chat template makes of them, and what of it is an answer."""

import json

import numpy as np
import pytest

from llmlab.config import schema
from llmlab.data import prepare
from llmlab.data.chat_templates import PRESETS
from llmlab.data.conversations import turns
from llmlab.data.framing import Framing
from llmlab.data.records import RecordSamples
from llmlab.data.template import Template
from llmlab.errors import UserError

TOKENS = {"eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi  "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": " So long."},
    {"role": "user", "content": "?"},
]
TRIMS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }} {% endfor %}" \
        "{% if add_generation_prompt %}[assistant] {% endif %}"  # fmt: skip
BARE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# As Qwen 3's: an answer's thoughts are gone once it is not the last.
FORGETS = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] if loop.last else m['content'].split('|')[-1] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize("source", [*PRESETS.values(), TRIMS, BARE], ids=[*PRESETS, "trims", "bare"])
def test_pieces_are_the_whole_rendering_up_to_its_last_answer(source):
    template = Template(source, TOKENS)
    found = list(turns(template, TALK))
    assert [name for name, _ in found] == ["context", "assistant"] * 2
    whole = template.render(TALK, answer=False)
    text = "".join(piece for _, piece in found)
    assert whole.startswith(text) and "So long." in found[-1][1] and "?" not in text
    for piece, content in zip(
        [text for name, text in found if name == "assistant"], ("Hello.", "So long."), strict=True
    ):
        # An answer is what the model is to write: its text, and the mark at which it ends, but no blank behind that.
        assert piece.strip().startswith(content) and (source is BARE or piece.endswith("</s>"))


def test_alpaca_writes_its_papers_two_prompts():
    template = Template(PRESETS["alpaca"], TOKENS)
    one = template.render([{"role": "user", "content": "Add."}])
    assert one == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:"
    )
    two = template.render([{"role": "user", "content": "Add.\n\n### Input:\n1 2"}])
    assert two == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
    )


def test_a_template_by_which_no_answer_can_be_told_is_refused():
    thinks = [{**m, "content": f"hm|{m['content']}"} if m["role"] == "assistant" else m for m in TALK]
    with pytest.raises(UserError, match=r"writes what is before message 5 otherwise once that is there \('hm"):
        list(turns(Template(FORGETS, TOKENS), thinks))
    assert len(list(turns(Template(FORGETS, TOKENS), thinks[:3]))) == 2
    asks = "{% for m in messages if m['role'] != 'assistant' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="its chat template writes nothing of message 3, an answer; choose another"):
        list(turns(Template(asks, TOKENS), TALK))


ASKED = [{"role": "user", "content": "one and two"}, {"role": "assistant", "content": "three"}]
SHAPES = [
    {"messages": ASKED},
    {"conversations": [{"from": "human", "value": "one and two"}, {"from": "gpt", "value": "three"}]},
    {"prompt": "one and two", "completion": "three"},
    {"prompt": ASKED[:1], "completion": ASKED[1:]},
    {"instruction": "one and two", "output": "three", "input": ""},
]


def opened(path, rows, seq_len=200, template=None, **how):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = schema.Data(source="files", path=str(path), seq_len=seq_len, **how)
    tokenizer = schema.Tokenizer(kind="bpe", vocab_size=400, template=template)
    corpus = prepare(data, tokenizer, ("eos",), reads="chat")
    return corpus, RecordSamples(corpus.train, "chat", Framing.stored(corpus.manifest["framing"]), seq_len)


def test_conversations_of_every_shape_are_one(tmp_path):
    corpus, found = opened(tmp_path / "a.jsonl", [*SHAPES, *SHAPES], split="position", validation=0.5)
    texts = [[corpus.tokenizer.decode(m, special=True) for m in found[i]["messages"]] for i in range(len(SHAPES))]
    start, end = "<|im_start|>", "<|im_end|>"
    assert texts[0] == [f"{start}user\none and two{end}\n{start}assistant\n", f"three{end}<|eos|>"]
    assert all(text == texts[0] for text in texts)
    # Its marks are one token each, and the tokenizer that the run keeps has the template beside it.
    assert found[0]["messages"][0][0] == corpus.tokenizer.inner.token_to_id(start)
    assert found[0]["messages"][1][-1] == corpus.tokenizer.special["eos"]
    assert corpus.tokenizer.beside["chat_template.jinja"] == PRESETS["chatml"]


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path):
    rows = [
        {"messages": ASKED},
        {"messages": ASKED[:1]},
        {"messages": [ASKED[0], {"role": "assistant", "content": " "}]},
        {"prompt": "x " * 300, "completion": "behind the end"},
    ]
    corpus, found = opened(tmp_path / "a.jsonl", rows, 100, "alpaca", split="position", validation=0.01)
    reasons = {s["reason"]: (s["count"], s["names"]) for s in corpus.manifest["read"]["skipped"]}
    assert reasons == {
        "conversations without an answer": (1, ["a.jsonl:2"]),
        "records with an empty answer": (1, ["a.jsonl:3"]),
    }
    assert (len(found), found.lost) == (1, 0)
    with pytest.raises(UserError, match=r"data.seq_len=100 cuts away the answers of all 1 conversations of a part"):
        len(RecordSamples(corpus.validation, "chat", found.framing, 100))
    assert np.concatenate(found[0]["messages"])[-1] == corpus.tokenizer.special["eos"]


def test_a_file_of_which_all_is_left_out_is_said_why(tmp_path):
    without, empty = (
        r"2 conversations without an answer \(a.jsonl:1, a.jsonl:2\)",
        r"1 records with an empty answer \(a.jsonl:3\)",
    )
    said = f"skipped 3: {without}, {empty}"
    with pytest.raises(UserError, match=said):
        opened(
            tmp_path / "a.jsonl", [{"messages": ASKED[:1]}, {"messages": ASKED[:1]}, {"prompt": "x", "completion": " "}]
        )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "asistant", "content": "x"}]}, r"line 1: messages\[0\]: there is no role 'asistant'; did"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: its content must be a text, but is null"),
        ({"messages": ["x"]}, r"messages\[0\] must be an object"),
        ({"messages": []}, "messages must be a list of objects"),
        ({"text": "x"}, r"line 1: conversations \(messages\) need messages; it has text"),
    ],
)  # fmt: skip
def test_messages_that_are_none_are_named(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        opened(tmp_path / "a.jsonl", [row])


def test_a_template_that_is_none_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"^tokenizer\.template=chatlm: there is no such file, and no such template; did you"
    ):
        opened(tmp_path / "a.jsonl", [{"messages": ASKED}], template="chatlm")
    (tmp_path / "own.jinja").write_text("{% for m in messages %}\n{{ m['content'] }")
    with pytest.raises(
        UserError, match=r"^tokenizer.template=.*own.jinja: its chat template can't be read: line 2: unexp"
    ):
        opened(tmp_path / "a.jsonl", [{"messages": ASKED}], template=str(tmp_path / "own.jinja"))
