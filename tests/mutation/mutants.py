"""Mutants: small wrong changes of a module, each of which a test must notice.

No file is written: a mutant is the changed tree of a module, which is compiled when the module is
imported. `pytest -p mutation.mutants` with `KEYBEARER_MUTANT=module:number` runs tests against one.
"""

import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

VARIABLE = "KEYBEARER_MUTANT"

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
}


Change = Callable[[ast.AST], ast.AST | None]
"""Changes a node in place, or returns another for it."""


@dataclass(frozen=True)
class Mutant:
    """One change."""

    line: int
    what: str
    source: str
    place: int
    """Of the node, among all of the tree."""
    change: Change

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"

    def tree(self) -> ast.Module:
        """Return the changed module."""
        tree = ast.parse(self.source)
        node = list(ast.walk(tree))[self.place]
        other = self.change(node)
        if other is not None:
            _Replacement(node, other).visit(tree)
        return ast.fix_missing_locations(tree)


def mutants_of(source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    skipped = _not_run(tree)
    lines = source.splitlines()
    found = [
        Mutant(
            line := getattr(node, "lineno", 0),
            _said(what, node, lines[line - 1]),
            source,
            place,
            change,
        )
        for place, node in enumerate(ast.walk(tree))
        if node not in skipped
        for what, change in _changes(node)
    ]
    return sorted(found, key=lambda one: (one.line, one.what))


def _said(what: str, node: ast.AST, line: str) -> str:
    # A number says nothing without its line.
    return f"{what} in `{line.strip()}`" if isinstance(node, ast.Constant) else what


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:  # noqa: C901 - one case each
    match node:
        case ast.Compare():
            yield from _comparisons(node)
        case ast.BoolOp():
            yield from _of_and_or(node)
        case ast.UnaryOp(op=ast.Not()):
            yield f"{ast.unparse(node)}: without not", lambda one: cast("ast.UnaryOp", one).operand
        case ast.If() | ast.IfExp() | ast.While():
            yield f"if {ast.unparse(node.test)}: negated", _negate
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            other = ARITHMETIC[type(node.op)]
            yield f"{ast.unparse(node)}: {other.__name__}", _set("op", other())
        case ast.Constant(value=bool() as value):
            yield f"{value}: {not value}", _set("value", not value)
        case ast.Constant(value=int() | float() as value):
            yield f"{value}: {value + 1}", _set("value", value + 1)
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield f"{ast.unparse(node)}: None", _set("value", ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call() | ast.Await()):
            yield f"{ast.unparse(node)}: removed", lambda _: ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.AugAssign():
            yield f"{ast.unparse(node)}: removed", lambda _: ast.Pass()


def _of_and_or(node: ast.BoolOp) -> Iterator[tuple[str, Change]]:
    other = ast.Or if isinstance(node.op, ast.And) else ast.And
    yield f"{ast.unparse(node)}: {other.__name__.lower()}", _set("op", other())
    for place, value in enumerate(node.values):
        yield f"{ast.unparse(node)}: without `{ast.unparse(value)}`", _without(place)


def _comparisons(node: ast.Compare) -> Iterator[tuple[str, Change]]:
    for place, op in enumerate(node.ops):
        for other in COMPARISONS[type(op)]:

            def change(one: ast.AST, place: int = place, other: type[ast.cmpop] = other) -> None:
                cast("ast.Compare", one).ops[place] = other()

            yield f"{ast.unparse(node)}: {other.__name__}", change


def _set(name: str, value: object) -> Change:
    def change(node: ast.AST) -> None:
        setattr(node, name, copy.deepcopy(value))

    return change


def _without(place: int) -> Change:
    def change(node: ast.AST) -> ast.AST | None:
        values = cast("ast.BoolOp", node).values
        del values[place]
        return values[0] if len(values) == 1 else None

    return change


def _negate(node: ast.AST) -> None:
    one = cast("ast.If", node)
    one.test = ast.UnaryOp(ast.Not(), one.test)


def _not_run(tree: ast.Module) -> set[ast.AST]:
    """Return what no test can notice: annotations, slots, and lines of the log."""
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                arguments = (*node.args.args, *node.args.kwonlyargs)
                parts = [node.returns, *(one.annotation for one in arguments)]
            case ast.AnnAssign():
                parts = [node.annotation]
            case ast.Expr() if ast.unparse(node).startswith("log."):
                parts = [node]
            case ast.Call(func=ast.Name(id="dataclass")):
                parts = [node]
        for one in parts:
            left_out.update(ast.walk(one) if one is not None else ())
    return left_out


class _Replacement(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old = old
        self._new = ast.copy_location(new, old)

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else super().generic_visit(node)


class _Finder(importlib.abc.MetaPathFinder):
    """Has one module compiled from the tree of a mutant."""

    def __init__(self, module: str, number: int) -> None:
        self._module = module
        self._number = number

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        mutant = mutants_of(Path(spec.origin).read_text("utf-8"))[self._number]
        return importlib.util.spec_from_loader(
            fullname, _Loader(fullname, spec.origin, mutant), origin=spec.origin
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        return compile(self._mutant.tree(), self.path, "exec", dont_inherit=True)


def install() -> None:
    """Have the mutant that the environment names imported in place of its module."""
    named = os.environ.get(VARIABLE)
    if named:
        module, _, number = named.partition(":")
        assert module not in sys.modules, f"{module} was imported before"
        sys.meta_path.insert(0, _Finder(module, int(number)))


install()
