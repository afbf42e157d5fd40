"""Which part of the client may import which: a table, read from the imports of every module."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client/keybearer"

MAY_IMPORT: dict[str, set[str]] = {
    "v1": set(),
    "_wire": {"access"},
    "access": {"_wire", "v1"},
    "errors": {"_wire"},
    "models": {"_wire", "access"},
    "_client": {"_wire", "access", "errors", "models", "v1"},
    "_guard": {"_wire", "access", "errors", "models"},
    "_cache": {"_client", "_wire", "errors", "models", "v1"},
    "aio": {"_guard", "_wire", "access", "models"},
    "web": {"_guard", "_wire", "access", "models"},
    "fastapi": {"_guard", "_wire", "access", "models"},
    "credentials": {"_client", "_wire"},
    "testing": {"_client", "_guard", "_wire", "access", "models", "v1"},
    "cli": {"_client", "_wire", "access", "errors", "models"},
}
"""The parts from the bottom up, and what each may import beside itself."""

SHARED = ("_wire", "access", "v1")
"""What the service may import."""


def _parts(path: Path) -> str:
    return ".".join(path.relative_to(CLIENT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    _parts(path): ast.parse(path.read_text("utf-8"), str(path))
    for path in sorted(CLIENT.rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the client that a module imports, without the name of the package."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [
                f"{module}.{alias.name}"
                if f"{module}.{alias.name}".removeprefix("keybearer.") in MODULES
                or module in ("keybearer", "keybearer.v1")
                else module
                for alias in node.names
            ]
        yield from (
            name.removeprefix("keybearer.") for name in names if name.startswith("keybearer.")
        )


def _violations(may_import: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {imported}"
        for module, tree in MODULES.items()
        if module not in ("__init__", "")
        for imported in _imports(tree)
        if imported.split(".")[0] not in {*may_import[module.split(".")[0]], module.split(".")[0]}
    ]


def test_every_part_is_in_the_table() -> None:
    """A new module belongs to a part, and a part to the table."""
    assert {module.split(".")[0] for module in MODULES} - {"__init__"} == set(MAY_IMPORT)


def test_imports_follow_the_table() -> None:
    """No part imports what stands above it."""
    assert _violations(MAY_IMPORT) == []


def test_a_forbidden_import_is_found() -> None:
    """Planted: a table in which the guards may not import the access rules."""
    found = _violations({**MAY_IMPORT, "_guard": MAY_IMPORT["_guard"] - {"access"}})
    assert "_guard.check imports access" in found


def test_there_is_no_circle() -> None:
    """The modules can be sorted, so none needs another one that needs it."""
    graph = {module: set(_imports(tree)) & set(MODULES) for module, tree in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", [one for one in MODULES if one.startswith("_wire.")])
def test_what_the_service_shares_imports_no_client(module: str) -> None:
    """The service uses these modules without the parts that call a service."""
    assert {one.split(".")[0] for one in _imports(MODULES[module])} <= set(SHARED)
