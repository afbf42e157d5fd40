"""What a page of a list costs does not grow with the rows that there are."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backends import Connections
from bench.lists import fill as fill_with_rows
from fakes import START, at
from keybearer._wire.enums import ApiKeyState, AuditAction, UserType
from keybearer._wire.limits import API_KEY_ORDERS
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import DAY, MINUTE
from keybearer_service.storage import (
    NEVER,
    UNUSED,
    AccountQuery,
    AuditQuery,
    Found,
    KeyQuery,
    Page,
    Reader,
    SortKey,
    UserQuery,
    dbapi,
)
from keybearer_service.storage.sqlite import SqliteStore
from samples import EVERYWHERE, fill, sample_id

ROWS = 20_000
VERY_MANY = 1_000_000
LOOKED_AT = 500
MOST_STEPS = 60_000
"""Steps of SQLite's machine: a walk through ROWS takes more than ten for each."""
MOST_MS = 100.0

OWN = AccountScope(sample_id("acct"))
Read = Callable[[Reader, Page], Found[Any]]


class List(NamedTuple):
    """A list, and the position of an item in its order."""

    read: Read
    position: Callable[[Any], SortKey]


def by_time(item: Any) -> SortKey:
    """Return where a user, an account or a key by create_time is."""
    return item.create_time, item.id


KEY_POSITIONS: dict[str, Callable[[Any], SortKey]] = {
    "create_time": by_time,
    "expire_time": lambda key: (NEVER if key.expire_time is None else key.expire_time, key.id),
    "name": lambda key: (key.name, key.id),
    "last_used_time": lambda key: (
        UNUSED if key.last_used_time is None else key.last_used_time,
        key.id,
    ),
}


def key_lists() -> Iterator[tuple[str, List]]:
    """Yield the lists of keys: each filter in each order, and some together."""
    filters: dict[str, dict[str, Any]] = {
        "nothing": {},
        **{state.name: {"states": (state,)} for state in ApiKeyState if state},
        "live": {"states": (ApiKeyState.ACTIVE, ApiKeyState.DISABLED)},
        "dead": {"states": (ApiKeyState.REVOKED, ApiKeyState.EXPIRED)},
        "owner of half": {"owner_id": sample_id("user")},
        "owner of few": {"owner_id": f"user{7:012d}"},
        "no owner": {"owner_id": "nobody"},
        "name": {"name_contains": "KEY"},
        "no name": {"name_contains": "none"},
        "expires": {"expires_before": at(30 * DAY)},
        "expires never": {"expires_before": at(-600 * DAY)},
        "unused": {"unused_since": at(-30 * DAY)},
        "unused ever": {"unused_since": at(-9000 * DAY)},
        "owner, state and no name": {
            "owner_id": sample_id("user"),
            "states": (ApiKeyState.REVOKED,),
            "name_contains": "none",
        },
        "expired and unused": {
            "states": (ApiKeyState.EXPIRED,),
            "expires_before": at(-1 * DAY),
            "unused_since": at(-80 * DAY),
        },
    }
    for order in API_KEY_ORDERS:
        for descending in (False, True):
            for name, changes in filters.items():
                query = KeyQuery(
                    scope=OWN, now=START, order_by=order, descending=descending, **changes
                )
                text = f"keys: {name} by {order}{' desc' if descending else ''}"
                yield text, List(partial(_keys, query), KEY_POSITIONS[order])


def _keys(query: KeyQuery, reader: Reader, page: Page) -> Found[Any]:
    return reader.list_api_keys(query, page)


def other_lists() -> Iterator[tuple[str, List]]:
    """Yield the lists of audit events, users and accounts."""
    events: dict[str, dict[str, Any]] = {
        "nothing": {},
        "actor key": {"actor_id": f"actor{5:011d}"},
        "actor user": {"actor_id": f"user{5:012d}"},
        "no actor": {"actor_id": "nobody"},
        "target": {"target_id": f"target{5:010d}"},
        "no target": {"target_id": "nothing"},
        "action": {"actions": (AuditAction(1),)},
        "no action": {"actions": (AuditAction.API_KEY_REVOKED,)},
        "no actions": {"actions": (AuditAction.API_KEY_REVOKED, AuditAction.USER_DELETED)},
        "after": {"after": at(-ROWS * MINUTE // 2)},
        "before": {"before": at(-ROWS * MINUTE // 2)},
        "never": {"before": at(-9000 * DAY)},
        "a while": {"after": at(-ROWS * MINUTE // 2), "before": at(-ROWS * MINUTE // 2 + MINUTE)},
        "actor, no action": {
            "actor_id": f"actor{5:011d}",
            "actions": (AuditAction.API_KEY_REVOKED,),
        },
    }
    for scope, whose in ((OWN, "own"), (EVERYWHERE, "all")):
        for name, changes in events.items():
            audit_query = AuditQuery(scope=scope, **changes)
            yield f"events of {whose}: {name}", List(partial(_events, audit_query), _by_seq)
    users: dict[str, dict[str, Any]] = {
        "nothing": {},
        "deleted too": {"show_deleted": True},
        "role": {"roles": (Role.VALIDATOR,)},
        "no role": {"roles": (Role.ADMIN,)},
        "no type": {"types": (UserType.SERVICE_ACCOUNT,)},
        "address": {"email_contains": "user7@"},
        "no address": {"email_contains": "none"},
    }
    for name, changes in users.items():
        yield f"users: {name}", List(partial(_users, UserQuery(scope=OWN, **changes)), by_time)
    for name in ("", "none"):
        query = AccountQuery(scope=EVERYWHERE, name_contains=name)
        yield f"accounts: {name or 'nothing'}", List(partial(_accounts, query), by_time)


def _by_seq(event: Any) -> SortKey:
    return event.time, event.seq


def _events(query: AuditQuery, reader: Reader, page: Page) -> Found[Any]:
    return reader.list_audit_events(query, page)


def _users(query: UserQuery, reader: Reader, page: Page) -> Found[Any]:
    return reader.list_users(query, page)


def _accounts(query: AccountQuery, reader: Reader, page: Page) -> Found[Any]:
    return reader.list_accounts(query, page)


LISTS = dict([*key_lists(), *other_lists()])


def store_of_rows(path: Path, rows: int, connections: Connections) -> SqliteStore:
    """Make a store with so many keys, events, users and accounts."""
    store = SqliteStore.create(path, connect=connections)
    fill(store)
    connection = dbapi.connect(str(path), isolation_level=None)
    fill_with_rows(connection, rows, account_id=OWN.only, owner_id=sample_id("user"), now=START)
    connection.close()
    return store


@pytest.fixture(scope="module")
def connections() -> Connections:
    """The connections of the store; the first reads."""
    return Connections()


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, connections: Connections
) -> Iterator[SqliteStore]:
    """A store with ROWS of everything."""
    made = store_of_rows(tmp_path_factory.mktemp("lists") / "store.db", ROWS, connections)
    yield made
    made.close()


def steps_of(store: SqliteStore, connections: Connections, read: Read, page: Page) -> int:
    """Return how many steps of SQLite's machine a page takes, to the hundred."""
    with store.read() as reader:
        connection = connections.opened[-1]
        steps = 0

        def count() -> bool:
            nonlocal steps
            steps += 100
            return False

        connection.set_progress_handler(count, 100)
        try:
            read(reader, page)
        finally:
            connection.set_progress_handler(None, 0)
    return steps


@pytest.mark.parametrize("name", LISTS)
def test_a_page_takes_a_bounded_number_of_steps(
    store: SqliteStore, connections: Connections, name: str
) -> None:
    """Whatever is filtered by, in whatever order, with a hit or none, on the first page or not."""
    page = Page(limit=51, looked_at=LOOKED_AT)
    assert steps_of(store, connections, LISTS[name].read, page) < MOST_STEPS
    with store.read() as reader:
        half = LISTS[name].read(reader, Page(limit=1000, looked_at=ROWS // 2))
    after = LISTS[name].position(half.items[-1]) if half.items else half.rest
    page = replace(page, after=after)
    assert steps_of(store, connections, LISTS[name].read, page) < MOST_STEPS


def test_more_steps_are_counted(store: SqliteStore, connections: Connections) -> None:
    """A walk through all rows is noticed."""
    read = LISTS["keys: no name by create_time"].read
    page = Page(limit=51, looked_at=ROWS * 2)
    assert steps_of(store, connections, read, page) > MOST_STEPS


@pytest.mark.slow
def test_every_list_answers_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """With a million rows of everything: processor time, the median of five."""
    store = store_of_rows(tmp_path / "store.db", VERY_MANY, Connections())
    slow = {}
    for name, (read, _) in LISTS.items():
        took = []
        for _ in range(5):
            began = time.thread_time()
            with store.read() as reader:
                read(reader, Page(limit=51))
            took.append((time.thread_time() - began) * 1000)
        if statistics.median(took) > MOST_MS:
            slow[name] = statistics.median(took)
    store.close()
    assert slow == {}
