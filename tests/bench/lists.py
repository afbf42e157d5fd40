"""Lists over very many rows: how long each takes, and what the calls of others beside them do.

    python tests/bench/lists.py DIRECTORY [--rows 1000000]

The installation is made once in the directory and kept for the next run. One tenant has all rows:
keys, audit events and users; there are as many accounts. The calls that lists must not hold up are
those of the operator's account.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import SeededEntropy
from harness import Stubs, initialise, message
from keybearer.v1 import account_service_pb2, api_key_service_pb2, audit_service_pb2
from keybearer.v1 import user_service_pb2 as users_pb2
from keybearer_service.domain.clock import DAY, MINUTE, Micros, SystemClock
from keybearer_service.storage import dbapi

BESIDE = 300
"""Calls that are measured beside slow lists, of each kind."""
LISTERS = 8
_FILL = """
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :rows)
  SELECT i FROM n;
INSERT INTO users (id, account_id, email, display_name, role, type, create_time, update_time,
    delete_time)
  SELECT printf('user%012d', i), :account, printf('user%d@example.com', i), 'user', 1 + (i % 2), 1,
    :start + i, :start + i, CASE WHEN i % 10 = 0 THEN :now END FROM n;
INSERT INTO api_keys (id, account_id, owner_id, created_by, name, role, create_time, update_time,
    secret_create_time, digest, pepper_id, expire_time, disable_time, revoke_time, last_used_time)
  SELECT lower(hex(randomblob(8))), :account,
    CASE WHEN i % 2 THEN printf('user%012d', i % 1000) ELSE :owner END, :owner, 'key ' || i, 2,
    :start + i * :step, :now, :start, zeroblob(32), (SELECT id FROM peppers),
    CASE WHEN i % 2 THEN :now + (i % 400 - 20) * :day END,
    CASE WHEN i % 1000 = 1 THEN :now END, CASE WHEN i % 100 = 2 THEN :now END,
    CASE WHEN i % 10 < 7 THEN :now - (i % 90) * :day END FROM n;
INSERT INTO audit_events (id, time, account_id, actor_type, actor_key_id, actor_user_id,
    actor_user_email, action, target_type, target_id, changes, request_id, peer, hash)
  SELECT lower(hex(randomblob(8))), :start + i * :step, :account, 1, printf('actor%011d', i % 1000),
    printf('user%012d', i % 1000), 'user@example.com', 1 + i % 4, 3, printf('target%010d', i / 5),
    '[]', 'request', '192.0.2.1', randomblob(32) FROM n;
INSERT INTO accounts (id, name, create_time) SELECT printf('acct%012d', i), 'account ' || i,
    :start + i FROM n;
"""
_PATIENCE_S = 40.0
"""How long calls are measured, of each kind, and a call is waited for."""
_SLOW_MS = 300.0
"""What takes longer is not asked for again."""
_NOTHING = "no such thing"


def installation(root: Path, rows: int) -> tuple[Path, dict[str, str]]:
    """Return a data directory and the tokens and ids that the measurements need."""
    path = root / f"lists-{rows}"
    known = path / "bench.json"
    if not known.exists():
        path.mkdir(parents=True)
        known.touch(mode=0o600)
        known.write_text(json.dumps(_make(path / "data", rows)))
    return path / "data", json.loads(known.read_text())


def _make(path: Path, rows: int) -> dict[str, str]:
    clock = SystemClock()
    data_dir, created = initialise(path, clock, SeededEntropy(1))
    with served(path) as service:
        tenant = service.stubs(created.issued.token).create_account(
            "tenant", ttl={"seconds": 86_400 * 365}
        )
    now = clock.now()
    connection = dbapi.connect(str(data_dir.database), isolation_level=None)
    fill(connection, rows, account_id=tenant.account.id, owner_id=tenant.user.id, now=now)
    connection.close()
    return {
        "operator": created.issued.token,
        "tenant": tenant.token,
        "owner": tenant.user.id,
        "now": str(now),
    }


def fill(
    connection: dbapi.Connection, rows: int, *, account_id: str, owner_id: str, now: Micros
) -> None:
    """Give an account so many keys, events and users of every kind, and add as many accounts."""
    values = {
        "rows": rows,
        "account": account_id,
        "owner": owner_id,
        "now": now,
        "start": now - rows * MINUTE,
        "step": MINUTE,
        "day": DAY,
    }
    for pragma in ("cache_size = -1000000", "synchronous = OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _FILL.split(";\n"):
        if statement.strip():
            connection.execute(statement, values)
    connection.execute("COMMIT")


class Served(NamedTuple):
    """A running service."""

    stubs: Callable[[str], Stubs]
    """Makes stubs of a token."""
    start_s: float
    pid: int

    def cpu_ms(self) -> float:
        """Return the processor time of all its threads so far."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


@contextmanager
def served(path: Path) -> Iterator[Served]:
    """Serve an installation."""
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "keybearer_service", "serve"),
            *("--data-dir", str(path), "--listen", "127.0.0.1:0"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    channels: list[grpc.Channel] = []
    try:
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                break
        else:
            raise RuntimeError("the server did not start")
        seconds = time.monotonic() - began
        log = process.stderr
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()

        def stubs(token: str) -> Stubs:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(f"127.0.0.1:{event['port']}", options=options)
            channels.append(channel)
            return Stubs(channel, token)

        yield Served(stubs, seconds, process.pid)
    finally:
        for channel in channels:
            channel.close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def lists(facts: Mapping[str, str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every list: its kind, what it is called, and its fields."""
    now = int(facts["now"]) // 1_000_000
    early, late = {"seconds": now - 86_400 * 600}, {"seconds": now + 86_400 * 30}
    filters: dict[str, dict[str, Any]] = {
        "everything": {},
        "revoked": {"states": ["API_KEY_STATE_REVOKED"]},
        "disabled": {"states": ["API_KEY_STATE_DISABLED"]},
        "expired": {"states": ["API_KEY_STATE_EXPIRED"]},
        "active": {"states": ["API_KEY_STATE_ACTIVE"]},
        "owner of half": {"owner_id": facts["owner"]},
        "owner of 500": {"owner_id": f"user{7:012d}"},
        "owner of none": {"owner_id": _NOTHING},
        "name of all": {"name_contains": "KEY"},
        "name of none": {"name_contains": _NOTHING},
        "expires before": {"expires_before": late},
        "expires before, none": {"expires_before": early},
        "unused since": {"unused_since": {"seconds": now - 86_400 * 30}},
        "unused since, none": {"unused_since": {"seconds": 1}},
        "owner, revoked, name of none": {
            "owner_id": facts["owner"],
            "states": ["API_KEY_STATE_REVOKED"],
            "name_contains": _NOTHING,
        },
    }
    for order in (
        "create_time desc",
        "create_time",
        "expire_time",
        "expire_time desc",
        "name desc",
    ):
        for name, fields in filters.items():
            yield "keys", f"{name}, by {order}", {**fields, "order_by": order}
    yield "keys", "everything, by last_used_time", {"order_by": "last_used_time"}
    yield "keys", "1000 a page", {"page_size": 1000}
    events: dict[str, dict[str, Any]] = {
        "everything": {},
        "actor key": {"actor_id": f"actor{5:011d}"},
        "actor user": {"actor_id": f"user{5:012d}"},
        "actor of none": {"actor_id": _NOTHING},
        "target": {"target_id": f"target{5:010d}"},
        "target of none": {"target_id": _NOTHING},
        "action": {"actions": [1]},
        "action of none": {"actions": [15]},
        "two actions of none": {"actions": [15, 16]},
        "before all": {"before": {"seconds": 1}},
        "after all": {"after": {"seconds": now + 1}},
        "a while ago": {"after": early, "before": {"seconds": now - 86_400 * 599}},
        "actor, action of none": {"actor_id": f"actor{5:011d}", "actions": [15]},
        "1000 a page": {"page_size": 1000},
    }
    yield from (("audit", name, fields) for name, fields in events.items())
    users: dict[str, dict[str, Any]] = {
        "everything": {},
        "deleted too": {"show_deleted": True},
        "role of half": {"roles": ["ROLE_VALIDATOR"]},
        "role of one": {"roles": ["ROLE_ADMIN"]},
        "type of none": {"types": ["USER_TYPE_SERVICE_ACCOUNT"]},
        "address of one": {"email_contains": "user7@"},
        "address of none": {"email_contains": _NOTHING},
    }
    yield from (("users", name, fields) for name, fields in users.items())
    yield "accounts", "everything", {}
    yield "accounts", "name of none", {"name_contains": _NOTHING}


def call(stubs: Stubs, operator: Stubs, kind: str, fields: dict[str, Any]) -> tuple[int, bool]:
    """Ask for a page; return how many items it has and whether another one follows."""
    if kind == "keys":
        keys = stubs.keys.ListApiKeys(message(api_key_service_pb2.ListApiKeysRequest, **fields))
        return len(keys.api_keys), bool(keys.next_page_token)
    if kind == "audit":
        events = stubs.audit.ListAuditEvents(
            message(audit_service_pb2.ListAuditEventsRequest, **fields)
        )
        return len(events.audit_events), bool(events.next_page_token)
    if kind == "users":
        users = stubs.users.ListUsers(message(users_pb2.ListUsersRequest, **fields))
        return len(users.users), bool(users.next_page_token)
    accounts = operator.accounts.ListAccounts(account_service_pb2.ListAccountsRequest(**fields))
    return len(accounts.accounts), bool(accounts.next_page_token)


def measure_lists(service: Served, facts: Mapping[str, str]) -> None:
    """Print how long each list takes, and the processor time: the medians of three, after one."""
    tenant, operator = service.stubs(facts["tenant"]), service.stubs(facts["operator"])
    for kind, name, fields in lists(facts):
        took, cost = [], []
        for _ in range(4):
            began, cpu = time.monotonic(), service.cpu_ms()
            try:
                items, more = call(tenant, operator, kind, fields)
                seen = f"{items} items{', more' if more else ''}"
            except grpc.RpcError as error:
                seen = str(error.code().name)
            took.append((time.monotonic() - began) * 1000)
            cost.append(service.cpu_ms() - cpu)
            if took[-1] > _SLOW_MS:
                break
        ms, cpu = (statistics.median(one[1:] or one) for one in (took, cost))
        print(f"{kind:9}{name:45}{ms:9.1f} ms {cpu:9.1f} ms of cpu  {seen}", flush=True)


def measure_beside(service: Served, facts: Mapping[str, str]) -> None:
    """Print how long calls of the operator take, alone and beside slow lists of the tenant."""
    operator = service.stubs(facts["operator"])
    for listers in (0, LISTERS):
        ids = [operator.create_key().api_key.id for _ in range(BESIDE)]
        over, listed = threading.Event(), [0, 0]
        threads = [
            threading.Thread(target=_list_on, args=(service.stubs(facts["tenant"]), over, listed))
            for _ in range(listers)
        ]
        for thread in threads:
            thread.start()
        get: Any = partial(operator.keys.GetApiKey, timeout=_PATIENCE_S)
        revoke: Any = partial(operator.keys.RevokeApiKey, timeout=_PATIENCE_S)
        for name, ask, request in (
            ("GetApiKey", get, api_key_service_pb2.GetApiKeyRequest),
            (
                "RevokeApiKey",
                revoke,
                partial(message, api_key_service_pb2.RevokeApiKeyRequest, reason=1),
            ),
        ):
            took: list[float] = []
            for key_id in ids:
                began = time.monotonic()
                ask(request(id=key_id))
                took.append((time.monotonic() - began) * 1000)
                if sum(took) > _PATIENCE_S * 1000:
                    break
            took.sort()
            print(
                f"{name} beside {listers} listers, {len(took)} calls:"
                f" p50 {took[len(took) // 2]:.1f}"
                f" ms, p99 {took[len(took) * 99 // 100]:.1f} ms, max {took[-1]:.1f} ms",
                flush=True,
            )
        over.set()
        for thread in threads:
            thread.join()
        print(f"  meanwhile {listed[0]} lists answered, {listed[1]} refused or late", flush=True)


def _list_on(stubs: Stubs, over: threading.Event, listed: list[int]) -> None:
    while not over.is_set():
        try:
            stubs.list_keys(name_contains=_NOTHING)
            listed[0] += 1
        except grpc.RpcError:
            listed[1] += 1
            over.wait(1.0)  # as long as the service asks for


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--beside-only", action="store_true", help="measure no lists")
    parser.add_argument("--seed-only", action="store_true", help="make the installation alone")
    options = parser.parse_args()
    path, facts = installation(options.directory, options.rows)
    if options.seed_only:
        return 0
    for _ in range(2):
        with served(path) as service:
            print(f"start: {service.start_s:.2f} s", flush=True)
    with served(path) as service:
        if not options.beside_only:
            measure_lists(service, facts)
        measure_beside(service, facts)
    size = sum(file.stat().st_size for file in path.glob("*.db*"))
    print(f"size of the database: {size / 2**20:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
