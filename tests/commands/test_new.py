"""`llmlab new`: what it writes passes as it stands, in every slot, and trains; what it refuses."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from llmlab import registry
from llmlab.check.subject import Case, CheckFailed, Subject
from llmlab.check.twins import definition, settings
from llmlab.check.twins.observers import OBSERVERS
from llmlab.commands import new
from llmlab.errors import UserError
from llmlab.slot_names import SLOTS
from llmlab.twins import twin_of
from tests import warm

ROOT = Path(__file__).parents[2]
LONG = "x" * new.LONGEST


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMLAB_PLUGINS", raising=False)
    return tmp_path


def run(*words, folder, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = warm.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_slot_has_a_template_and_a_template_of_a_test():
    names = {path.stem for path in new.TEMPLATES.glob("*.py")} - {"__init__"}
    assert names == {*SLOTS, *(f"test_{slot}" for slot in SLOTS)}


def test_templates_keep_the_rules_of_parts(here, monkeypatch):
    """Those of tests/plugins/test_conformance.py that can be read: one line that names a paper, options that are explained."""
    monkeypatch.setenv("LLMLAB_PLUGINS", "llmlab.templates")
    for slot in SLOTS:
        entry = registry.index()[slot, f"my_{slot}"]
        assert entry.paper and 20 < len(entry.doc.split("\n")[0]) <= 120, slot
        assert entry.options and all(o.doc for o in entry.options.values()), slot


@pytest.mark.parametrize("name", ["mine", LONG])
@pytest.mark.slow
def test_what_is_written_is_formatted(here, name, capsys):
    for slot in SLOTS:
        new.main([slot, name, f"out={slot}_{name[:20]}.py"])
    run("ruff", "format", "--check", "--config", ROOT / "pyproject.toml", ".", folder=here)
    run("ruff", "check", "--config", ROOT / "pyproject.toml", ".", folder=here)
    assert len(list(here.glob("*.py"))) == 2 * len(SLOTS)


def test_outside_of_a_checkout(here, monkeypatch, capsys):
    """What it prints can be typed: the variable makes the part known."""
    monkeypatch.setattr("llmlab.commands.runs.record.program_name", lambda: "llmlab")
    new.main(["norm", "softened"])
    out = capsys.readouterr().out
    assert "wrote softened.py and test_softened.py" in out
    assert re.search(r"python[\d.]* -m pytest test_softened.py", out)
    assert "LLMLAB_PLUGINS=softened llmlab train norm=softened trainer.max_steps=20" in out
    assert "LLMLAB_PLUGINS=softened llmlab check norm=softened\n" in out
    assert "class Softened(nn.Module)" in (here / "softened.py").read_text()
    monkeypatch.setenv("LLMLAB_PLUGINS", "softened")
    assert registry.index()["norm", "softened"].path == here / "softened.py"
    new.main(["norm", "harder"])
    assert "LLMLAB_PLUGINS=softened,harder llmlab" in capsys.readouterr().out


def test_in_a_checkout(here, monkeypatch, capsys):
    (here / "plugins" / "ffn").mkdir(parents=True)
    monkeypatch.setattr(new, "checkout", lambda: here)
    new.main(["ffn", "wide"])
    out = capsys.readouterr().out
    assert "wrote plugins/ffn/wide.py and tests/plugins/test_wide.py" in out and "LLMLAB_PLUGINS" not in out
    test = (here / "tests" / "plugins" / "test_wide.py").read_text()
    assert 'learns("ffn=wide")' in test and "monkeypatch" not in test
    new.main(["ffn", "wider", "out=elsewhere/wider.py"])
    assert "PYTHONPATH=elsewhere LLMLAB_PLUGINS=wider " in capsys.readouterr().out
    assert (here / "elsewhere" / "test_wider.py").exists()


def test_the_checkout_is_known_by_where_one_is(here, monkeypatch):
    assert new.checkout() is None
    monkeypatch.chdir(ROOT / "plugins")
    assert new.checkout() == ROOT


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("atention mine", r"atention: there is no such slot; did you mean attention\?"),
        ("norm rmsnorm", r"norm=rmsnorm is there already, at .*rmsnorm\.py:\d+; choose another name"),
        ("window sliding_64", r"window=sliding_64 is there already, as a preset in conf/window/"),
        ("norm My-Norm", r"My-Norm: can't name a part; take lower-case letters, digits and _"),
        ("norm class", r"class: can't name a part"),
        ("norm null", r"null: can't name a part, because norm=null is a value"),
        ("norm random", r"random is the name of another module, which random\.py would hide"),
        ("norm there", r"there\.py is there already"),
        ("norm tested", r"test_tested\.py is there already"),
        ("norm mine out=mine.txt", r"out=mine\.txt must be a Python file"),
        ("norm mine to=mine.py", r"to: there is no such key of llmlab new; valid: out"),
        ("norm", r"llmlab new takes a slot and a name"),
        ("norm mine out=there.py/mine.py", r"there\.py: no folder can be made there"),
    ],
)
def test_refused(typed, said, here):
    (here / "there.py").write_text("")
    (here / "test_tested.py").write_text("")
    with pytest.raises(UserError, match=said) as e:
        new.main(typed.split())
    assert "\n" not in str(e.value)
    assert {p.name for p in here.iterdir()} == {"there.py", "test_tested.py"}


WRONG = {  # what a formula has, and what another one has there
    "adapter": ("return y * (1 + self.gain)", "return y + self.gain"),
    "alignment": ("(1 - (-nll).exp())", "(1 + (-nll).exp())"),
    "attention": ("Score(scale / temperature", "Score(scale * temperature"),
    "block": ("x_BTD + self.scale * self.dropout", "x_BTD + self.dropout"),
    "embedding": ("x_BTD = self.scale * nn.", "x_BTD = nn."),
    "ffn": ("torch.sigmoid(self.beta * g)", "torch.sigmoid(g)"),
    "filter": ("value > self.most", "value >= 2 * self.most"),
    "head": ("self.out.weight, self.bias)", "self.out.weight, None)"),
    "init": ("tensor.shape[-1] ** -0.5", "tensor.shape[0] ** -0.5"),
    "kernel": ("F.pad(s_BNTS, (0, 1))", "F.pad(s_BNTS, (0, 2))"),
    "mask": ("k <= q + self.ahead", "k < q + self.ahead"),
    "moe": ("return n_experts * (visits_E", "return (visits_E"),
    "norm": (" + self.eps) ** (1 / self.power)", ") ** (1 / self.power) + self.eps"),
    "objective": ("logsumexp(-1).square()", "logsumexp(-1)"),
    "optimizer": ("torch.lerp(p.grad, m, beta1)", "torch.lerp(p.grad, m, beta2)"),
    "position": ("b * cos + a * sin", "b * cos - a * sin"),
    "reward": ("(one & other)", "(one | other)"),
    "schedule": ("left**self.power", "left"),
    "window": ("k > q - self.left", "k >= q - self.left"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with right_SLOT.py of every slot that has a definition, and wrong_SLOT.py with another formula."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LLMLAB_PLUGINS", raising=False)
        for slot in OBSERVERS:
            new.main([slot, f"right_{slot}"])
            new.main([slot, f"wrong_{slot}"])
            text, other = (folder / f"wrong_{slot}.py").read_text(), WRONG[slot]
            assert text.count(other[0]) == 1
            (folder / f"wrong_{slot}.py").write_text(text.replace(*other))
    return folder


@pytest.mark.parametrize("slot", OBSERVERS)
def test_a_new_part_is_held_to_its_twin(slot, written, monkeypatch):
    known = [f"{name}_{slot}" for slot in OBSERVERS for name in ("right", "wrong")]
    monkeypatch.setenv("LLMLAB_PLUGINS", ",".join(known))
    monkeypatch.syspath_prepend(written)
    subjects = [Subject(Case(name, (), "part", parts=((slot, f"{name}_{slot}"),))) for name in ("right", "wrong")]
    definition(subjects[0])
    source = re.escape(twin_of(slot, f"right_{slot}").source)
    with pytest.raises(CheckFailed, match=rf"{slot}=wrong_{slot}.*: \S+ is \S+, but \S+ by {source} \(value"):
        definition(subjects[1])


def test_each_option_of_a_template_is_met(here, monkeypatch):
    monkeypatch.setenv("LLMLAB_PLUGINS", "llmlab.templates")
    assert not [slot for slot in OBSERVERS if settings.not_shown(slot, f"my_{slot}")]


TRAIN = """
import sys
from llmlab.commands.cli import run
for argv in {argvs!r}:
    assert run(["train", *argv]) == 0, argv
"""


@pytest.mark.slow  # the tests of 15 new parts, some 60 small models, in one process: 15 s
def test_the_tests_that_come_with_every_slot_pass(here, capsys):
    for slot in SLOTS:
        new.main([slot, f"own_{slot}"])
    out = run("pytest", "-q", "-p", "no:cacheprovider", ".", folder=here)
    assert "failed" not in out and "skipped" not in out


@pytest.mark.slow  # six runs of two steps in one process
def test_every_slot_trains_with_a_new_part(here, capsys):
    for slot in SLOTS:
        new.main([slot, f"own_{slot}"])
    (here / "text.txt").write_text("It was a bright cold day in April. " * 200)
    small = [
        "data=files",
        "data.path=text.txt",
        "tokenizer=char",
        "model.dim=32",
        "model.n_layers=2",
        "data.seq_len=16",
    ]
    small += ["trainer.max_steps=2", "train.batch_size=4", "train.sample=false"]
    (here / "prompts.jsonl").write_text(
        '{"prompt": "It was", "answer": "a day"}\n{"prompt": "A day", "answer": "it"}\n' * 9
    )
    acts = ["data.path=prompts.jsonl", "alignment=reinforce", "alignment.max_new=2", "reward=own_reward"]
    (here / "ranked.jsonl").write_text('{"prompt": "It was", "chosen": "a day", "rejected": "it"}\n' * 18)
    ranks = ["data.path=ranked.jsonl", "alignment=own_alignment", "hydra.run.dir=ranks"]
    others = ("head", "mask", "moe", "reward", "filter", "alignment")
    all_but = [f"{slot}=own_{slot}" for slot in SLOTS if slot not in others]
    argvs = [
        [*small, *all_but, "+head@heads.tokens=own_head", "filter=[length,own_filter]", "hydra.run.dir=decoder"],
        [*small, "model=qwen_moe", "moe=own_moe", "hydra.run.dir=experts"],
        [*small, "model=bert", "mask=own_mask", "hydra.run.dir=encoder"],
        ["resume=decoder", "trainer.max_steps=3"],
        [*(o for o in small if "text.txt" not in o), *acts, "hydra.run.dir=acts"],
        [*(o for o in small if "text.txt" not in o), *ranks],
    ]
    known = ",".join(f"own_{slot}" for slot in SLOTS)
    done = warm.run(
        [sys.executable, "-c", TRAIN.format(argvs=argvs)],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LLMLAB_PLUGINS": known, "LLMLAB_CACHE": str(here / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((here / "decoder" / "run.json").read_text())
    assert record["steps"] == 3
    parts = record["parts"]
    assert {slot: parts[slot] for slot in SLOTS if slot in parts and parts[slot] == f"own_{slot}"}.keys() == {
        choice.partition("=")[0] for choice in all_but
    }
    assert parts["heads.tokens"] == "own_head" and parts["filter.own_filter"] == "own_filter"
