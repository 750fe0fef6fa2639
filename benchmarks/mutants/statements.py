"""Mutation operators on statements: removals."""

from __future__ import annotations

import ast
from collections.abc import Iterator

Removal = tuple[str, str, str, str]  # operator, new source, and what a reader is shown before and after


def removals(node: ast.stmt, parent: ast.AST) -> Iterator[Removal]:
    if isinstance(node, ast.AugAssign):
        yield "statement", "pass", ast.unparse(node), "pass"
        if isinstance(node.op, ast.Add | ast.Sub):
            op: ast.operator = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            after = ast.unparse(ast.AugAssign(node.target, op, node.value))
            yield "arithmetic", after, ast.unparse(node), after
    elif isinstance(node, ast.Expr) and not _is_constructor(node.value) and not isinstance(node.value, ast.Yield):
        yield "statement", "pass", ast.unparse(node), "pass"
    elif isinstance(node, ast.Return) and isinstance(parent, ast.If | ast.For | ast.With):
        yield "return", "pass", f"early {ast.unparse(node)}", "pass"
    elif isinstance(node, ast.If) and not _only_returns(node):
        test = ast.unparse(node.test)
        body = "\n".join(ast.unparse(n) for n in node.orelse)
        indent = " " * node.col_offset
        new = f"\n{indent}".join(body.splitlines()) if node.orelse else "pass"
        if not _is_elif(node, parent):
            yield "if", new, f"if {test}: ...", "its else" if node.orelse else "pass"
    elif isinstance(node, ast.Assign) and _is_attribute(node) and not _in_constructor(parent):
        yield "statement", "pass", ast.unparse(node), "pass"


def _is_constructor(node: ast.expr) -> bool:
    """super().__init__(), without which nothing works."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__"


def _only_returns(node: ast.If) -> bool:
    """An early exit, which the removal of its return covers."""
    return len(node.body) == 1 and isinstance(node.body[0], ast.Return) and not node.orelse


def _is_elif(node: ast.If, parent: ast.AST) -> bool:
    return isinstance(parent, ast.If) and node in parent.orelse and len(parent.orelse) == 1


def _is_attribute(node: ast.Assign) -> bool:
    return all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)


def _in_constructor(parent: ast.AST) -> bool:
    return isinstance(parent, ast.FunctionDef) and parent.name == "__init__"
