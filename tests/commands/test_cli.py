"""The command: help on one screen, lists of parts, interruption, the user's own folder of configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from llmlab import registry
from llmlab.commands import cli
from llmlab.config.choices import groups

ROOT = Path(__file__).parents[2]


def command(*argv, cwd=None, code=None):
    start = ["-c", code] if code else ["-m", "llmlab", *argv]
    return subprocess.run([sys.executable, *start], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_help_fits_a_screen_and_names_every_group():
    code = (
        "import sys; from llmlab.commands.cli import run; run(['train', '--help']);"
        "print('HEAVY', [m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    out, _, heavy = command(code=code).stdout.partition("HEAVY ")
    assert heavy.strip() == "[]"
    lines = out.splitlines()
    assert len(lines) <= 44
    assert max(map(len, lines)) <= 120
    for group in groups():
        assert any(f"  {group} " in line for line in lines), group
    assert "llmlab train model=qwen_moe attention=gqa objective=clm" in out
    overview = command().stdout
    assert all(f"\n  {name}" in overview for name in cli.COMMANDS)


def test_commands_lead_somewhere():
    from importlib import import_module

    for entry in cli.COMMANDS.values():
        module, _, function = entry.home.partition(":")
        assert callable(getattr(import_module(module), function))


def test_parts_lists_everything():
    found = json.loads(command("parts", "--json").stdout)
    assert {(slot, p["name"]) for slot, parts in found.items() for p in parts if "options" in p} == set(
        registry.index()
    )
    assert {p["name"] for p in found["model"]} >= {"gpt2", "llama3", "t5", "bert"}
    assert all(p["summary"] for parts in found.values() for p in parts)
    text = command("parts", "position").stdout
    rope = registry.index()["position", "rope"]
    assert rope.paper in text
    assert f"rope.py:{rope.line}" in text
    assert "position.theta: float = 10000.0" in text
    assert "position.scaling: none|linear" in text
    assert "rope_1m" in text


def test_train_py_is_llmlab_train(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--cfg", "job", "model.dim=64"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "dim: 64" in done.stdout
    assert done.stdout == command("train", "--cfg", "job", "model.dim=64", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


def test_own_config_folder(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiny.yaml").write_text("# @package _global_\nmodel: {dim: 48}\n")
    done = command("train", "--config-dir", "mine", "--cfg", "job", "-p", "model", "experiment=tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dim: 48" in done.stdout
    done = command("train", "--config-dir", "mine", "experiment=tinny", cwd=tmp_path)
    assert "experiment=tinny: there is no such experiment; did you mean tiny?" in done.stderr


def test_interruption_and_errors_of_a_run():
    def outcome(raising):
        code = (
            "import sys, types; from llmlab.commands import cli, table\n"
            f"def main(argv): {raising}\n"
            "module = types.ModuleType('stand_in'); module.main = main; sys.modules['stand_in'] = module\n"
            "cli.COMMANDS['x'] = table.Command('stand_in:main', '')\ncli.main(['x'])"
        )
        done = command(code=code)
        return done.returncode, done.stderr

    assert outcome("raise KeyboardInterrupt") == (130, "interrupted\n")
    assert outcome("raise ZeroDivisionError('by 0')") == (
        1,
        "error: ZeroDivisionError: by 0 (LLMLAB_DEBUG=1 shows where)\n",
    )
    assert outcome("raise cli.UserError('a\\nb')") == (1, "error: a\nerror: b\n")
    assert outcome("return 3") == (3, "")


def test_lines_are_cut_where_the_reader_stops():
    shell = f"{sys.executable} -m llmlab parts | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=os.environ)
    assert (done.stdout, done.stderr) == ("adapter\n", "")


BROKEN = '''
from llmlab.registry import register

@register("norm", "{name}")
class Broken:
    """Nothing (Nobody 2026)."""
    {line}
'''


def test_a_part_that_cannot_be_read_is_named_once(tmp_path, monkeypatch, capsys):
    """By the error where it is chosen, else by a warning."""
    (tmp_path / "misspelt_parts.py").write_text(BROKEN.format(name="misspelt", line='topologys = ("a",)'))
    (tmp_path / "unhashable_parts.py").write_text(BROKEN.format(name="unhashable", line="small = {[1]: 2}"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMLAB_PLUGINS", "misspelt_parts,unhashable_parts")
    misspelt = f"{tmp_path}/misspelt_parts.py:7: topologys is no attribute of the slot norm"
    unhashable = (
        f"{tmp_path}/unhashable_parts.py:7: small must be a literal, but is {{[1]: 2}} (unhashable type: 'list')"
    )

    def lines(*argv):
        code = cli.run(list(argv))
        return code, capsys.readouterr().err.splitlines()

    code, said = lines("parts", "norm")
    assert (code, [s.split(" (a part's")[0] for s in said]) == (
        0,
        [f"warning: {misspelt}", f"warning: {unhashable}; its parts are left out"],
    )
    code, said = lines("train", "norm=misspelt")
    assert (code, [s.split(" (a part's")[0] for s in said]) == (
        1,
        [f"warning: {unhashable}; its parts are left out", f"error: norm=misspelt can't be read: {misspelt}"],
    )
    code, said = lines("train", "norm=unhashable", "norm=misspelt")
    assert code == 1 and "".join(said).count(unhashable) == "".join(said).count(misspelt) == 1
    # No error says the same: the warning comes late, but it comes.
    code, said = lines("parts", "norm=misspelt")
    assert code == 1 and "".join(said).count(misspelt) == 1
