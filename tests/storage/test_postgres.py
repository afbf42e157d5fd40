"""What holds for the store on PostgreSQL alone: its schema, connections, commits cut off."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import postgres_server
from backends import dump_postgres, open_postgres
from fakes import START
from keybearer_service.domain.model import SubjectKind, Use
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import (
    CommitFailedError,
    Store,
    StoreError,
    StoreLockedError,
    StoreUnusableError,
    migrations,
)
from postgres_pooler import Pooler
from postgres_proxy import Cut, Proxy
from samples import add_keys, fill, sample_id, sample_key

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from keybearer_service.storage import postgres_schema, rows
from keybearer_service.storage.postgres import PostgresStore
from keybearer_service.storage.postgres_connections import Connector
from keybearer_service.storage.postgres_schema import Step, assert_current, migrate
from keybearer_service.storage.postgres_session import KEYS, numbered

KEY = sample_id("key")
ACCT = sample_id("acct")


@pytest.fixture
def empty_url() -> Iterator[DatabaseUrl]:
    """A database without a schema."""
    made = postgres_server.new_database(is_empty=True)
    yield made
    postgres_server.drop_database(made)


@contextmanager
def opened(url: DatabaseUrl, **options: Any) -> Iterator[Store]:
    """Open a store, and close it after the block."""
    store = open_postgres(url, **options)
    try:
        yield store
    finally:
        store.close()


# --- the schema -----------------------------------------------------------------------------------


def test_both_backends_have_the_same_steps() -> None:
    """In the same order, so that a database of either is of a version that both know."""
    names = [step.name for step in postgres_schema.STEPS]
    assert names == [one.name for one in migrations.migrations._migrations]  # noqa: SLF001 - no public list


@pytest.mark.parametrize("table", sorted(rows.COVERED))
def test_the_schema_has_the_columns_that_rows_name(url: DatabaseUrl, table: str) -> None:
    """What is written and read by name is there, and nothing is required that nobody writes."""
    with opened(url) as store:
        fill(store)
    [row] = dump_postgres(url)[table]
    assert set(rows.COVERED[table]) <= set(row)


def connection_to(url: DatabaseUrl) -> Any:
    """Open a connection as the store does."""
    return Connector(url, limit_s=None, lock_limit_s=2).open()


def test_migrating_twice_does_everything_once(empty_url: DatabaseUrl) -> None:
    """The second run finds nothing to do, and an open store is not disturbed."""
    done = PostgresStore.migrate(empty_url)
    assert done == [step.name for step in postgres_schema.STEPS]
    with opened(empty_url) as store:
        assert PostgresStore.migrate(empty_url) == []
        fill(store)


def at_once(work: Callable[[], None], count: int = 4) -> None:
    """Run the same on several threads that begin together; raise what one of them raised."""
    start = threading.Barrier(count)

    def run() -> None:
        start.wait(30)
        work()

    with ThreadPoolExecutor(count) as threads:
        for ran in [threads.submit(run) for _ in range(count)]:
            ran.result()


def test_several_may_migrate_at_once(empty_url: DatabaseUrl) -> None:
    """Each step is done by one of them."""
    done: list[str] = []
    at_once(lambda: done.extend(PostgresStore.migrate(empty_url)))
    assert sorted(done) == sorted(step.name for step in postgres_schema.STEPS)


def test_several_may_make_the_first_tables_at_once(empty_url: DatabaseUrl) -> None:
    """PostgreSQL refuses the same name in several ways, by how far the other is."""

    def make() -> None:
        connection = connection_to(empty_url)
        migrate(connection, ())
        connection.close()

    for _ in range(40):
        at_once(make)
        postgres_server.execute(empty_url.text, "DROP TABLE schema_version, schema_steps")


def test_a_database_without_a_schema_is_refused(empty_url: DatabaseUrl) -> None:
    """And the refusal says what makes one."""
    with pytest.raises(StoreUnusableError, match="keybearer-server init"):
        open_postgres(empty_url)


def test_a_database_of_something_else_is_left_alone(empty_url: DatabaseUrl) -> None:
    """Nothing is created among foreign tables."""
    postgres_server.execute(empty_url.text, "CREATE TABLE orders (id int)")
    with pytest.raises(StoreUnusableError, match="something else"):
        PostgresStore.migrate(empty_url)


WIDER = Step("m900_wider", 'ALTER TABLE api_keys ADD COLUMN later text COLLATE "C"')


def test_an_older_schema_is_refused(url: DatabaseUrl) -> None:
    """A program does not run before its columns are there."""
    connection = connection_to(url)
    with pytest.raises(StoreUnusableError, match="1 steps behind"):
        assert_current(connection, (*postgres_schema.STEPS, WIDER))
    connection.close()


def test_a_wider_schema_is_no_harm(url: DatabaseUrl) -> None:
    """The program before the step goes on, and so does one that starts now."""
    connection = connection_to(url)
    with opened(url) as store:
        fill(store)
        migrate(connection, (*postgres_schema.STEPS, WIDER))
        add_keys(store, sample_key("after"))
    with opened(url) as store:
        assert store.lookup(sample_id("after"))[0] is not None
    connection.close()


def test_a_narrower_schema_needs_its_program(url: DatabaseUrl) -> None:
    """A step that older programs do not survive refuses them, to open and to migrate."""
    steps = (*postgres_schema.STEPS, WIDER)
    number = len(steps)
    narrower = Step("m901_narrower", "ALTER TABLE api_keys DROP COLUMN later", narrows_for=number)
    connection = connection_to(url)
    migrate(connection, (*steps, narrower))
    assert_current(connection, steps)
    with pytest.raises(StoreUnusableError, match="newer version"):
        assert_current(connection)
    with pytest.raises(StoreUnusableError, match="newer version"):
        migrate(connection)
    connection.close()


# --- connections ----------------------------------------------------------------------------------


def alter(url: DatabaseUrl, setting: str) -> None:
    """Set a default for whoever connects to the database."""
    name = url.text.partition("?")[0].rpartition("/")[2]
    postgres_server.execute(url.text, f"ALTER DATABASE {name} SET {setting}")


def test_every_connection_waits_for_the_disk(url: DatabaseUrl) -> None:
    """A database that is set to lose commits is overruled; a stronger setting stays."""
    for default, kept in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        alter(url, f"synchronous_commit = {default}")
        connection = connection_to(url)
        assert connection.execute("SHOW synchronous_commit").fetchone() == (kept,)
        connection.close()


def test_a_statement_has_a_limit(url: DatabaseUrl) -> None:
    """On the server, whatever the database was set to."""
    alter(url, "statement_timeout = 0")
    connection = Connector(url, limit_s=1.5, lock_limit_s=0.5).open()
    shown = [
        connection.execute(f"SHOW {name}").fetchone()
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    ]
    connection.close()
    assert shown == [("1500ms",), ("500ms",), ("10s",)]


def test_the_statements_of_the_hot_path_are_planned_once(url: DatabaseUrl) -> None:
    """Planning a lookup of a few keys costs several times the lookup; lists are planned anew."""
    for plans_once, mode in ((True, "force_generic_plan"), (False, "auto")):
        connection = Connector(url, limit_s=2, lock_limit_s=2, plans_once=plans_once).open()
        assert connection.execute("SHOW plan_cache_mode").fetchone() == (mode,)
        connection.close()


def test_a_connection_without_limits_is_refused(url: DatabaseUrl) -> None:
    """As a pooler makes them, that drops the options of a start."""
    proxy = Proxy(url, drops_options=True)
    with proxy, pytest.raises(StoreUnusableError, match="session mode"):
        open_postgres(proxy.url)


def test_a_pooler_that_shares_sessions_is_refused(url: DatabaseUrl) -> None:
    """Its limits may be those of the database; what a connection listens for is lost there."""
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        alter(url, f"{limit} = '2s'")
    with Pooler(url) as pooler, opened(pooler.url) as store:
        assert isinstance(store, PostgresStore)
        fill(store)
        with pytest.raises(StoreUnusableError, match="session mode"):
            store.join("node", lambda _pepper: False)


def test_a_database_that_would_lose_commits_is_refused(
    url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`full_page_writes = off` survives no loss of power."""
    running = postgres_server.server()
    if not isinstance(running, postgres_server.Server):
        pytest.skip("the settings of a named server are not ours to change")
    postgres_server.execute(
        running.url("postgres"),
        "ALTER SYSTEM SET full_page_writes = off",
        "SELECT pg_reload_conf()",
    )
    try:
        with pytest.raises(StoreUnusableError, match="full_page_writes"):
            _until_raised(lambda: open_postgres(url))
    finally:
        postgres_server.execute(
            running.url("postgres"),
            "ALTER SYSTEM RESET full_page_writes",
            "SELECT pg_reload_conf()",
        )


def _until_raised(work: Callable[[], Store]) -> None:
    # The server reads its settings a moment after it was told to.
    for _ in range(1000):
        work().close()


def test_a_password_comes_from_its_file(url: DatabaseUrl, tmp_path: Path) -> None:
    """It is read when a connection is opened, and a missing file is an outage, not an end."""
    file = tmp_path / "password"
    with_file = DatabaseUrl(text=url.text, password_file=file)
    with pytest.raises(StoreLockedError, match="database_password_file"):
        open_postgres(with_file)
    file.write_text("secret\n")
    assert with_file.secret() == "secret"
    with opened(with_file):
        pass


REMOTE = {
    "postgresql://u@db.example.com/k?sslmode=require": "sslmode=verify-full",
    "postgresql://u@127.0.0.1,db.example.com/k?sslmode=disable": "sslmode=verify-full",
    "postgresql://u@localhost/k?hostaddr=192.0.2.1&sslmode=disable": "sslmode=verify-full",
    "postgresql:///k?host=/run/postgresql,db.example.com&sslmode=prefer": "sslmode=verify-full",
}


@pytest.mark.parametrize("text", sorted(REMOTE))
def test_the_way_to_another_machine_proves_who_answers(text: str) -> None:
    """Nothing weaker than verify-full is taken without the setting that says so."""
    with pytest.raises(StoreUnusableError, match=REMOTE[text]):
        Connector(DatabaseUrl(text=text), limit_s=2, lock_limit_s=2)
    Connector(DatabaseUrl(text=text, is_insecure=True), limit_s=2, lock_limit_s=2)


def test_an_unreachable_database_is_an_outage() -> None:
    """Not a verdict, and its text names no secret."""
    with pytest.raises(StoreLockedError):
        open_postgres(DatabaseUrl(text="postgresql://u@/k?host=/nowhere"))


def test_a_connection_that_was_lost_while_idle_costs_nobody_a_call(url: DatabaseUrl) -> None:
    """The next read and the next write open another one."""
    with Proxy(url) as proxy, opened(proxy.url) as store:
        fill(store)
        proxy.cut_all()
        assert store.lookup(KEY)[0] is not None
        proxy.cut_all()
        add_keys(store, sample_key("next"))


def test_a_frozen_server_is_an_outage_in_time(url: DatabaseUrl) -> None:
    """It keeps no limits itself, so the socket is watched."""
    with Proxy(url) as proxy, opened(proxy.url, limit_s=0.2, busy_timeout_s=0.2) as store:
        fill(store)
        proxy.freeze()
        with pytest.raises(StoreLockedError):
            store.lookup(KEY)
        with pytest.raises(StoreLockedError):
            add_keys(store, sample_key("never"))
        proxy.thaw()
        assert store.lookup(KEY)[0] is not None


# --- commits --------------------------------------------------------------------------------------

CUTS = [Cut.BEFORE, Cut.AFTER]


@pytest.mark.parametrize("cut", CUTS)
def test_a_commit_whose_answer_is_lost_is_found_out(url: DatabaseUrl, cut: Cut) -> None:
    """Cut off before the server had it, it is not done; cut off before its answer, it is."""
    with Proxy(url) as proxy, opened(proxy.url) as store, opened(url) as witness:
        fill(store)
        for number in range(10):
            name = f"cut{number}"
            proxy.cut_at_commit(cut)
            if cut is Cut.AFTER:
                add_keys(store, sample_key(name))
            else:
                with pytest.raises(StoreLockedError):
                    add_keys(store, sample_key(name))
            found = witness.lookup(sample_id(name))[0] is not None
            assert found == (cut is Cut.AFTER)


def test_an_outcome_that_cannot_be_found_out_is_unknown(url: DatabaseUrl) -> None:
    """The process goes on: on a database that many share, an outage must not end them all."""
    with Proxy(url) as proxy, opened(proxy.url) as store:
        fill(store)
        proxy.cut_at_commit(Cut.AFTER, then_refuse=True)
        with pytest.raises(CommitFailedError) as caught:
            add_keys(store, sample_key("unknown"))
        assert not caught.value.is_fatal
        proxy.accept_again()
        add_keys(store, sample_key("next"))


def test_a_commit_that_is_answered_with_a_rollback_is_none(url: DatabaseUrl) -> None:
    """The server says ROLLBACK to a COMMIT without an error; the tag is looked at."""
    with Proxy(url) as proxy, opened(proxy.url) as store:
        fill(store)
        proxy.answer_commits_with(b"ROLLBACK")
        with pytest.raises(StoreError):
            add_keys(store, sample_key("no"))


def test_a_write_is_announced_to_other_nodes(url: DatabaseUrl) -> None:
    """Whoever waits returns long before the timeout, also for a commit of another node."""
    with opened(url) as store, opened(url) as other:
        fill(store)
        other.wait(0)
        woken = threading.Event()

        def watch() -> None:
            while not other.changes_since(0, 1).changes:
                other.wait(60)
            woken.set()

        thread = threading.Thread(target=watch)
        thread.start()
        with store.write() as tx:
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
        assert woken.wait(30)
        thread.join()


def test_uses_wait_for_no_change_of_the_key(url: DatabaseUrl) -> None:
    """A key that is being changed is counted meanwhile."""
    with opened(url) as store, opened(url, busy_timeout_s=0.1) as counting:
        filling = fill(store)
        with store.write() as tx:
            tx.update_api_key(filling.key)
            counting.add_uses([Use(KEY, 1, START, 3)])


def test_places_are_numbered_as_sqlite_numbers_them() -> None:
    """A bare one counts on from the highest before it."""
    assert numbered("a = ? AND b = ?") == "a = $1 AND b = $2"
    assert numbered("a = ?1 OR b = ?1 AND c = ?") == "a = $1 OR b = $1 AND c = $2"


def test_a_lookup_reads_no_table_from_end_to_end(url: DatabaseUrl) -> None:
    """The join with the usage of a key is one more step by an index."""
    with opened(url) as store:
        fill(store)
    connection = connection_to(url)
    connection.execute("SET enable_seqscan = off")
    plan = "\n".join(
        row[0]
        for row in connection.execute(f"EXPLAIN SELECT * FROM {KEYS} WHERE k.id = 'x'").fetchall()  # noqa: S608
    )
    connection.close()
    assert "Seq Scan" not in plan, plan
