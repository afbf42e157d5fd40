"""Damage of the database that a server meets: an outage like any other, and said as one."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import refused
from keybearer_service.storage import dbapi
from reliability.processes import ServerProcess, command, init, serving
from reliability.test_liveness import HTTP, http_status

CALLS = 100
PAGE = 4096


def overwrite(database: Path, table: str) -> None:
    """Write over the first page of a table, as a disk or a stranger may."""
    connection = dbapi.connect(str(database))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
    page = int(found.fetchone()[0])
    connection.close()
    with database.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


def health(server: ServerProcess) -> Any:
    """Ask the health service."""
    stub: Any = health_pb2_grpc.HealthStub(server.channel())
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_damage_is_an_outage_at_every_entry_point(tmp_path: Path) -> None:
    """Never INTERNAL and never a verdict: UNAVAILABLE, 503, not ready, alive; one line says it."""
    data = tmp_path / "data"
    ids = init(data)
    with serving(data, flags=HTTP) as server:
        admin = server.stubs(ids["token"])
        assert admin.outcome(ids["token"]) == "VALID"
        credentials = dict.fromkeys(
            ("authorization", "x-keybearer-caller"), f"Bearer {ids['token']}"
        )
        assert http_status(server, "/v1/auth", credentials) == 200
        assert http_status(server, "/readyz") == 200
        overwrite(data / "keybearer.db", "users")
        calls: list[Callable[[], object]] = [
            lambda: admin.outcome(ids["token"]),
            admin.who_am_i,
            admin.create_key,
            admin.list_keys,
            admin.events,
        ]
        seen: Counter[str] = Counter()
        for number in range(CALLS):
            refusal = refused(calls[number % len(calls)])
            seen[f"{refusal.code.name} {refusal.reason}"] += 1
            assert http_status(server, "/v1/auth", credentials) == 503
        assert seen.keys() == {"UNAVAILABLE STORE_UNAVAILABLE"}
        assert http_status(server, "/readyz") == 503
        assert health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert http_status(server, "/healthz") == 200
        events = [one["event"] for one in server.events if one["level"] in ("error", "critical")]
        assert events == ["store_damaged"]
        assert len([one for one in server.events if one["level"] == "warning"]) <= 3
        done = command("check", "--data-dir", str(data), "--output", "json")
        assert done.returncode == 1, done
        assert any(one.startswith("users: ") for one in json.loads(done.stdout)["findings"])
        assert server.stop() == 0
