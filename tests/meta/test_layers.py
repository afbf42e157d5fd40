"""Who may know what: read from the imports and calls of every module of the service."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2] / "service/keybearer_service"
MODULES = {
    str(path.relative_to(SERVICE)): ast.parse(path.read_text("utf-8"), str(path))
    for path in sorted(SERVICE.rglob("*.py"))
    if not path.stem.endswith("_pb2")  # generated
}

DRIVERS = ("sqlite3", "pysqlite3")
SOURCES = ("time", "secrets", "uuid", "random")

USE_CASES = (
    "usecases/accounts.py",
    "usecases/audit.py",
    "usecases/mutations.py",
    "usecases/keys.py",
    "usecases/idempotency.py",
    "usecases/users.py",
)
PURE = ("domain/model.py", "domain/token_format.py", "domain/errors.py", "domain/clock.py")

MAY_IMPORT = {
    # Generated messages: what reads and writes them, and what registers services.
    "_pb2": {
        "app.py": "registers the servicers and names the services",
        "rpc/convert.py": "is the bridge",
        "gateway/ext_authz.py": "is a servicer",
        "net/health_client.py": "is a client of the health service",
        "rpc/pipeline.py": "writes google.rpc.Status",
        "rpc/server.py": "serves health and reflection",
    },
    "grpc": {
        "gateway/ext_authz.py": "is a servicer",
        "app.py": "builds the server",
        "rpc/bidi.py": "is a call with messages each way",
        "domain/errors.py": "names status codes",
        "net/health_client.py": "opens a channel",
        "rpc/pipeline.py": "is an interceptor",
        "rpc/server.py": "is the server",
        "net/tls.py": "makes server credentials",
    },
}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _importers(wanted: str) -> set[str]:
    found = set()
    for name, tree in MODULES.items():
        for imported in _imports(tree):
            parts = imported.split(".")
            if wanted in parts or any(part.endswith("_pb2") for part in parts if wanted == "_pb2"):
                found.add(name)
    return found


def _is_servicer(name: str) -> bool:
    return name.startswith("rpc/servicers/")


def test_every_module_was_read() -> None:
    """A scan of nothing finds nothing wrong."""
    assert {"app.py", "rpc/pipeline.py", "storage/sqlite.py", "rpc/servicers/tokens.py"} <= set(
        MODULES
    )


def test_only_the_edges_know_generated_messages() -> None:
    """Use cases, rules and storage speak in models, never in protobuf."""
    found = {name for name in _importers("_pb2") if not _is_servicer(name)}
    assert found == set(MAY_IMPORT["_pb2"])


def test_only_the_edges_know_grpc() -> None:
    """Use cases do not know how they are called."""
    found = {name for name in _importers("grpc") if not _is_servicer(name)}
    assert found == set(MAY_IMPORT["grpc"])


def test_only_dbapi_knows_the_driver() -> None:
    """One module chooses between the SQLite drivers, whose classes are not the same."""
    assert {name for driver in DRIVERS for name in _importers(driver)} == {"storage/dbapi.py"}


def test_only_sources_asks_for_time_or_randomness() -> None:
    """Clock and entropy are arguments everywhere else, so that tests can decide them."""
    assert {name for source in SOURCES for name in _importers(source)} == {"domain/clock.py"}


def test_nobody_reads_the_wall_clock_through_datetime_or_os() -> None:
    """The other ways to the same things are closed too."""
    calls = {
        f"{name}: {ast.unparse(node.func)}"
        for name, tree in MODULES.items()
        if name != "domain/clock.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith((".now", ".utcnow", ".today", ".urandom", ".getrandom"))
        and not ast.unparse(node.func).endswith("clock.now")
    }
    assert calls == set()


def test_only_the_call_pipeline_decides_a_status() -> None:
    """Errors are raised; one place turns them into a status."""
    deciding = {"abort", "abort_with_status", "set_code", "set_details"}
    found = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in deciding
    }
    assert found == {"rpc/pipeline.py"}


@pytest.mark.parametrize(
    "name",
    [*USE_CASES, *PURE, "domain/validators.py", "domain/rate_limits.py", "validation/validator.py"],
)
def test_no_rule_knows_a_servicer_a_bridge_or_a_backend(name: str) -> None:
    """The direction is servicers, use cases, model; storage is known by its protocol alone."""
    above = {
        "keybearer_service.app",
        "keybearer_service.cli",
        "keybearer_service.rpc.convert",
        "keybearer_service.container",
        "keybearer_service.rpc.pipeline",
        "keybearer_service.rpc.server",
        "keybearer_service.servicers",
        "keybearer_service.storage.migrations",
        "keybearer_service.storage.rows",
        "keybearer_service.storage.sqlite",
    }
    assert above.isdisjoint(_imports(MODULES[name]))


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_store_and_no_call(name: str) -> None:
    """Token format, rules of time, error tree and sources stand on their own."""
    known = {one for one in _imports(MODULES[name]) if one.startswith("keybearer_service.")}
    assert {one.split(".")[1] for one in known} <= {"domain"}


def test_storage_knows_only_the_model() -> None:
    """A backend implements a protocol and judges nothing."""
    known = {
        one.split(".")[1]
        for name, tree in MODULES.items()
        if name.startswith("storage/")
        for one in _imports(tree)
        if one.startswith("keybearer_service.")
    }
    assert known <= {"domain", "storage"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if _is_servicer(name)))
def test_servicers_hold_no_backend_and_no_driver(name: str) -> None:
    """A servicer reads, calls and renders."""
    forbidden = ("keybearer_service.storage.sqlite", "keybearer_service.storage.rows")
    assert not [one for one in _imports(MODULES[name]) if one.startswith(forbidden)]
