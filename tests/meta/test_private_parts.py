"""Private parts of libraries: each is listed, has the shape that we rely on, and a bound above."""

import ast
import asyncio
import inspect
import re
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
import typer
import uvicorn
from fastapi.security import base as fastapi_security
from grpc import _server
from typer.testing import CliRunner
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from keybearer.cli.app import app as command

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "service/keybearer_service", ROOT / "client/keybearer")
OURS = frozenset(package.name for package in PACKAGES)
RECORD = (ROOT / "docs/decisions/0002-private-parts-of-libraries.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

DOCUMENTED = frozenset({"_replace", "_make", "_asdict", "_fields", "_exit", "_current_frames"})
"""Look private, and are promised."""

grpc_server: Any = _server
cygrpc: Any = grpc_server.cygrpc


def _parameters(function: Any) -> list[str]:
    return [*inspect.signature(function).parameters]


def _executor_is_taken() -> bool:
    def behaviour() -> None:
        """Serve nothing."""

    own, default = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    behaviour.experimental_thread_pool = own  # type: ignore[attr-defined]
    taken = grpc_server._select_thread_pool_for_behavior(behaviour, default)
    return taken is own


def _usage_error() -> Any:
    return typer.BadParameter.__bases__[0]


def _state() -> Any:
    return grpc_server._RPCState()


def _makes_attribute(name: str) -> bool:
    return f"self.{name} = " in inspect.getsource(grpc_server._Context.__init__)


def _completion() -> str:
    arguments: dict[str, Any] = {"env": {"_KEYBEARER_COMPLETE": "source_bash"}}
    return CliRunner().invoke(command, [], prog_name="keybearer", **arguments).output


_SOURCE_OF_CONNECTION = inspect.getsource(H11Protocol.__init__)

SHAPES: Mapping[str, Callable[[], bool]] = {
    "_server": lambda: inspect.ismodule(grpc_server),
    "_state": lambda: _makes_attribute("_state"),
    "_rpc_event": lambda: _makes_attribute("_rpc_event"),
    "condition": lambda: isinstance(_state().condition, threading.Condition),
    "_is_rpc_state_active": lambda: (
        _parameters(grpc_server._is_rpc_state_active) == ["state"]
        and grpc_server._is_rpc_state_active(_state()) is True
    ),
    "_RECEIVE_MESSAGE_TOKEN": lambda: isinstance(grpc_server._RECEIVE_MESSAGE_TOKEN, str),
    "_SEND_MESSAGE_TOKEN": lambda: isinstance(grpc_server._SEND_MESSAGE_TOKEN, str),
    "due": lambda: _state().due == set(),
    "_possibly_finish_call": lambda: (
        _parameters(grpc_server._possibly_finish_call) == ["state", "token"]
    ),
    "cygrpc": lambda: inspect.ismodule(cygrpc),
    "ReceiveMessageOperation": lambda: cygrpc.ReceiveMessageOperation(0) is not None,
    "SendMessageOperation": lambda: cygrpc.SendMessageOperation(b"", 0) is not None,
    "SendInitialMetadataOperation": lambda: (
        cygrpc.SendInitialMetadataOperation(None, 0) is not None
    ),
    "start_server_batch": lambda: callable(cygrpc.Call.start_server_batch),
    "batch_operations": lambda: hasattr(cygrpc.BatchOperationEvent, "batch_operations"),
    "CompletionQueue": lambda: callable(cygrpc.CompletionQueue().poll),
    "CompletionType": lambda: (
        cygrpc.CompletionType.queue_timeout != cygrpc.CompletionType.queue_shutdown
    ),
    "register_completion_queue": lambda: callable(cygrpc.Server.register_completion_queue),
    "register_method": lambda: callable(cygrpc.Server.register_method),
    "request_registered_call": lambda: callable(cygrpc.Server.request_registered_call),
    "SendStatusFromServerOperation": lambda: (
        cygrpc.SendStatusFromServerOperation(None, 0, b"", 0) is not None
    ),
    "ReceiveCloseOnServerOperation": lambda: cygrpc.ReceiveCloseOnServerOperation(0) is not None,
    "initial_metadata_allowed": lambda: _state().initial_metadata_allowed is True,
    "experimental_non_blocking": lambda: (
        "experimental_non_blocking" in inspect.getsource(grpc_server._stream_response_in_pool)
    ),
    "experimental_thread_pool": _executor_is_taken,
    "H11Protocol": lambda: (
        _parameters(H11Protocol)[:3] == ["config", "server_state", "app_state"]
        and issubclass(H11Protocol, asyncio.Protocol)
    ),
    "ServerState": lambda: hasattr(ServerState(), "connections"),
    "cycle": lambda: "self.cycle: RequestResponseCycle" in _SOURCE_OF_CONNECTION,
    "conn": lambda: "self.conn = h11.Connection(" in _SOURCE_OF_CONNECTION,
    "flow": lambda: callable(FlowControl.pause_reading),
    "timeout_keep_alive_task": lambda: "self.timeout_keep_alive_task: " in _SOURCE_OF_CONNECTION,
    "on_response_complete": lambda: _parameters(H11Protocol.on_response_complete) == ["self"],
    "send_400_response": lambda: _parameters(H11Protocol.send_400_response) == ["self", "msg"],
    "server_state": lambda: isinstance(
        uvicorn.Server(uvicorn.Config("app")).server_state, ServerState
    ),
    "_migrations": lambda: sqlite_utils.Migrations("name")._migrations == [],
    "__bases__": lambda: _usage_error().__name__ == "UsageError",
    "ctx": lambda: _usage_error()("text").ctx is None,
    "command_path": lambda: hasattr(typer.Context, "command_path"),
    "format_message": lambda: _usage_error()("text").format_message() == "text",
    "_KEYBEARER_COMPLETE": lambda: "_keybearer_completion" in _completion(),
    "SecurityBase": lambda: (
        inspect.get_annotations(fastapi_security.SecurityBase).keys() == {"model", "scheme_name"}
    ),
}
"""For each part, whether the installed library has it in the shape that we rely on."""

_OPEN_NAMES = frozenset(name for name in SHAPES if not re.match(r"_[a-z]|_[A-Z]+_MESSAGE", name))
"""Parts that do not look private, and are nowhere promised."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def _made_by(class_: ast.ClassDef) -> AbstractSet[str]:
    """Return the attributes that a class of ours makes."""
    made = {one.name for one in ast.walk(class_) if isinstance(one, ast.FunctionDef)}
    made |= {one.name for one in ast.walk(class_) if isinstance(one, ast.AsyncFunctionDef)}
    for node in ast.walk(class_):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            made.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
    return made


def _inherited_in(tree: ast.Module) -> Iterator[str]:
    """Yield the private attributes that classes take from bases of other modules."""
    classes = {one.name: one for one in tree.body if isinstance(one, ast.ClassDef)}
    theirs = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OURS
        for alias in node.names
    }

    def made_by(class_: ast.ClassDef) -> AbstractSet[str]:
        bases = [classes[name] for name in map(ast.unparse, class_.bases) if name in classes]
        return frozenset(_made_by(class_)).union(*map(made_by, bases))

    for class_ in classes.values():
        if not any(ast.unparse(base).split(".")[0] in theirs for base in class_.bases):
            continue
        used = {
            node.attr
            for node in ast.walk(class_)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        }
        yield from (name for name in used - made_by(class_) if _is_private(name))


def private_parts_in(tree: ast.Module) -> AbstractSet[str]:
    """Return the private parts of libraries that a module uses, by their names."""
    found = set(_inherited_in(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OURS:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {part for part in parts if _is_private(part) or part in _OPEN_NAMES}
            found.discard("__future__")
        elif isinstance(node, ast.Import):
            found |= {p for one in node.names for p in one.name.split(".") if _is_private(p)}
        elif isinstance(node, ast.Attribute):
            is_own = ast.unparse(node.value) in {"self", "cls"}
            if node.attr in _OPEN_NAMES or (_is_private(node.attr) and not is_own):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and node.value in _OPEN_NAMES:
            found.add(str(node.value))
    return found


def _used() -> Mapping[str, AbstractSet[str]]:
    used: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                tree = ast.parse(path.read_text("utf-8"), str(path))
                for name in private_parts_in(tree):
                    used.setdefault(name, set()).add(str(path.relative_to(package)))
    return used


def _rows(title: str) -> list[list[str]]:
    table = RECORD.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return rows[1:]


def _code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


LISTED = {
    name: set(_code_in(where)) for names, _, where, _ in _rows("Names") for name in _code_in(names)
}


def test_the_record_lists_what_is_used_and_where() -> None:
    """No part is used in silence, and none stays listed that is used no more."""
    assert _used() == LISTED


@pytest.mark.parametrize("name", sorted({*LISTED, *SHAPES}))
def test_a_private_part_has_the_shape_that_we_rely_on(name: str) -> None:
    """In the installed library. When it has moved, the code that uses it must follow."""
    assert SHAPES[name]()


@pytest.mark.parametrize("row", _rows("Behaviour"), ids=lambda row: str(row[0]))
def test_the_test_of_a_behaviour_exists(row: list[str]) -> None:
    """The record names the test that would fail, and the module that relies on the behaviour."""
    _, _, where, guard = row
    file, name = _code_in(guard)
    assert f"def {name}(" in (ROOT / file).read_text("utf-8")
    assert any((package / one).exists() for one in _code_in(where) for package in PACKAGES)


LIBRARIES = {row[1] for row in (*_rows("Names"), *_rows("Behaviour"))}
UNBOUNDED = {"fastapi", "prometheus-client", "typer"}
"""The client's command and guards live in other people's environments; and the metrics are to use
public names alone."""


@pytest.mark.parametrize("library", sorted(LIBRARIES - UNBOUNDED))
def test_a_library_with_private_parts_in_use_has_a_bound_close_above(library: str) -> None:
    """The server takes at most one minor version more than the one that is tested."""
    bounds = {
        match[1]: (int(match[2]), int(match[3] or 0))
        for one in PROJECT["optional-dependencies"]["server"]
        if (match := re.match(r"([\w-]+)[^;]*<(\d+)(?:\.(\d+))?", one))
    }
    major, minor = (int(part) for part in version(library).split(".")[:2])
    assert (major, minor) < bounds[library] <= (major, minor + 2)


def test_an_unlisted_part_is_noticed() -> None:
    """An attribute, an import, an inherited attribute, and one that does not look private."""
    tree = ast.parse(
        "from library import _hidden, Base\n"
        "import other._inner\n"
        "class Own(Base):\n"
        "    def f(self):\n"
        "        self._mine = 1\n"
        "        return self._mine, self._theirs, self.x._deep, self.row._replace\n"
        "def g(f): f.experimental_thread_pool = 1\n"
    )
    assert private_parts_in(tree) == {
        "_hidden",
        "_inner",
        "_theirs",
        "_deep",
        "experimental_thread_pool",
    }
