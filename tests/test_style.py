"""The style of src and plugins, as far as a machine can measure it: first words of docstrings, types of parameters, lengths."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A docstring begins with a noun or a verb that says what the thing is.
FIRST_WORDS = {"what", "whether", "of", "those", "how", "where"}
MAX_LINES = 400
TOO_LONG: dict[str, int] = {}  # files not yet split, and their length; empty, and to stay so
# Shares in percent that must not be exceeded, of docstrings and of parameters.
DOCSTRINGS, ANY = 2, 2


@functools.cache
def trees():
    """{file: (its text, parsed)} of all Python files in src and plugins."""
    files = sorted(f for folder in ("src", "plugins") for f in (ROOT / folder).rglob("*.py"))
    texts = {f.relative_to(ROOT).as_posix(): f.read_text(encoding="utf-8") for f in files}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def docstrings(tree):
    """(line, docstring) of the module and everything in it."""
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def parameters(tree):
    """(function, parameter) of every parameter but self and cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            for arg in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg):
                if arg is not None and arg.arg not in ("self", "cls"):
                    yield node, arg


def says_nothing(text):
    """No first line that names the thing."""
    return text.split()[0].strip(".,:;`'\"").lower() in FIRST_WORDS


def is_any(annotation):
    return annotation is None or ast.unparse(annotation) in ("Any", "Any | None", "Optional[Any]")


def measured(found):
    """(share in percent, the offenders a line each) of (is it one, its line)."""
    found = list(found)
    offenders = [line for wrong, line in found if wrong]
    return 100 * len(offenders) / len(found), "\n".join(offenders)


def test_docstrings_say_what_the_thing_is():
    share, offenders = measured(
        (says_nothing(text), f"{name}:{line}: {text.splitlines()[0]}")
        for name, (_, tree) in trees().items()
        for line, text in docstrings(tree)
    )
    words = ", ".join(sorted(FIRST_WORDS))
    assert share <= DOCSTRINGS, f"{share:.1f} % of docstrings begin with one of {words}:\n{offenders}"


def test_parameters_have_types():
    share, offenders = measured(
        (is_any(arg.annotation), f"{name}:{arg.lineno}: {function.name}({arg.arg})")
        for name, (_, tree) in trees().items()
        for function, arg in parameters(tree)
    )
    assert share <= ANY, f"{share:.1f} % of parameters are Any or have no type:\n{offenders}"


def opens_text(call):
    """True for open(), read_text() and write_text() unless the mode is one of bytes. os.open, Records.open are no files."""
    function = call.func
    name = getattr(function, "id", getattr(function, "attr", ""))
    if name in ("read_text", "write_text"):
        return isinstance(function, ast.Attribute)
    # Of paths and the builtin the mode is a text beside the path, or the first.
    modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    if any(k.arg in ("text", "universal_newlines") for k in call.keywords):  # a pipe of subprocess
        return name in ("run", "Popen", "check_output")
    builtin = isinstance(function, ast.Name) or bool(modes) or not call.args
    return name == "open" and builtin and not any("b" in mode for mode in modes if set(mode) <= set("rwxab+t"))


def test_text_files_are_opened_as_utf_8():
    """What is written on one machine is read on another, whose locale may be of another encoding."""
    wrong = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name, (_, tree) in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and opens_text(node) and not any(k.arg == "encoding" for k in node.keywords)
    ]
    assert not wrong, "without an encoding:\n" + "\n".join(wrong)


@pytest.mark.parametrize("folder", ["src", "plugins", "tests"])
def test_files_are_not_long(folder):
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in (ROOT / folder).rglob("*.py")}
    names = {f.relative_to(ROOT).as_posix(): n for f, n in lengths.items()}
    long = [f"{name}: {n} lines" for name, n in names.items() if n > TOO_LONG.get(name, MAX_LINES)]
    assert not long, f"over {MAX_LINES} lines; split them by idea:\n" + "\n".join(long)
