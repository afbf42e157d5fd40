"""Which room of the service may import which: a table, held against the imports of every module."""

import ast
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

PACKAGE = "keybearer_service"
SERVICE = Path(__file__).parents[2] / "service" / PACKAGE

FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("supervisor",),
    ("app",),
    ("endpoints", "gauges", "housekeeping"),
    ("container",),
    ("rpc",),
    ("http",),
    ("console",),
    ("gateway",),
    ("offline",),
    ("watch",),
    ("usecases",),
    ("validation",),
    ("installation",),
    ("storage",),
    ("config",),
    ("telemetry", "net"),
    ("domain",),
    ("ext_authz",),
)
"""Every room, top down. A room imports from the floors below its own and from itself, never from a
floor above, and not from its neighbours on the same floor. `ext_authz` is generated code."""

ONLY_HERE = {
    "psycopg": {
        "storage.postgres",
        "storage.postgres_connections",
        "storage.postgres_errors",
        "storage.postgres_nodes",
        "storage.postgres_schema",
        "storage.postgres_session",
        "storage.postgres_wakeups",
        "storage.postgres_writes",
        "storage.postgres_yugabyte",
    },
    "sqlite3": {"storage.dbapi"},
    "pysqlite3": {"storage.dbapi"},
    "time": {"domain.clock"},
    "secrets": {"domain.entropy"},
    "random": set(),
    "uuid": set(),
    "jinja2": {"console.pages"},
    "httpx2": {"console.fetching"},
    "joserfc": {"console.provider_tokens", "console.sealing"},
}
"""Libraries that few modules may know: one driver, one clock, one source of secrets."""


def _modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(SERVICE).with_suffix("").parts).removesuffix(".__init__"): (
            ast.parse(path.read_text("utf-8"), str(path))
        )
        for path in sorted(SERVICE.rglob("*.py"))
        if not path.stem.endswith("_pb2") and path != SERVICE / "__init__.py"
    }


MODULES = _modules()
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a module imports, once as a module and once with each name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(module: str, tree: ast.AST) -> AbstractSet[str]:
    """Return the imports of a module that point upwards or sideways."""
    own = module.partition(".")[0]
    rooms = {
        parts[1]
        for parts in (imported.split(".") for imported in imports_of(tree))
        if parts[0] == PACKAGE and len(parts) > 1
    }
    return {
        room
        for room in rooms
        if room != own and FLOOR_OF.get(room, FLOOR_OF[own] + 1) <= FLOOR_OF[own]
    }


def importers_of(library: str) -> AbstractSet[str]:
    """Return the modules that import a library."""
    return {
        name
        for name, tree in MODULES.items()
        if library in {imported.split(".")[0] for imported in imports_of(tree)}
    }


def test_every_room_stands_in_the_table() -> None:
    """A new folder needs a floor before it can be used."""
    assert {name.split(".")[0] for name in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_imports_upwards(name: str) -> None:
    """What stands above may know what stands below, and never the other way round."""
    assert forbidden_imports(name, MODULES[name]) == set()


def test_an_upward_import_is_noticed() -> None:
    """The check sees a module-level import, one inside a function, and one of a whole package."""
    tree = ast.parse(
        "from keybearer_service.rpc.server import Server\n"
        "def f():\n    from keybearer_service import app\n    import keybearer_service.cli\n"
    )
    assert forbidden_imports("usecases.keys", tree) == {"rpc", "app", "cli"}


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_a_library_is_known_where_it_belongs(library: str) -> None:
    """Clock, entropy and driver are chosen in one module each and handed to all others."""
    assert importers_of(library) == ONLY_HERE[library]


def test_only_the_edges_know_generated_messages() -> None:
    """Use cases, rules and storage speak in models, never in protobuf."""
    found = {
        name.split(".")[0]
        for name, tree in MODULES.items()
        for imported in imports_of(tree)
        if any(part.endswith(("_pb2", "_pb2_grpc")) for part in imported.split("."))
    }
    assert found == {"endpoints", "gateway", "net", "rpc"}


def test_only_the_edges_know_grpc() -> None:
    """Use cases and the pipeline do not know how they are called."""
    assert importers_of("grpc") == {
        "gateway.status",
        "net.health_client",
        "net.tls",
        "rpc.bidi",
        "rpc.handlers",
        "rpc.hot_loop",
        "rpc.probes",
        "rpc.server",
    }


def test_callers_are_authenticated_in_one_place() -> None:
    """Every entry point admits its callers through `Callers`."""
    calling = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "authenticate"
    }
    assert calling == {"validation.callers"}


def test_nobody_reads_the_wall_clock_through_datetime_or_os() -> None:
    """The other ways to the machine's time and randomness are closed too."""
    calls = {
        f"{name}: {ast.unparse(node.func)}"
        for name, tree in MODULES.items()
        if name not in ("domain.clock", "domain.entropy")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith((".now", ".utcnow", ".today", ".urandom", ".getrandom"))
        and not ast.unparse(node.func).endswith("clock.now")
    }
    assert calls == set()


def test_only_the_rpc_room_decides_a_status() -> None:
    """Errors are raised; one room turns them into a status."""
    deciding = {"abort", "abort_with_status", "set_code", "set_details"}
    found = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in deciding
        if ast.unparse(node) != "self.transport.abort"  # closes a connection
    }
    assert {name.split(".")[0] for name in found} == {"rpc"}


BACKEND_PREFIXES = ("sqlite", "postgres", "dbapi", "migrations")


def test_only_the_container_names_a_backend() -> None:
    """Whoever needs a store is handed one, and knows its contract alone."""
    naming = {
        name
        for name, tree in MODULES.items()
        if not name.startswith("storage")
        for imported in imports_of(tree)
        if imported.startswith(f"{PACKAGE}.storage.")
        and imported.split(".")[2].startswith(BACKEND_PREFIXES)
    }
    assert naming == {"container"}
