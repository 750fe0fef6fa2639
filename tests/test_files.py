"""Paths as they are typed mean what they mean to a shell and to open()."""

import os
from pathlib import Path

import pytest

from llmlab import files
from llmlab.errors import UserError
from llmlab.hub.locate import locate

ROOT = Path(__file__).parents[1]


def test_a_home_that_is_not_there_stays_as_it_was_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.expanded("~/a") == Path("/home/me/a")
    assert files.expanded("~nobody_here/a") == Path("~nobody_here/a")
    with pytest.raises(UserError, match="hf=~nobody_here/a"):
        locate("~nobody_here/a")
    assert files.expanded("a/~") == Path("a/~")
    assert files.expanded("./~/a") == Path("~/a")  # a folder of that name, as in a shell; Path.expanduser goes home


def test_no_other_way_to_expand_a_path():
    uses = [
        f.relative_to(ROOT).as_posix()
        for folder in ("src", "plugins")
        for f in (ROOT / folder).rglob("*.py")
        if "expanduser(" in f.read_text(encoding="utf-8")
    ]
    assert uses == ["src/llmlab/files.py"]


@pytest.mark.parametrize("name", ["x", "./x", "sub/../x", "link/../x", "link/../../x", "../here/x", "link/inner/../x"])
def test_an_absolute_path_is_the_file_that_open_finds(name, tmp_path, monkeypatch):
    """With a link whose parent is elsewhere: `link/..` is the folder above what it leads to."""
    for folder in ("here/sub", "far/away/inner"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far" / "away")
    for folder in ("here", "far", "far/away", "."):
        (tmp_path / folder / "x").write_text(folder, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    path = files.absolute(name)
    assert os.path.isabs(path)
    assert os.path.samefile(path, name)
    if not name.startswith("link/.."):
        assert ".." not in path
    assert files.absolute("link/x") == str(tmp_path / "here" / "link" / "x")  # the link itself stays


def test_a_name_with_a_nul_is_left_to_whoever_opens_it():
    assert files.absolute("a\0b").endswith("/a\0b")
