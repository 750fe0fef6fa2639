"""Values outside Hydra's grammar are read as what they are: the text between key= and the word's end."""

import random
import shlex

import pytest
from omegaconf import OmegaConf

from llmlab.config import inherit
from llmlab.config.compose import compose
from llmlab.config.explain import parse
from llmlab.config.spelling import parsed, quoted, spelled, text_keys, unquoted, value
from llmlab.errors import UserError
from llmlab.sweep import plan as plans

SOURCES = ("files", "python_code", "python_docs")
NAMES = [
    "тексты",
    "数据",
    "café",
    "🙂",
    "two words",
    "it's",
    'a "b"',
    "a (1)",
    "f(1)",
    "a=b",
    "a,b",
    "a: b",
    "[a]",
    "{a",
    "~a",
    "back\\",
    "#!&;<>^`",
    "“a”",
    "1e3",
    "1_000",
    "true",
]


def of(*words, **options):
    return spelled(words, lambda: SOURCES, **options)


def test_a_quoted_text_is_read_back():
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice("ab\\\"' ,=я(){}[]:🙂~#\n") for _ in range(rng.randint(1, 8)))
        assert parsed(f"data.path={quoted(text)}").value() == text == unquoted(quoted(text))
    assert [unquoted(t) for t in ("'a'", "it's'", "'", r"'it\'s'")] == ["a", "it's'", "'", "it's"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_any_characters(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("x")
    for key in (
        "data.path",
        "tokenizer.path",
        "hydra.run.dir",
        "resume",
        "init_from",
        "experiment_name",
        "hydra.sweep.dir",
    ):
        (word,) = of(f"{key}={name}")
        assert str(parsed(word).value()) == name
        assert value(f"{key}={name}") == name
    found = compose(["data=files", f"data.path={name}"])
    assert found.cfg.data.path == name
    assert found.overrides == ("data=files", f"data.path={name}")  # as typed
    assert compose([f"data={name}"]).cfg.data == found.cfg.data
    (word,) = of(f"data.path={quoted(name)}")  # quoted by the user: as it is
    assert word == f"data.path={quoted(name)}"


def test_what_the_grammar_takes_stays_as_typed():
    words = [
        "seed=1",
        "attention=mha",
        "data.path=runs/a.txt",
        "data.path=null",
        "data.path='a b'",
        "optimizer.lr=3e-3",
    ]
    words += [
        "data=python_code",
        "layers.cycle=[a,b]",
        "sweep=2",
        "data.path=${oc.env:HOME}/x",
        "hydra.run.dir=a/${now:%H}",
    ]
    words += ["~norm", "+seed=1", "model.dim=", "x"]
    assert of(*words) == words
    swept = [
        "attention=mha,gqa",
        "data.path=a,b",
        "data.path=choice(a,b)",
        "seed=range(1,3)",
        "data=python_docs,python_code",
    ]
    assert of(*swept, sweep=True) == swept


def test_values_of_a_sweep():
    def values(word):
        return [str(getattr(v, "text", v)) for v in parsed(of(word, sweep=True)[0]).value().list]

    assert values("data.path=тексты/a,b") == ["тексты/a", "b"]
    assert values("data.path=it's, a (1).txt ,я=b") == ["it's", "a (1).txt", "я=b"]
    assert values('data.path="a, b",я') == ["a, b", "я"]
    assert values("data.path=choice(ä,b)") == ["ä", "b"]
    assert values("logger.wandb.group=é,b") == ["é", "b"]
    assert parsed(of("logger.wandb.tags=[тег,два]")[0]).value() == ["тег", "два"]
    assert {"data.path", "tokenizer.path", "resume", "init_from", "sweep", "hydra.run.dir"} <= text_keys()


def test_a_sweep_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("я", "b (1)"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x")
    for words in (["data=files", "data.path=я,b (1)"], ["data=я,b (1)"]):
        plan = plans.make_plan([*words, "hydra.sweep.dir=a, (1)"])
        assert plan.keys == {"data.path": ['"я"', '"b (1)"']}
        assert [o for p in plan.points for o in p.overrides if o.startswith("data.path")] == [
            'data.path="я"',
            'data.path="b (1)"',
        ]
        assert plan.folder == tmp_path / "a, (1)"
    with pytest.raises(UserError, match="data=я,files: files is a source's name and я a path"):
        plans.make_plan(["data=я,files"])


def test_a_path_in_place_of_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytext").mkdir()
    (tmp_path / "mytext" / "a.txt").write_text("x")
    (tmp_path / "python_code").mkdir()
    found = compose(["data=./mytext"])
    assert (found.cfg.data.source, found.cfg.data.path, found.overrides) == ("files", "./mytext", ("data=./mytext",))
    assert compose(["data=mytext"]).cfg.data.path == "mytext"
    assert compose([f"data={tmp_path}/mytext/a.txt"]).cfg.data.path == f"{tmp_path}/mytext/a.txt"
    assert compose(["data=python_code"]).cfg.data.path is None  # a source's name goes before a folder's
    for words, said in (
        (
            ["data=mytxt"],
            "data=mytxt: there is no such data; .*text of your own is data=FOLDER_OR_FILE, and there is no file",
        ),
        (["data=мой"], "data=мой: there is no such data; .*no file or folder"),
        (["data=mytext", "data.path=x"], "data.path=x: data.path is given already, by data.path=mytext"),
        (["data=mytext", "data=files"], "data=files: data is given already"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            compose(words)
        assert "\n" not in str(caught.value)


def test_what_can_not_be_read_names_the_character_or_the_quoted_word():
    known = type("Known", (), {"groups": ["data", "seed"], "choices": lambda self, group: list(SOURCES)})()

    def problem(word):
        _, (line,) = parse(of(word), known)
        return line

    assert "no key has the character 'а' (CYRILLIC SMALL LETTER A)" in problem("dаta=files")  # not the Latin letter
    line = problem("seed=[1's")
    assert shlex.split(line.partition(", as in ")[2]) == ['seed="[1\'s"']
    with pytest.raises(UserError, match=r"data.path=caf\\udce9: holds a byte that is not UTF-8"):
        of("data.path=caf\udce9")


@pytest.mark.parametrize("name", ["a\\b", "it's", 'the "best"', "запуск", "ends\\"])
def test_a_tokenizer_is_inherited_from_a_folder_of_any_name(name, tmp_path):
    run = tmp_path / name
    run.mkdir()
    for file in (inherit.CONFIG, inherit.FILE):
        (run / file).write_text("{}")
    (run / inherit.SPECIAL).write_text('{"kind": "bpe"}')
    cfg = OmegaConf.create({"init_from": str(run), "init_tokenizer": None, "init_embedding": None})
    kind, path = inherit.words(cfg, ())
    assert kind == "tokenizer=file" and parsed(path).value() == str(run)
