"""YugabyteDB: what is done otherwise there, through what does to PostgreSQL as it does.

No YugabyteDB runs here. `postgres_proxy` says that it is one, knows its words, and refuses what it
does not have. The contract of a store is tested through it too: that is `postgres-hostile`.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import postgres_server
from backends import open_postgres
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import StoreUnusableError
from postgres_proxy import FAILING_READ, YUGABYTE, Proxy
from samples import fill

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from keybearer_service.storage import postgres_yugabyte as yugabyte
from keybearer_service.storage.postgres import PostgresStore
from keybearer_service.storage.postgres_connections import Connector
from keybearer_service.storage.postgres_schema import STEPS, migrate

BY_HASH = {"api_keys": "id", "key_usage": "key_id", "users": "id"}
ISOLATION = "yb_get_effective_transaction_isolation_level()"
COLOCATED = "yb_is_database_colocated()"


@pytest.fixture
def empty_url() -> Iterator[DatabaseUrl]:
    """A database without a schema."""
    made = postgres_server.new_database(is_empty=True)
    postgres_server.execute(made.text, FAILING_READ)
    yield made
    postgres_server.drop_database(made)


@contextmanager
def as_yugabyte(url: DatabaseUrl, **answers: str) -> Iterator[DatabaseUrl]:
    """Put the proxy in front of a database."""
    with Proxy(url, hostile=random.Random(1), yugabyte={**YUGABYTE, **answers}) as proxy:
        yield proxy.url


def every_statement() -> list[str]:
    """Return what is executed there for the whole schema."""
    return [
        statement
        for step in STEPS
        for statement in yugabyte.statements(step.on_yugabyte or step.statements)
    ]


@pytest.mark.parametrize("table", sorted(BY_HASH))
def test_what_is_read_by_its_id_is_spread_by_a_hash(table: str) -> None:
    """In a table of its own, and so that many servers share the reading."""
    [made] = [one for one in every_statement() if one.startswith(_making(table))]
    assert f"PRIMARY KEY ({BY_HASH[table]} HASH)" in made
    assert made.count("PRIMARY KEY") == 1
    assert made.endswith("WITH (colocation = false)")


@pytest.mark.parametrize("table", ["commits", "head", "installation", "outcomes", "peppers"])
def test_what_every_write_touches_lies_together(table: str) -> None:
    """In the tablet that the small tables share."""
    [made] = [one for one in every_statement() if one.startswith(_making(table))]
    assert "colocation" not in made
    assert "HASH" not in made


def _making(table: str) -> str:
    return f"CREATE TABLE IF NOT EXISTS {table} ("


def test_every_other_order_is_that_of_the_keys() -> None:
    """Lists are read in the order of an index, so none is spread by default."""
    assert all(
        next(yugabyte.statements(step.statements)) == "SET yb_use_hash_splitting_by_default = off"
        for step in STEPS
    )


def test_every_statement_may_be_executed_twice(empty_url: DatabaseUrl) -> None:
    """A step that failed in its middle begins anew, with what the first try has left."""
    with as_yugabyte(empty_url) as url:
        connection = Connector(url, limit_s=None, lock_limit_s=2).open()
        for _ in range(2):
            migrate(connection, STEPS)
            connection.execute("UPDATE schema_version SET version = 0")
        connection.close()
        assert PostgresStore.migrate(url) == [step.name for step in STEPS]
        store = open_postgres(url)
        fill(store)
        store.close()


@pytest.mark.parametrize(
    ("asked", "answer", "text"),
    [
        (ISOLATION, "'repeatable read'::text", "yb_enable_read_committed_isolation=true"),
        (COLOCATED, "false", "WITH COLOCATION = true"),
    ],
)
def test_a_database_that_cannot_keep_the_promises_is_refused(
    empty_url: DatabaseUrl, asked: str, answer: str, text: str
) -> None:
    """By `init` and `migrate`, and by `serve` when it was changed meanwhile; the text says how."""
    with (
        as_yugabyte(empty_url, **{asked: answer}) as url,
        pytest.raises(StoreUnusableError, match=text),
    ):
        PostgresStore.migrate(url)
    with as_yugabyte(empty_url) as url:
        PostgresStore.migrate(url)
    with (
        as_yugabyte(empty_url, **{asked: answer}) as url,
        pytest.raises(StoreUnusableError, match=text),
    ):
        open_postgres(url)


def test_nothing_is_read_from_followers(empty_url: DatabaseUrl) -> None:
    """Whatever the role or the database says: a connection sets it, and reads it back."""
    postgres_server.execute(
        empty_url.text,
        f"ALTER DATABASE {empty_url.text.partition('?')[0].rpartition('/')[2]}"
        " SET keybearer.yb_read_from_followers = on",
    )
    with as_yugabyte(empty_url) as url:
        connection = Connector(url, limit_s=2, lock_limit_s=2).open()
        [(setting,)] = connection.execute("SHOW yb_read_from_followers").fetchall()
        connection.close()
    assert setting == "off"


def test_a_connection_that_reads_from_followers_is_refused(empty_url: DatabaseUrl) -> None:
    """As behind what takes the setting and does not pass it on."""
    followers = {"SET yb_read_from_followers = off;": "SET yb_read_from_followers = on;"}
    with (
        as_yugabyte(empty_url, **followers) as url,
        pytest.raises(StoreUnusableError, match="yb_read_from_followers"),
    ):
        Connector(url, limit_s=2, lock_limit_s=2).open()
