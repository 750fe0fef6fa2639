"""Mutation operators on Python's syntax tree: which small changes a file has.

Left alone: docstrings, other strings, annotations, imports, `raise` and `assert` statements, f-strings (messages), the names
under which parts are registered.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mutants.statements import removals

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
TERMS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
_PAIRS = (
    ("min", "max"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("clamp_min", "clamp_max"),
    ("sum", "mean"),
    ("any", "all"),
    ("cos", "sin"),
    ("ceil", "floor"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"),
    ("triu", "tril"),
    ("no_grad", "enable_grad"),
    ("inference_mode", "enable_grad"),
)
OPPOSITES = {a: b for one, other in _PAIRS for a, b in ((one, other), (other, one)) if a != "enable_grad"}
# Calls whose first arguments are alike, or of types that can't be exchanged, so that a swap is no change or no bug.
UNSWAPPED = {
    "min", "max", "minimum", "maximum", "logaddexp", "equal", "allclose", "isinstance", "issubclass", "getattr", "setattr",
    "hasattr", "cast", "register", "replace", "zip", "TypeVar", "gcd", "add_module", "register_buffer", "join", "print",
}  # fmt: skip
SMALL = 1e-3  # a positive constant below it is an epsilon
UNCHANGED = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.Global, ast.Nonlocal)


@dataclass(frozen=True)
class Change:
    """`node` is replaced by the source `new`; `before` and `after` are what a reader is shown."""

    node: ast.expr | ast.stmt | ast.Slice
    operator: str
    new: str
    before: str
    after: str


def changes(tree: ast.Module) -> Iterator[Change]:
    for statement in tree.body:
        yield from _walk(statement, tree)


def _walk(node: ast.AST, parent: ast.AST) -> Iterator[Change]:
    if isinstance(node, UNCHANGED) or _is_docstring(node) or _is_type_checking(node) or _is_for_checks(node):
        return
    if isinstance(node, ast.stmt):
        for operator, new, before, after in removals(node, parent):
            yield Change(node, operator, new, before, after)
    if isinstance(node, ast.expr | ast.Slice):
        for operate in OPERATORS:
            for operator, new in operate(node):
                yield _change(node, parent, operator, new)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if name == "decorator_list":
                yield from _decorator(child)
            elif isinstance(child, ast.AST) and not _is_part_of_number(child, node):
                yield from _walk(child, node)


def _is_for_checks(node: ast.AST) -> bool:
    """Settings that a part lists for `llmlab check`: data of checks, not code."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [t.id for t in targets if isinstance(t, ast.Name)]
    return bool(names) and names[0] in ("small", "telling")


def _decorator(node: ast.expr) -> Iterator[Change]:
    """Changes of the defaults that a part is registered with, and of decorators such as torch.no_grad()."""
    if isinstance(node, ast.Call) and _name(node.func) == "register":
        for keyword in node.keywords:
            yield from _walk(keyword, node)
    elif isinstance(node, ast.Call):
        for operator, new in opposite(node):
            yield _change(node, node, operator, new)


def _change(node: ast.expr, parent: ast.AST, operator: str, new: ast.AST) -> Change:
    after = ast.unparse(new)
    bare = isinstance(new, ast.Constant | ast.Name | ast.Slice)
    shown = _in_context(node, parent, new) if isinstance(node, ast.Constant | ast.UnaryOp) else None
    return Change(node, operator, after if bare else f"({after})", *(shown or (ast.unparse(node), after)))


def _in_context(node: ast.expr, parent: ast.AST, new: ast.AST) -> tuple[str, str] | None:
    """The expression around a number, before and after, since a number says little by itself; None if that is too long."""
    if not isinstance(
        parent, ast.expr | ast.Slice | ast.keyword | ast.Assign | ast.AnnAssign | ast.Return | ast.AugAssign
    ):
        return None
    changed = copy.copy(parent)
    for name, value in ast.iter_fields(parent):
        if value is node:
            setattr(changed, name, new)
        elif isinstance(value, list) and any(v is node for v in value):
            setattr(changed, name, [new if v is node else v for v in value])
    before, after = ast.unparse(parent), ast.unparse(changed)
    return (before, after) if max(len(before), len(after)) <= 72 else None


# ---------------------------------------------------------------- operators on expressions

Changed = Iterator[tuple[str, ast.AST]]


def constant(node: ast.AST) -> Changed:
    value = _number(node)
    if value is None:
        return
    if isinstance(value, bool):
        yield "bool", ast.Constant(not value)
    elif isinstance(value, int):
        numbers = dict.fromkeys((value + 1, 0, -value, *((value - 1,) if value < 0 else ())))
        yield from (("constant", _literal(n)) for n in numbers if n != value)
    else:
        numbers = dict.fromkeys((value / 10 if 0 < value < SMALL else value * 2, 0.0 if abs(value) >= SMALL else value))
        yield from (("constant", _literal(n)) for n in (numbers if value else (1.0,)) if n != value)


def comparison(node: ast.AST) -> Changed:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                yield "comparison", _with(node, ops=[*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]])


def arithmetic(node: ast.AST) -> Changed:
    if not isinstance(node, ast.BinOp) or any(map(_is_text, (node.left, node.right))) or _is_type(node):
        return
    if type(node.op) in ARITHMETIC:
        yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
    if isinstance(node.op, TERMS):
        yield "term", node.left
        yield "term", node.right


def sign(node: ast.AST) -> Changed:
    if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield "not" if isinstance(node.op, ast.Not) else "sign", node.operand


def logic(node: ast.AST) -> Changed:
    if isinstance(node, ast.BoolOp):
        yield "logic", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for i in range(len(node.values)):
            kept = node.values[:i] + node.values[i + 1 :]
            yield "term", kept[0] if len(kept) == 1 else _with(node, values=kept)
    elif isinstance(node, ast.IfExp):
        yield "branch", node.body
        yield "branch", node.orelse


def arguments(node: ast.AST) -> Changed:
    if isinstance(node, ast.Call) and _name(node.func) not in UNSWAPPED and not _name(node.func).endswith("Error"):
        args = node.args
        for i in range(len(args) - 1):
            if not any(isinstance(a, ast.Starred) for a in args[i : i + 2]):
                yield "arguments", _with(node, args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]])


def off_by_one(node: ast.AST) -> Changed:
    if isinstance(node, ast.Slice) and (node.lower or node.upper):
        for side in ("lower", "upper"):
            bound = getattr(node, side)
            if bound is None and node.step is None:
                yield "slice", _with(node, **{side: ast.Constant(1) if side == "lower" else _literal(-1)})
            elif bound is not None and _number(bound) is None:
                yield "slice", _with(node, **{side: _plus_one(bound)})
    elif isinstance(node, ast.Call) and _name(node.func) in ("range", "arange") and node.args:
        at = min(1, len(node.args) - 1)
        if _number(node.args[at]) is None and not isinstance(node.args[at], ast.Starred):
            for sign_of in (ast.Add(), ast.Sub()):
                args = [*node.args]
                args[at] = ast.BinOp(args[at], sign_of, ast.Constant(1))
                yield "range", _with(node, args=args)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.BinOp) and not _is_text(node.slice.left):
        yield "slice", _with(node, slice=_plus_one(node.slice))


def opposite(node: ast.AST) -> Changed:
    """Another function of a pair. In ids of mutants it is "twin", which has nothing to do with `llmlab.twins`."""
    if isinstance(node, ast.Call) and (other := OPPOSITES.get(_name(node.func))):
        yield "twin", _with(node, func=_renamed(node.func, other))
    if isinstance(node, ast.Call) and _name(node.func) == "clamp" and len(node.keywords) == 1:
        keyword = node.keywords[0]
        other = {"min": "max", "max": "min"}.get(keyword.arg or "")
        if other:
            yield "twin", _with(node, keywords=[ast.keyword(other, keyword.value)])


def dropped(node: ast.AST) -> Changed:
    """Removal of a detach or a dropout."""
    if not isinstance(node, ast.Call):
        return
    name = _name(node.func)
    if name == "detach" and isinstance(node.func, ast.Attribute):
        yield "detach", node.func.value
    elif name == "Dropout":
        yield "dropout", ast.Call(ast.Attribute(ast.Name("nn"), "Identity"), [], [])
    elif name.endswith("dropout") and node.args:
        yield "dropout", node.args[0]


OPERATORS: tuple[Callable[[ast.AST], Changed], ...] = (
    constant, comparison, arithmetic, sign, logic, arguments, off_by_one, opposite, dropped,
)  # fmt: skip


# ---------------------------------------------------------------- syntax


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _number(node: ast.AST) -> bool | int | float | None:
    """The value of a number, a negative one too; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None or isinstance(value, bool) else -value
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return node.value
    return None


def _literal(value: float) -> ast.AST:
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


def _plus_one(node: ast.expr) -> ast.AST:
    return ast.BinOp(node, ast.Add(), ast.Constant(1))


def _name(func: ast.AST) -> str:
    """The last name of what is called."""
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _renamed(func: ast.expr, name: str) -> ast.AST:
    return _with(func, attr=name) if isinstance(func, ast.Attribute) else ast.Name(name)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_type(node: ast.BinOp) -> bool:
    """X | None."""
    sides = (node.left, node.right)
    return isinstance(node.op, ast.BitOr) and any(isinstance(s, ast.Constant) and s.value is None for s in sides)


def _is_part_of_number(child: ast.AST, parent: ast.AST) -> bool:
    return isinstance(parent, ast.UnaryOp) and _number(parent) is not None and _number(child) is not None


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and _is_text(node.value)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"
