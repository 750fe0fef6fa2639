"""Bad input: a line each that names the key and the fix, exit code 1, no traceback, no torch."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest

# what is typed, and what the lines after "error: " must match, in order
TABLE = [
    ("attention=gqq", r"attention=gqq: there is no such attention; did you mean gqa\? \(valid: gqa, lstm, "),
    ("norm.epss=1", r"norm\.epss: there is no such key in norm \(rmsnorm\); valid: offset"),
    ("sede=3", r"sede: there is no such key; did you mean seed"),
    ("trainer.max_stepz=3", r"trainer\.max_stepz: there is no such key in trainer; did you mean max_steps"),
    (
        "attention=gqq norm.epss=1 sede=3 trainer.max_stepz=3 attention.kv_rank=3",
        r"attention=gqq: .*",
        r"norm\.epss: .*",
        r"sede: .*",
        r"trainer\.max_stepz: .*",
    ),
    (
        "model.dim=many model.dropout=2 seed=null precision=16",
        r"precision=16: there is no such precision; valid: 16-mixed, 32-true, bf16-mixed, .*",
        r"model\.dim=many: must be a whole number, but is 'many'",
        r"seed=null: must have a value, but is null",
        r"model\.dropout must be at least 0 and less than 1, but is 2\.0",
    ),
    ("model.dim=[1,2]", r"model\.dim=\[1,2\]: must be a whole number, but is '\[1, 2\]'"),
    ("position.interleaved=maybe", r"position\.interleaved=maybe: must be true or false, but is 'maybe'"),
    (
        "model={dim:3}",
        r"model is a choice \(llmlab parts model lists them\); set its keys one by one, model\.KEY=VALUE",
    ),
    ("+model.foo=1", r"model\.foo: there is no such key in model; valid: .*"),
    ("+foo=1", r"foo: there is no such key; .*"),
    ("++norm.foo=1", r"norm\.foo: there is no such key in norm; valid: offset"),
    ("norm._target_=os.system", r"norm\._target_ can't be set: a part is chosen by its name, norm=NAME"),
    ("+norm._target_=os.system", r"norm\._target_ can't be set: .*"),
    ("norm._part_=layernorm", r"norm\._part_ can't be set: .*"),
    ("~norm", r"~norm: a model needs one; choose norm=NAME \(layernorm, .*\)"),
    ("~model.dim", r"~model\.dim: it can't be removed; give it another value"),
    ("position=null", r"position=null: a model needs one; .*"),
    (
        "mask.x=1",
        r"mask\.x: nothing is chosen at mask; choose mask=NAME \(bidirectional, causal, compensated, permutation, prefix\)",
    ),
    ("modle.dim=3", r"modle\.dim: there is no 'modle'; did you mean model"),
    ("model.attention.qkv_bais=true", r"model\.attention\.qkv_bais: .*; did you mean qkv_bias"),
    ("position.scaling=yarm", r"position\.scaling must be one of none, .*, but is yarm; did you mean yarn\?"),
    (
        "model.attention.qk_norm=hed",
        r"model\.attention\.qk_norm must be one of head, each_head, full, but is hed; did you mean head\?",
    ),
    ("attention", r"attention: give it a value, attention=NAME"),
    ("=3", r"=3: name what is to be set, KEY=VALUE"),
    ("seed=1 seed=2", r"seed=2: seed is given already, by seed=1"),
    ("attention=mha,mla", r"attention=mha,mla: several values are a sweep; add -m.*"),
    ("-m attention=mha,mlla", r"attention=mlla: there is no such attention; did you mean mla.*"),
    ("--config-dri x", r"--config-dri: there is no such flag; did you mean --config-dir.*"),
    ("--config-dir /no/such", r"--config-dir /no/such: there is no such folder"),
    (
        "window@kinds.local.window=full",
        r"window@kinds.*: nothing is chosen at .*; this model has neither kinds nor stacks; .*",
    ),
    (
        "model=gemma3 window@kinds.locl.window=full",
        r".*this model has window@kinds\.local\.window, window@kinds\.global.*",
    ),
    ("head@heads.tokns=lm", r"head@heads\.tokns=lm: .*"),
    (
        "model.n_heads=5",
        r"model\.n_heads=5 does not divide model\.dim=128; choose one of 1, 2, 4, 8, .* or set model\.head_dim",
    ),
    ("model.n_kv_heads=3", r"model\.n_kv_heads=3 does not divide model\.n_heads=4; choose one of 1, 2, 4"),
    ("model.n_layers=0", r"model\.n_layers must be at least 1, but is 0"),
    ("model.moe.per_token=9", r"model\.moe\.per_token=9 is more than model\.moe\.n_experts=8"),
    ("published=mine", r"published says what a model file stands for; choose one"),
    ("model=llama3_8b size=nano", r"model=llama3_8b is a published size: leave out size=nano, or name the family"),
    ("attention=mla model.n_kv_heads=2", r"model\.n_kv_heads: attention=mla does not use it; .*"),
    ("objective=clm mask=bidirectional", r"objective=clm can't be trained under mask=bidirectional: .*"),
    ("model=t5 objective=clm", r"objective=clm .*; choose .*objective=span_corruption"),
    ("layers.cycle=[far]", r"layers names the kind 'far', .*"),
    ("execute=[0,2]", r"execute=\[0, 2\] must name every layer from 0 .*"),
    ("budget.steps=3 budget.tokens=4", r"budget: exactly one can be given, but budget\.tokens and budget\.steps are"),
    ("budget.tokens=null", r"budget: give one of budget\.tokens, budget\.steps, .*"),
    ("budget.steps=0", r"budget\.steps must be at least 1, but is 0"),
    (
        "train.micro_batch_size=5",
        r"train\.micro_batch_size=5 does not divide train\.batch_size=16; choose one of 1, 2, .*",
    ),
    ("train.stop_kl=2", r"train\.stop_kl=2: objective=clm shows no kl; leave it out"),
    ("trainer.max_steps=0", r"trainer\.max_steps must be at least 1.*, but is 0"),
    ("trainer.precision=16", r"trainer\.precision is set by precision=32-true, precision=bf16-mixed \.\.\."),
    ("trainer.accumulate_grad_batches=2", r"trainer\.accumulate_grad_batches is set by train\.micro_batch_size.*"),
    ("optimizer.lr=0", r"optimizer\.lr must be more than 0, but is 0.*"),
    ("data=files", r"data\.path must be given with data=files: .*"),
    (
        "data=files data.path=/no/such.txt",
        r"data\.path=/no/such\.txt: there is no such file or folder; /no is not a folder",
    ),
    ("data.path=train.py", r"data\.path is read with data=files only, but data=python_docs; add data=files"),
    ("data.field=body", r"data\.field is read with data=files only, but data=python_docs; add data=files"),
    ("data=/dev/null", r"data\.path=/dev/null is a pipe, a socket or a device; give a file or a folder"),
    ("data=files data.path=~no_such_user/text", r"data\.path=~no_such_user/text: there is no such file or folder; .*"),
    ("tokenizer=file tokenizer.path=none.json", r"tokenizer\.path=none\.json: there is no such file.*"),
    ("data.validation=1", r"data\.validation must be less than 1, but is 1.*"),
    ("data.validation=0", r"data\.validation must be more than 0, but is 0.*"),
    (
        "model.dim=0 seed=-2 optimizer.lr=nan",
        r"model\.dim must be at least 1, but is 0",
        r"optimizer\.lr must be a finite number, but is nan",
        r"seed must be at least 0, but is -2",
    ),
    ("budget.tokens=inf", r"budget\.tokens must be a finite number, but is inf"),
    ("tokenizer=file tokenizer.path=.", r"tokenizer\.path=\.: the folder has no tokenizer\.json"),
    ("init_from=none", r"init_from=none: there is no such run folder"),
    (
        "init_from=~no_such_user/a",
        r"init_from=~no_such_user/a: there is no such run folder; ~no_such_user is not a folder",
    ),
    ("resume=~no_such_user/a", r"resume=~no_such_user/a: there is no such run folder"),
    ("tokenizer=file tokenizer.path=~no_such_user/t", r"tokenizer\.path=~no_such_user/t: there is no such file; .*"),
    ("data=~no_such_user/text", r"data=~no_such_user/text: there is no such data; .*"),
    ("init_from=.", r"init_from=\.: there is no run\.json in it; .*"),
    ("hydra.run.dir=", r"hydra\.run\.dir=: name a folder, or leave it out"),
    ("hydra.run.dri=x", r"hydra\.run\.dri: Hydra has no such key; hydra\.run\.dir=FOLDER .*"),
    ("resume=", r"resume= names no folder; resume=RUN goes on with a run, .*"),
    ("heads.tokens=lmm", r"head=lmm: there is no such head; did you mean lm or mlm\?.*"),
    ("out=x", r"out: there is no such key; did you mean hydra\.run\.dir\?"),
    ("resume=runs/none", r"resume=runs/none: there is no such run folder"),
    ("experiment=nanogpt", r"experiment=nanogpt: there is no such experiment; did you mean nanogpt_shakespeare\?.*"),
    ("seed=[1", r"seed=\[1: can't be read; quote values .*"),
    ("trainer.max_time=abc", r"trainer\.max_time must be DD:HH:MM:SS, as 00:00:30:00 for half an hour, but is abc"),
    ("trainer.max_time=30", r"trainer\.max_time must be DD:HH:MM:SS, but is 30; budget\.minutes=30 states a budget"),
    (
        "tokenizer=char tokenizer.vocab_size=10",
        r"tokenizer\.vocab_size: tokenizer=char has a token for each character .*",
    ),
    (
        f"model.dim={'9' * 400}",
        r"model\.dim must be at most 1,000,000,000,000,000, but is 9{20}\.\.\. \(400 characters\)",
    ),
    ("model.n_layers=1000000000", r"model\.n_layers must be at most 10,000, but is 1000000000"),
    ("seed=1e400", r"seed=1e400: must be a whole number, but is 'inf'"),
    (f"seed={2**64}", r"seed must be at most 9,223,372,036,854,775,807, but is 18446744073709551616"),
    ("budget.tokens=1e308", r"budget\.tokens must be at most .*, but is 1e\+308"),
    ("budget.tokens=-1", r"budget\.tokens must be more than 0, but is -1\.0"),
    (f"train.batch_size={10**14 + 1} train.micro_batch_size=7", r"train\.micro_batch_size=7 does not divide .*"),
    (f"data=files data.path={'x' * 5000}", r".*x.*"),
    ("tokenizer.vocab_size=10", r"tokenizer\.vocab_size must be at least 257, but is 10"),
    ("lr=3", r"lr: there is no such key; did you mean optimizer\.lr\?"),
    ("learning_rate=3", r"learning_rate: there is no such key; did you mean optimizer\.lr\?"),
    ("batch_size=3", r"batch_size: there is no such key; did you mean train\.batch_size\?"),
    (
        "epochs=3",
        r"epochs: there is no such key; did you mean budget\.tokens or budget\.steps\? \(a run is as long as its .*",
    ),
    ("model.hidden_size=64", r"model\.hidden_size: there is no such key in model; did you mean model\.dim\?"),
    ("norm.eps=1e-5", r"norm\.eps: there is no such key in norm \(rmsnorm\); did you mean model\.norm_eps\?"),
    ("attention.dropout=.1", r"attention\.dropout: .*; did you mean model\.attention\.dropout\?"),
    ("+train.lr=1", r"train\.lr: there is no such key in train; did you mean optimizer\.lr\?"),
    ("xyzzy=1", r"xyzzy: there is no such key; llmlab train --help lists what can be typed, .*"),
    ("xyzzy.a=1", r"xyzzy\.a: there is no 'xyzzy'; llmlab train --help lists what can be typed, .*"),
    ("rope=1", r"rope: there is no such key; rope is a position: position=rope"),
    ("rope", r"rope: rope is a position; type position=rope"),
    ("--resume x", r"--resume: there is no such flag; keys have no dashes, type resume=x"),
    ("--lr 3e-4", r"--lr: there is no such flag; keys have no dashes, type optimizer\.lr=3e-4"),
    ("--model=gpt2", r"--model: .*; keys have no dashes, type model=gpt2"),
    ("--optimizer.lr 1", r"--optimizer\.lr: .*, type optimizer\.lr=1"),
    ("--cfg=x", r"--cfg x: there is no such thing to show; valid: all, hydra, job"),
    ("--info x", r"--info x: there is no such thing to show; valid: all, config, .*"),
    ("--bf16", r"--bf16: .*, type precision=bf16-mixed"),
    ("--per-device-train-batch-size=8", r"--per-device-train-batch-size: .*, type train\.micro_batch_size=8"),
    ("head=pooled", r"heads\.tokens=pooled gives scores of a text, but objective=clm .*; objective=classification .*"),
    ("head.bais=true", r"heads\.tokens\.bais: there is no such key in heads\.tokens \(lm\); did you mean bias\?.*"),
    (
        "+head@heads.classes=pooled",
        r"head@heads\.classes=pooled: objective=clm trains no such head; it has heads\.tokens=NAME",
    ),
    ("head@heads.pair=pooled", r"head@heads\.pair=pooled: objective=clm trains no such head; .*"),
]

DRIVER = """
import contextlib, io, json, sys
from llmlab.commands.cli import run
out = []
for argv in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as o, contextlib.redirect_stderr(io.StringIO()) as e:
        code = run(["train", *argv])
    out.append([code, o.getvalue(), e.getvalue()])
print(json.dumps([out, [m for m in ("torch", "lightning") if m in sys.modules]]))
"""


def command(*argv, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "llmlab", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=120,
    )


@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 4))])
def test_table(part, tmp_path):
    """Many command lines in one process, because starting Python is most of their time."""
    cases = TABLE[part::4]
    argvs = [case[0].split() for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(argvs),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results, heavy = json.loads(done.stdout)
    assert heavy == [], "an error in the config is found before torch is imported"
    wrong = []
    for (typed, *expected), (code, out, err) in zip(cases, results, strict=True):
        lines = err.splitlines()
        fits = len(lines) == len(expected) and all(
            re.fullmatch(f"error: {e}.*", line)
            for e, line in zip(sorted(expected), sorted(x for x in lines), strict=True)
        )
        if code != 1 or out or not fits or "Traceback" in err or any(len(line) > 700 for line in lines):
            wrong.append(f"{typed}\n  exit code {code}\n  " + "\n  ".join(lines))
    assert not wrong, "\n".join(wrong)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.n_heads=12 model.dim=36", r"position=rope turns pairs, .*"),
        ("position=learned model.max_positions=4", r"data\.seq_len=128 is more than the 4 positions .*"),
        ("position.theta=0", r"position\.theta=0 must be over 0 and at most 1e\+12"),
        ("init.std=-1", r"init\.std and init\.embed_std must be at least 0, .*"),
        ("optimizer.beta1=2", r"optimizer\.beta1 and .* less than 1, .*"),
        ("attention=mla attention.kv_rank=-1", r"attention\.kv_rank=-1 must be at least 1"),
        ("embedding=factorized embedding.width=-1", r"embedding\.width=-1 must be at least 1"),
        ("trainer.num_nodes=0", r"trainer\.num_nodes=0 must be at least 1"),
        ("hydra.run.dir=text.txt/run", r"hydra\.run\.dir=text\.txt/run: no run folder can be made there: .*"),
        ("model.vocab_size=5", r"model\.vocab_size=5 is smaller than the tokenizer's 6 tokens; leave it out .*"),
        (
            "tokenizer=file tokenizer.path=tok/tokenizer.json model.vocab_size=5",
            r"model\.vocab_size=5 is smaller than the tokenizer's \d+ tokens; .*",
        ),
        ("data.path=latin.txt", r"data\.path: latin\.txt is not UTF-8 \(byte 3\); convert it, .*"),
        (
            "model.dim=200000",
            r"model\.dim=200000 and model\.n_layers=4 make 1,920,\d+,\d+,\d+ parameters, which need 28,\d+ GiB to train "
            r"\(16 bytes each: weights, gradients, the optimizer's state\), but [\d.,]+ GiB are free; .*",
        ),
    ],
)
def test_found_by_the_parts(typed, said, tmp_path, monkeypatch, capsys):
    """What only a part or the system knows: said before a step, and no folder is left."""
    from llmlab.commands.cli import run
    from llmlab.data.tokenizer import char_tokenizer

    (tmp_path / "text.txt").write_text("a b c d\n" * 2000)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 2000)
    (tmp_path / "tok").mkdir()
    char_tokenizer("abcdefgh \n", ()).save(tmp_path / "tok")
    monkeypatch.chdir(tmp_path)
    given = {o.partition("=")[0] for o in typed.split()}
    usual = [o for o in ("data.path=text.txt", "tokenizer=char") if o.partition("=")[0] not in given]
    assert run(["train", "data=files", "train.sample=false", *usual, *typed.split()]) == 1
    out = capsys.readouterr()
    assert re.fullmatch(f"error: {said}", out.err.splitlines()[-1]), out.err
    assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "latin.txt", "tok"}, out.out


def test_a_real_command(tmp_path):
    """The same, as it is typed: exit code, standard error, and well below a second of work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = command("train", "atention=gqa", cwd=tmp_path)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert used < 1.5, f"{used:.2f} s of processor time; importing torch alone takes more"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: atention: there is no such key; did you mean attention")
    assert "Traceback" in command("train", "atention=gqa", LLMLAB_DEBUG="1").stderr


def test_wrong_commands():
    done = command("trian")
    assert (done.returncode, done.stderr) == (1, "error: trian: there is no such command; did you mean train?\n")
    done = command("attention=mla")
    assert "llmlab train attention=mla" in done.stderr
    assert "did you mean norm" in command("parts", "nrom").stderr
