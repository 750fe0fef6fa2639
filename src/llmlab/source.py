"""Reads parts from Python source by `ast`: names, options, defaults and docstrings, without importing anything.

A part is a class under `@register("slot", "name", **other_defaults)`; its keyword-only constructor arguments (of a
dataclass: its fields) are its options. Names and defaults are literals, and the type of an option is built from int,
float, str, bool, Literal, list, tuple, dict, `X | None`; anything else is an error that names file and line.
An option's help is a line of the docstring, the text of `Annotated[type, "text"]`, or the comment on its line.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from llmlab import attributes

REQUIRED = dataclasses.MISSING
# Packages whose classes take no options: nn.Module, llmlab.slots.Position, Protocol, ABC; and what Python has anyway.
KNOWN = ("torch", "llmlab", "typing", "abc", "")
SCALARS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}


class SourceError(ValueError):
    """A part that can't be read; the message begins with file:line."""


@dataclass(frozen=True)
class Option:
    """One option of a part. `type` is what OmegaConf can check; `choices` those of a Literal, else empty."""

    type: Any
    default: Any
    choices: tuple[Any, ...] = ()
    doc: str = ""
    spelled: str = ""  # the annotation as it is written
    as_tuple: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Entry:
    """One name in a slot: where its class is, what it is, and what can be set."""

    slot: str
    name: str
    module: str
    qualname: str
    path: Path
    line: int
    doc: str
    paper: str
    options: Mapping[str, Option]
    attrs: Mapping[str, Any] = field(default_factory=dict)  # those that it declares; `attribute` knows the others
    cls: type | None = field(
        default=None, compare=False
    )  # of one that was defined while Python runs; else it is imported

    def attribute(self, name: str) -> Any:
        """A declared attribute of the part, or the default of its slot."""
        return self.attrs.get(name, attributes.of_slot(self.slot)[name].default)

    @property
    def varies(self) -> bool:
        """True if what it declares depends on its options."""
        return bool(self.attrs.get("when") or self.attrs.get("joins"))

    def at(self, options: Mapping[str, Any]) -> Entry:
        """The part as it declares itself at options, those that are not given as they are by default."""
        values = {k: o.default for k, o in self.options.items()} | dict(options)
        attrs = dict(self.attrs)
        for case, more in attrs.get("when", {}).items():
            if attributes.holds(case, values):
                attrs = attributes.merged(attrs, more)
        return dataclasses.replace(self, attrs=attrs)

    @property
    def special(self) -> tuple[str, ...]:
        """Names of the special tokens that an objective needs."""
        sentinels = (f"sentinel_{i}" for i in range(self.attribute("sentinels")))
        return (*self.attribute("special"), *sentinels)

    @property
    def summary(self) -> str:
        """The first sentence of the docstring, without the paper."""
        first = self.doc.split("\n\n")[0].replace("\n", " ")
        first = first.replace(f" ({self.paper})", "") if self.paper else first
        return re.split(r"(?<=\w\w[.])\s", first + " ")[0].strip()


def split_doc(name: str, doc: str) -> tuple[str, str]:
    """The docstring of one of a class's names, and the paper in it. Kin have a line of the docstring for each."""
    if own := re.search(rf"^{re.escape(name)}: (.+)$", doc, re.M):
        doc = f"{own[1]}\n\n{doc}"
    # The first brackets with a year of four digits in them.
    paper = re.search(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)", doc)
    return doc, " ".join(paper[1].split()) if paper else ""


def help_of(option: str, doc: str) -> str:
    """Help that a docstring has for an option: `name: ...`."""
    found = re.search(rf"^\s*`?{option}`?: (.+)$", doc, re.M)
    return found[1].strip() if found else ""


def not_a_type(option: str, spelled: str) -> str:
    return (
        f"the type of the option {option} must be int, float, str, bool, Literal[...], list[...], tuple[...], "
        f"dict[...] or X | None, but is {spelled}"
    )


def parts_of_file(path: Path, module: str) -> list[Entry]:
    """The parts of one file. SourceError if it can't be parsed or a part breaks the rules above."""
    text = path.read_text(encoding="utf-8")
    try:
        # A syntax error is raised without a path where a text is parsed.
        tree = ast.parse(text)
    except SyntaxError as e:
        raise SourceError(f"{path}:{e.lineno or 1}: {e.msg}") from None
    # Raised for an expression of some thousand levels; Python could not compile such a file either.
    except (RecursionError, MemoryError):
        raise SourceError(f"{path}:1: an expression is nested too deeply") from None
    file = _File(path, tree, text.splitlines())
    return [entry for node in tree.body if isinstance(node, ast.ClassDef) for entry in file.entries(node, module)]


def registered_names(path: Path) -> list[tuple[str, str]]:
    """(slot, name) pairs that a file which can't be parsed seems to register."""
    # The file may not even be UTF-8.
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.findall(r"""@register\(\s*["'](\w+)["']\s*,\s*["'](\w+)["']""", text)


class _File:
    def __init__(self, path: Path, tree: ast.Module, lines: list[str]):
        self.path, self.lines = path, lines
        self.classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        self.imported = dict(_imports(tree))
        self.names = {
            # Names of types at the top of the file: `Kind = Literal["a", "b"]`.
            t.id: n.value
            for n in tree.body
            if isinstance(n, ast.Assign)
            for t in n.targets
            if isinstance(t, ast.Name)
        }

    def error(self, node: ast.AST, message: str) -> SourceError:
        return SourceError(f"{self.path}:{getattr(node, 'lineno', 1)}: {message}")

    def entries(self, node: ast.ClassDef, module: str) -> Iterator[Entry]:
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and _called(call) == "register"):
                continue
            names = [self.literal(a, "the slot and the name of a part") for a in call.args]
            if len(names) != 2 or not all(isinstance(n, str) for n in names):
                raise self.error(call, 'a part is registered as @register("slot", "name")')
            options, doc = self.options(node), ast.get_docstring(node) or ""
            for keyword in call.keywords:
                if keyword.arg not in options:
                    raise self.error(call, f"{node.name} has no option {keyword.arg!r} to give another default")
                default = self.literal(keyword.value, f"the default of {keyword.arg}")
                # Two names of one class differ by their defaults alone.
                options[keyword.arg] = dataclasses.replace(options[keyword.arg], default=default)
            doc, paper = split_doc(names[1], doc)
            yield Entry(
                slot=names[0],
                name=names[1],
                module=module,
                qualname=node.name,
                path=self.path,
                line=node.lineno,
                doc=doc,
                paper=paper,
                options=options,
                attrs=self.attributes(node, names[0], options),
            )

    def bases(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and its bases in the same file, nearest first."""
        line: list[ast.ClassDef] = []
        self._collect(node, line)
        return line

    def _collect(self, node: ast.ClassDef, line: list[ast.ClassDef]) -> None:
        line.append(node)
        for base in node.bases:
            # Not one that is in already: `class RMSNorm(RMSNorm)` may extend what was imported under that name.
            if isinstance(base, ast.Name) and base.id in self.classes and self.classes[base.id] not in line:
                self._collect(self.classes[base.id], line)

    def options(self, node: ast.ClassDef) -> dict[str, Option]:
        doc = "\n".join(ast.get_docstring(c) or "" for c in self.bases(node))
        options: dict[str, Option] = {}
        if _is_dataclass(node) and not any(isinstance(f, ast.FunctionDef) and f.name == "__init__" for f in node.body):
            # As dataclasses order fields: the furthest base first, and an inherited field keeps its place where it is
            # given anew.
            for cls in reversed(self.bases(node)):
                for item in cls.body if _is_dataclass(cls) else ():
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not _class_var(item):
                        options[item.target.id] = self.option(item, item.target.id, item.annotation, item.value, doc)
            return options
        for cls in self.bases(node):
            init = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
            if init is None:
                continue
            args = init.args
            # ast has `self` among the positional-only arguments where there is a /, else among the others.
            if len(args.args) > (0 if args.posonlyargs else 1) or args.vararg or args.kwarg:
                raise self.error(
                    init, f"{cls.name}: arguments are positional-only (given by the framework) or keyword-only"
                )
            # kw_defaults has None where there is no default; defaults of others would be aligned at the end.
            for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
                options[arg.arg] = self.option(arg, arg.arg, arg.annotation, default, doc)
            return options
        for base in (b for cls in self.bases(node) for b in cls.bases):
            if self.origin(base) not in KNOWN and ast.unparse(base) not in self.classes:
                raise self.error(
                    node,
                    f"{node.name} has the constructor of {ast.unparse(base)}, which is not in this file: its options "
                    "can't be read; give it one of its own",
                )
        return options

    def origin(self, base: ast.expr) -> str:
        """The package that a base class is imported from; "" for one that is not imported."""
        root = base.value if isinstance(base, ast.Subscript) else base
        while isinstance(root, ast.Attribute):
            root = root.value
        return self.imported.get(getattr(root, "id", ""), "")

    def option(
        self, node: ast.AST, name: str, annotation: ast.expr | None, default: ast.expr | None, doc: str
    ) -> Option:
        if annotation is None:
            raise self.error(node, f"the option {name} needs a type")
        said = ""
        # `Annotated` may come with its module in front.
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated"):
            annotation, said = self.annotated(annotation)
        try:
            kind, choices = self.type(annotation, name)
        # A name that stands for itself, `Kind = "Kind"`.
        except RecursionError:
            raise self.error(node, not_a_type(name, _spelled(annotation))) from None
        value = REQUIRED if default is None else self.literal(default, f"the default of {name}")
        spelled = ast.unparse(annotation)
        as_tuple = spelled.startswith("tuple")
        return Option(kind, value, choices, help_of(name, doc) or said or self.comment(node), spelled, as_tuple)

    def annotated(self, node: ast.Subscript) -> tuple[ast.expr, str]:
        """The type and the text of Annotated[type, "text"]."""
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        said = (e.value for e in inner[1:] if isinstance(e, ast.Constant) and isinstance(e.value, str))
        return inner[0], next(said, "")

    def comment(self, node: ast.AST) -> str:
        """The comment on an option's line."""
        number: int = getattr(node, "end_lineno", None) or 1
        last = self.lines[number - 1]
        # Two spaces, as every formatter writes them: a # within a text has fewer.
        return last.partition("  # ")[2].strip()

    def attributes(self, node: ast.ClassDef, slot: str, options: Mapping[str, Option]) -> dict[str, Any]:
        """Class attributes that are public literals, each in the table of its slot."""
        known = attributes.of_slot(slot) if slot in attributes.TABLE else {}
        found: dict[str, Any] = {}
        for item, name, value in self.assigned(node):
            declared = known.get(name)
            if declared is not None and not declared.literal:
                continue
            try:
                found[name] = self.literal(value, name, item)
            except SourceError:
                if declared is not None:
                    raise
                found.pop(name, None)
                continue
            if known and (wrong := attributes.problem(slot, name, found[name], options)):
                raise self.error(item, wrong)
        return found

    def assigned(self, node: ast.ClassDef) -> Iterator[tuple[ast.stmt, str, ast.expr]]:
        """Public class attributes of a part and its bases in this file, the furthest base first; no options."""
        for cls in reversed(self.bases(node)):
            for item in cls.body:
                targets: list[ast.expr] = []
                value: ast.expr | None = None
                if isinstance(item, ast.Assign):
                    targets, value = item.targets, item.value
                # In a dataclass an annotated name is a field, and so an option, unless it is a ClassVar.
                elif isinstance(item, ast.AnnAssign) and (_class_var(item) or not _is_dataclass(cls)):
                    targets, value = [item.target], item.value
                for target in targets:
                    if isinstance(target, ast.Name) and value is not None and not target.id.startswith("_"):
                        yield item, target.id, value

    def literal(self, node: ast.expr, what: str, at: ast.AST | None = None) -> Any:
        """The value of a literal. SourceError, at the line of `at` if that is another, for anything else."""
        try:
            return ast.literal_eval(node)
        # Calls, names and sums of numbers.
        except ValueError:
            reason = ""
        # Keys of a dict or members of a set that can't be hashed; and what a deeply nested literal comes to.
        except (TypeError, SyntaxError, MemoryError, RecursionError) as e:
            reason = f" ({e})"
        raise self.error(at or node, f"{what} must be a literal, but is {_spelled(node)}{reason}")

    def type(self, node: ast.expr, name: str) -> tuple[Any, tuple[Any, ...]]:
        """Annotation -> (a type that OmegaConf checks, the choices of a Literal)."""
        match node:
            # An annotation in quotes.
            case ast.Constant(value=str(text)):
                try:
                    inside = ast.parse(text, mode="eval").body
                except SyntaxError as e:
                    raise self.error(node, f"the type of the option {name} can't be read: {text!r}: {e.msg}") from None
                return self.type(inside, name)
            case ast.Name(id=n) if n in SCALARS:
                return SCALARS[n], ()
            case ast.Name(id=n) if n in self.names:
                return self.type(self.names[n], name)
            case ast.Name(id="Any"):
                return Any, ()
            case ast.BinOp(op=ast.BitOr(), left=left, right=ast.Constant(value=None)):
                kind, choices = self.type(left, name)
                return Optional[kind], choices
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                # OmegaConf 2.3 refuses unions of containers when the config is made, and takes those of scalars.
                return Union[self.type(left, name)[0], self.type(right, name)[0]], ()
            case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
                values = tuple(
                    self.literal(e, "a choice") for e in (inner.elts if isinstance(inner, ast.Tuple) else [inner])
                )
                if not values:
                    raise self.error(node, f"the option {name} has no choices")
                if len({type(v) for v in values}) > 1:
                    raise self.error(node, f"the choices of the option {name} must be of one type")
                # OmegaConf 2.3 knows no Literal: it checks the type, `llmlab.config.strays` the choices.
                return type(values[0]), values
            case ast.Subscript(value=ast.Name(id="list"), slice=inner):
                return list[self.plain(inner, name)], ()  # type: ignore[misc]
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[inner, *_])):
                # OmegaConf holds a tuple as a list; `registry.load` makes a tuple of it again.
                return list[self.plain(inner, name)], ()  # type: ignore[misc]
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
                return dict[self.plain(key, name), self.plain(value, name)], ()  # type: ignore[misc]
        raise self.error(
            node,
            not_a_type(name, ast.unparse(node)),
        )

    def plain(self, node: ast.expr, name: str) -> Any:
        """The type of what is inside of a list, tuple or dict, where OmegaConf could not check choices."""
        kind, choices = self.type(node, name)
        if choices:
            raise self.error(node, f"the option {name}: Literal can't be inside of a list, tuple or dict")
        return kind


def _spelled(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return "nested too deeply"


def _called(node: ast.expr) -> str:
    function = node.func if isinstance(node, ast.Call) else node
    return getattr(function, "id", getattr(function, "attr", ""))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, package that it comes from) of what a file imports; "." for what is beside it."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((a.asname or a.name.partition(".")[0], a.name.partition(".")[0]) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "." if node.level else (node.module or "").partition(".")[0]
            yield from ((a.asname or a.name, package) for a in node.names)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_called(d) == "dataclass" for d in node.decorator_list)


def _class_var(node: ast.AnnAssign) -> bool:
    return ast.unparse(node.annotation).removeprefix("typing.").startswith("ClassVar")
