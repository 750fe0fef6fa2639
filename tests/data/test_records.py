import csv
import itertools
import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers, processors

from llmlab.config.schema import Data, Fields, Tokenizer
from llmlab.data import prepare
from llmlab.data.framing import Framing, shares
from llmlab.data.packing import Packs, pack
from llmlab.data.records import RecordSamples
from llmlab.errors import UserError
from llmlab.record_kinds import KEYS, KINDS

WORDS = ["good", "bad", "film", "story", "actor", "plot", "slow", "fine", "great", "dull"]


def rows(n=60, seed=0, most=20):
    chance = np.random.default_rng(seed)
    text = lambda: " ".join(chance.choice(WORDS, chance.integers(1, most)))  # noqa: E731
    return [{"text": text(), "text_b": text(), "label": int(chance.integers(3))} for _ in range(n)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def opened(path, reads="labelled", labels=None, tokenizer=None, special=(), fields=None, **data):
    settings = Data(source="files", path=str(path), fields=Fields(**(fields or {})), **data)
    return prepare(settings, tokenizer or Tokenizer(vocab_size=300), special, reads=reads, labels=labels)


def samples(corpus, seq_len=400, part="train", **how):
    framing = Framing.stored(corpus.manifest["framing"])
    return RecordSamples(getattr(corpus, part), corpus.manifest["kind"], framing, seq_len, **how)


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as e:
        opened(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    return str(e.value)


def test_the_config_names_the_keys_of_every_kind():
    assert set(KEYS) == set(vars(Fields()))
    assert all(kind.fields[0].required for kind in KINDS.values())


def test_one_content_in_every_format_is_one_corpus(tmp_path):
    found = rows()
    jsonl(tmp_path / "a.jsonl", found)
    (tmp_path / "a.json").write_text(json.dumps(found))
    for ending, how in ((".csv", {}), (".tsv", {"delimiter": "\t"})):
        with (tmp_path / f"a{ending}").open("w", newline="") as f:
            writer = csv.DictWriter(f, list(found[0]), **how)
            writer.writeheader()
            writer.writerows(found)
    corpora = [opened(tmp_path / f"a{e}") for e in (".jsonl", ".json", ".csv", ".tsv")]
    assert len({c.fingerprint for c in corpora}) == 1 and len({c.folder for c in corpora}) == 4
    assert corpora[0].labels == ["0", "1", "2"]
    known = {json.dumps([r["text"], r["text_b"]]): r["label"] for r in found}
    for corpus in corpora:
        seen = 0
        for part in (corpus.train, corpus.validation):
            for i in range(part.count):
                pieces = dict(part.of(i))
                text = json.dumps([corpus.tokenizer.decode(pieces[k]) for k in ("text", "text_b")])
                assert known[text] == part.labels[i]
                seen += 1
        assert seen == 60 and isinstance(corpus.train.tokens, np.memmap)


BAD = {
    "no json": ('{"text": ', "r.jsonl, line 2: not valid JSON"),
    "a list": ("[1]", "r.jsonl, line 2: needs an object, but is a list"),
    "no label": (
        '{"text": "x", "category": 1, "id": 2}',
        "need label; it has text, category, id: data.fields.label=KEY",
    ),
    "null": ('{"text": "x", "label": null}', "need label; it has text, label"),
    "float": ('{"text": "x", "label": 0.5}', "r.jsonl, line 2: label must be a text or a whole number, but is 0.5"),
    "number": ('{"text": 3, "label": 1}', "text must be a text, but is 3"),
    "surrogate": ('{"text": "\\ud800", "label": 1}', "line 2: holds half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_record_is_said_with_its_line(tmp_path, name):
    line, said = BAD[name]
    (tmp_path / "r.jsonl").write_text('{"text": "good", "label": 0}\n' + line + "\n")
    assert said in refusal(tmp_path / "r.jsonl")


def test_tables_that_are_none(tmp_path):
    (tmp_path / "r.csv").write_text("text,label\nx,1\ny,2,3\n")
    assert "r.csv, line 3: it has 3 values, but the first line names 2 columns (text, label)" in refusal(
        tmp_path / "r.csv"
    )
    (tmp_path / "r.csv").write_text('text,label\nx,"1\n')
    assert "not valid .csv" in refusal(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("text,text\nx,1\n")
    assert "two columns are called 'text'" in refusal(tmp_path / "r.csv")
    (tmp_path / "r.json").write_text('{"text": "x"}')
    assert "r.json, record 1: labelled records" in refusal(tmp_path / "r.json")
    (tmp_path / "r.txt").write_text("x")
    assert "files must end in one of .jsonl, .json, .csv, .tsv" in refusal(tmp_path / "r.txt")


def test_other_names_for_fields(tmp_path):
    jsonl(tmp_path / "r.jsonl", [{"in": {"s": r["text"]}, "y": "ab"[r["label"] % 2]} for r in rows()])
    corpus = opened(tmp_path / "r.jsonl", fields={"text": "in.s", "label": "y"})
    assert corpus.labels == ["a", "b"] and corpus.train.called == ("text",)
    assert "there is no z in it; it has in, y" in refusal(tmp_path / "r.jsonl", fields={"text": "in.s", "label": "z"})
    assert "no field of labelled" in refusal(tmp_path / "r.jsonl", fields={"prompt": "in"})


def test_labels_are_classes_in_a_known_order(tmp_path):
    found = [
        {"text": f"{r['text']} {i}", "label": label}
        for i, (r, label) in enumerate(zip(rows(), itertools.cycle([10, -2, 9])))
    ]
    jsonl(tmp_path / "r.jsonl", found)
    assert opened(tmp_path / "r.jsonl").labels == ["-2", "9", "10"]
    assert opened(tmp_path / "r.jsonl", labels=["10", "9", "x", "-2"]).train.labels.max() == 3
    message = refusal(tmp_path / "r.jsonl", labels=["10", "9"])
    assert "r.jsonl:2: the model has no class '-2'; it has 10, 9" in message
    jsonl(tmp_path / "r.jsonl", [{"text": "x", "label": True}, {"text": "y", "label": True}])
    assert "all records have the label 'true'" in refusal(tmp_path / "r.jsonl")


def test_records_without_text_are_left_out_and_counted(tmp_path, capsys):
    jsonl(tmp_path / "r.jsonl", [*rows(), {"text": "  ", "label": 1}, {"text": "", "label": 2}])
    corpus = opened(tmp_path / "r.jsonl")
    assert sum(corpus.manifest["documents"].values()) == 60
    assert "skipped 2: 2 records without text (r.jsonl:61, r.jsonl:62)" in capsys.readouterr().err


def test_a_text_is_on_one_side_whatever_its_label(tmp_path):
    found = rows(100)
    jsonl(tmp_path / "a.jsonl", found)
    jsonl(tmp_path / "b.jsonl", [{**r, "label": 2 - r["label"]} for r in found] + rows(50, 1))
    one, other = (opened(tmp_path / f"{n}.jsonl", validation=0.3) for n in "ab")

    def texts(corpus, part):
        held = getattr(corpus, part)
        return {tuple(corpus.tokenizer.decode(ids) for _, ids in held.of(i)) for i in range(held.count)}

    assert texts(one, "validation") <= texts(other, "validation") and texts(one, "train") <= texts(other, "train")
    jsonl(tmp_path / "c.jsonl", found[:3])
    assert opened(tmp_path / "c.jsonl", split="position").manifest["documents"] == {"train": 2, "validation": 1}


def test_a_tokenizer_that_is_learnt_frames_as_bert_does(tmp_path):
    jsonl(tmp_path / "r.jsonl", [*rows(), {"text": "good", "label": 1}])
    corpus = opened(tmp_path / "r.jsonl", split="position", validation=0.01)
    (sample,) = [samples(corpus, part="validation", segments=True)[i] for i in range(1)]
    cls, sep = (corpus.tokenizer.special[n] for n in ("cls", "sep"))
    assert sample["tokens"].tolist() == [cls, *corpus.tokenizer.encode("good"), sep]
    pair = samples(corpus, segments=True)[0]
    a, b = (corpus.tokenizer.encode(rows()[0][k]) for k in ("text", "text_b"))
    assert pair["tokens"].tolist() == [cls, *a, sep, *b, sep]
    assert pair["segments"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert pair["label"] == rows()[0]["label"]


@pytest.mark.parametrize(
    "template",
    ["[CLS] $A [SEP] | [CLS] $A [SEP] $B:1 [SEP]:1", "$A [SEP] [CLS]:2 | $A [SEP] $B:1 [SEP]:1 [CLS]:2"],
)
def test_a_tokenizer_of_a_file_frames_by_its_own_template(tmp_path, template):
    single, pair = template.split(" | ")
    inner = Inner(
        models.WordLevel({w: i for i, w in enumerate(["[CLS]", "[SEP]", "[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    inner.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
    inner.save(str(tmp_path / "tokenizer.json"))
    found = [*rows(), *({k: r[k] for k in ("text", "label")} for r in rows(20, 1))]
    jsonl(tmp_path / "r.jsonl", found)
    corpus = opened(
        tmp_path / "r.jsonl", tokenizer=Tokenizer("file", path=str(tmp_path / "tokenizer.json")), split="position"
    )
    whole = samples(corpus, segments=True)
    for i in range(len(whole)):
        texts = [found[i][k] for k in ("text", "text_b") if k in found[i]]
        want = inner.encode(*texts, add_special_tokens=True)
        assert whole[i]["tokens"].tolist() == want.ids and whole[i]["segments"].tolist() == want.type_ids


def test_the_longer_text_is_shortened_first():
    for one, two, room in itertools.product(range(12), range(12), range(2, 14)):
        a, b = one, two
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert shares([one, two], room) == [a, b], (one, two, room)


OTHERS = {
    "tagged": lambda r: {"words": r["text"].split(), "labels": [len(w) % 2 for w in r["text"].split()]},
    "questions": lambda r: {"question": r["text"][:9], "context": r["text_b"], "answer": r["text_b"][:3], "start": 0},
    "choices": lambda r: {"question": r["text"], "choices": [r["text_b"], "no", "good"], "answer": r["label"]},
    "similar": lambda r: {"text": r["text"], "positive": r["text_b"], **({"negative": "bad"} if r["label"] else {})},
    "pairs": lambda r: {"source": r["text"], "target": r["text_b"]},
    "chat": lambda r: {
        "messages": [{"role": "user", "content": r["text"]}, {"role": "assistant", "content": r["text_b"]}] * 2
    },
    "preferences": lambda r: {"prompt": r["text"], "chosen": r["text_b"], "rejected": "no " * (r["label"] + 1)},
    "rated": lambda r: {"prompt": r["text"], "completion": r["text_b"], "label": bool(r["label"])},
    "prompts": lambda r: {"prompt": r["text"], "answer": {"is": r["label"]}},
}


def size(kind, sample):
    """Tokens of a sample, by hand."""
    if "tokens" in sample:
        return len(sample["tokens"])
    if "rows" in sample:
        return max(map(len, sample["rows"]))
    if kind == "chat":
        return sum(map(len, sample["messages"]))
    if kind == "rated":
        return len(sample["prompt"]) + len(sample["answer"])
    if kind == "preferences":
        return len(sample["prompt"]) + max(map(len, sample["answers"]))
    return sum(len(sample[k]) for k in ("source", "target", "prompt") if k in sample)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_every_kind_fit_and_those_that_are_cut_are_counted(tmp_path, kind):
    found = rows(80, most=16)
    jsonl(tmp_path / "r.jsonl", [OTHERS[kind](r) if kind in OTHERS else r for r in found])
    corpus = opened(tmp_path / "r.jsonl", kind)
    whole = samples(corpus)
    sizes = [size(kind, whole[i]) for i in range(len(whole))]
    assert whole.cut == 0 and whole.full.tolist() == sizes
    room = int(np.median(sizes))
    short = samples(corpus, room)
    assert (
        [size(kind, short[i]) for i in range(len(short))] == np.minimum(sizes, room).tolist() == short.lengths.tolist()
    )
    assert short.cut == sum(n > room for n in sizes)


def test_what_the_other_kinds_hold(tmp_path):
    r = rows(60)
    files = {kind: jsonl(tmp_path / f"{kind}.jsonl", [of(x) for x in r]) for kind, of in OTHERS.items()}
    made = {kind: opened(file, kind, split="position") for kind, file in files.items()}

    sample = {kind: samples(corpus)[0] for kind, corpus in made.items()}
    ids = {kind: corpus.tokenizer.encode for kind, corpus in made.items()}
    end = 0  # eos is the first special token
    pairs, chat = sample["pairs"], sample["chat"]
    assert pairs["source"].tolist() == ids["pairs"](r[0]["text"])
    assert pairs["target"].tolist() == [*ids["pairs"](r[0]["text_b"]), end]
    assert chat["roles"] == ["context", "assistant"] * 2
    named = made["chat"].tokenizer.special
    assert chat["messages"][1].tolist() == [*ids["chat"](r[0]["text_b"]), named["im_end"], named["eos"]]
    rated = sample["rated"]
    assert rated["good"] == bool(r[0]["label"]) and rated["answer"].tolist() == [*ids["rated"](r[0]["text_b"]), end]
    worse = sample["preferences"]["answers"][1].tolist()
    assert worse == [*ids["preferences"]("no " * (r[0]["label"] + 1)), end]
    assert sample["prompts"]["rest"] == {"answer": {"is": r[0]["label"]}}
    short = samples(made["prompts"], 3)
    assert short[0]["prompt"].tolist() == ids["prompts"](r[0]["text"])[-3:]


def test_scores_and_ranks_order_answers_and_are_read_where_they_are_named(tmp_path):
    answers = ["good", "bad", "dull"]
    made = [
        {"prompt": w, "answers": answers, "scores": [0.5, 2, 0.5], "ranks": [2, 1, 2], "n": i}
        for i, w in enumerate(WORDS * 3)
    ]
    tied = {"prompt": "slow", "answers": answers, "scores": [1, 1, 1], "ranks": [1, 1, 1]}
    file = jsonl(tmp_path / "r.jsonl", [*made, tied])
    plain = samples(opened(file, "preferences", split="position"))[0]
    assert "scores" not in plain
    for key, wanted in (("scores", [2, 0.5, 0.5]), ("ranks", [-1, -2, -2])):
        corpus = opened(file, "preferences", split="position", fields={key: key})
        assert sum(corpus.manifest["documents"].values()) == 30
        found = samples(corpus)[0]
        assert found["scores"].tolist() == wanted
        encode = lambda text: [*corpus.tokenizer.encode(text), 0]  # noqa: B023, E731
        assert [a.tolist() for a in found["answers"]] == [encode(a) for a in ("bad", "good", "dull")]
    pair = {"prompt": "a", "chosen": "good", "rejected": "bad", "by_one": 1, "by_other": 2}
    both = {"score_chosen": "by_one", "score_rejected": "by_other"}
    for record, fields, said in (
        (pair, both, "rejected has a better score than chosen"),
        ({**made[0], "scores": [1, 2]}, {"scores": "scores"}, "has 3 answers, but 2 scores"),
        (
            {**made[0], "scores": [1, 2, "x"]},
            {"scores": "scores"},
            "scores must be a list of numbers, one for each answer",
        ),
        ({**made[0], "scores": None}, {"scores": "scores"}, "there is no scores in it"),
        (made[0], {"scores": "scores", "ranks": "ranks"}, "has both scores and ranks"),
    ):
        assert said in refusal(jsonl(tmp_path / "b.jsonl", [record] * 5), "preferences", fields=fields)


def test_packing_is_best_fit_decreasing():
    chance = np.random.default_rng(0)
    for room in (7, 30, 100):
        lengths = chance.integers(1, room + 1, 200)
        windows = pack(lengths, room)
        assert sorted(i for w in windows for i in w) == list(range(200))
        assert all(lengths[w].sum() <= room for w in windows)
        left = []  # a brute-force twin
        for n in sorted(lengths, reverse=True):
            fits = [i for i, free in enumerate(left) if free >= n]
            if fits:
                left[min(fits, key=lambda i: left[i])] -= n
            else:
                left.append(room - n)
        assert sorted(left) == sorted(int(room - lengths[w].sum()) for w in windows)


def test_packs_hold_every_record_once(tmp_path):
    jsonl(tmp_path / "r.jsonl", [OTHERS["pairs"](r) for r in rows(80, most=8)])
    records = samples(opened(tmp_path / "r.jsonl", "pairs"), 40)
    packs = Packs(records)
    assert len(packs) < len(records)
    sizes = [[len(r["source"]) + len(r["target"]) for r in packs[i]] for i in range(len(packs))]
    assert max(map(sum, sizes)) <= 40
    assert sorted(n for s in sizes for n in s) == sorted(records.lengths)
    assert packs.tokens_per_sample == pytest.approx(np.mean([sum(s) for s in sizes]))


def test_texts_hold_no_records():
    with pytest.raises(
        UserError,
        match=r"data=python_docs holds texts: labelled records \(text, label; optional text_b, votes, confidence\)",
    ):
        prepare(Data(), Tokenizer(), reads="labelled")
