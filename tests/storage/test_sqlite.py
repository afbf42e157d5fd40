"""What holds for SQLite alone: how files are opened, shared, filled up and damaged."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends import Connections, dump_database
from fakes import START
from keybearer_service.domain.model import SubjectKind, Use
from keybearer_service.storage import (
    CommitFailedError,
    Departure,
    FileStore,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnusableError,
    dbapi,
)
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.storage.sqlite_errors import store_error
from samples import EVERYWHERE, Filling, add_keys, fill, sample_id, sample_key, sample_secret

KEY = sample_id("key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture
def connections() -> Connections:
    """The connections of `store`."""
    return Connections()


@pytest.fixture
def store(path: Path, connections: Connections) -> Iterator[SqliteStore]:
    """An open database with one account, user and key."""
    opened = SqliteStore.create(path, connect=connections)
    fill(opened)
    yield opened
    opened.close()


def pragma(connection: Any, name: str) -> Any:
    """Ask a connection how it is set."""
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


# --- how it is opened -----------------------------------------------------------------------------

SETTINGS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
    "secure_delete": 1,
    "trusted_schema": 0,
    "application_id": 0x6B627231,
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_connection_is_set_up_alike(
    store: SqliteStore, connections: Connections, name: str
) -> None:
    """The writer's and the readers' connections have the settings that durability rests on."""
    store.lookup(KEY)
    assert len(connections.opened) == 2
    assert [pragma(one, name) for one in connections.opened] == [SETTINGS[name]] * 2


class _HalfDeafConnection(dbapi.Connection):  # type: ignore[misc]  # the driver has no types
    """Takes every statement but the one that asks for synchronous=FULL."""

    def execute(self, sql: str, *values: Any) -> Any:
        if sql == "PRAGMA synchronous = FULL":
            sql = "PRAGMA synchronous = NORMAL"
        return super().execute(sql, *values)


def test_a_driver_that_does_not_sync_every_commit_is_refused(path: Path) -> None:
    """With less than FULL acknowledged writes get lost, so the store does not open."""
    with pytest.raises(StoreUnusableError, match="synchronous"):
        SqliteStore.create(path, connect=Connections(_HalfDeafConnection))


def test_every_table_is_strict(store: SqliteStore, connections: Connections) -> None:
    """No column takes a value of another type."""
    loose = connections.writer.execute(
        "SELECT name FROM pragma_table_list"
        " WHERE schema = 'main' AND type = 'table' AND NOT strict"
        " AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '\\_%' ESCAPE '\\'"
    ).fetchall()
    assert loose == []


def test_readers_cannot_write(store: SqliteStore, connections: Connections) -> None:
    """A reader's connection refuses every change."""
    store.lookup(KEY)
    with pytest.raises(dbapi.OperationalError, match=r"readonly|read-only|attempt to write"):
        connections.opened[1].execute("DELETE FROM api_keys")


@pytest.mark.parametrize("name", [b"of a key", b"no UTF-8 \xff"])
def test_a_lookup_leaves_no_snapshot_open(
    store: SqliteStore, connections: Connections, path: Path, name: bytes
) -> None:
    """Whether it answers or fails, an idle reader is in the way of no checkpoint."""
    connections.writer.execute("UPDATE api_keys SET name = CAST(? AS TEXT)", (name,))
    with suppress(StoreError):
        store.lookup(KEY)
    connections.writer.execute("UPDATE api_keys SET name = 'another'")
    assert connections.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert Path(f"{path}-wal").stat().st_size == 0


def test_the_connection_of_a_thread_ends_with_it(
    store: SqliteStore, connections: Connections
) -> None:
    """Threads come and go; only those of living ones hold files open."""
    for _ in range(5):
        thread = threading.Thread(target=store.lookup, args=(KEY,))
        thread.start()
        thread.join()
    of_threads = connections.opened[1:]
    assert len(of_threads) == 5
    for one in of_threads:
        with pytest.raises(dbapi.ProgrammingError):
            one.execute("SELECT 1")
    assert store.lookup(KEY)[0] is not None


def test_a_new_database_is_for_its_user_alone(store: SqliteStore, path: Path) -> None:
    """The file and what SQLite puts beside it are closed to everybody else."""
    beside = sorted(path.parent.iterdir())
    assert len(beside) == 3
    assert {one.stat().st_mode & 0o777 for one in beside} == {0o600}


def test_creating_over_a_file_is_refused(store: SqliteStore, path: Path) -> None:
    """An existing database is never begun afresh."""
    with pytest.raises(StoreUnusableError, match="exists already"):
        SqliteStore.create(path)


def test_a_file_that_is_not_there_is_not_made(path: Path) -> None:
    """Opening never creates an empty database under a mistyped name."""
    with pytest.raises(StoreError):
        SqliteStore(path)
    assert not path.exists()


def _as_something_else(connection: Any) -> None:
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.execute("PRAGMA application_id = 1234")


def _as_unmarked(connection: Any) -> None:
    connection.execute("CREATE TABLE songs (title TEXT)")


@pytest.mark.parametrize("make", [_as_something_else, _as_unmarked])
def test_a_database_of_something_else_is_refused_and_left_alone(
    path: Path, make: Callable[[Any], None]
) -> None:
    """Neither the marker nor the tables are touched."""
    connection = dbapi.connect(str(path), isolation_level=None)
    make(connection)
    connection.close()
    with pytest.raises(StoreUnusableError, match="something else"):
        SqliteStore(path)
    connection = dbapi.connect(str(path))
    tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    connection.close()
    assert tables == [("songs",)]


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """The error names the file and not a place in the code."""
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnusableError, match=path.name):
        SqliteStore(path)


def test_a_newer_schema_is_refused(
    store: SqliteStore, connections: Connections, path: Path
) -> None:
    """An older version does not write into what it does not understand, and says what would."""
    connections.writer.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('keybearer', 'm999_from_the_future', '')"
    )
    with pytest.raises(StoreUnusableError, match=r"newer version.*m999_from_the_future"):
        SqliteStore(path)


def _damage(path: Path, first_page: int) -> None:
    content = bytearray(path.read_bytes())
    for page in range(4096 * first_page, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)


def test_a_damaged_page_is_no_verdict(store: SqliteStore, path: Path) -> None:
    """Opening a database whose schema cannot be read raises a StoreError."""
    store.close()
    _damage(path, 1)
    with pytest.raises(StoreError):
        SqliteStore(path).lookup(KEY)


def test_damage_that_is_met_later_is_no_verdict_either(
    store: SqliteStore, connections: Connections, path: Path
) -> None:
    """Reading a damaged row raises a StoreError, and `check_file` finds the damage."""
    root = connections.writer.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'api_keys'"
    ).fetchone()[0]
    store.close()
    content = bytearray(path.read_bytes())
    content[4096 * (root - 1) : 4096 * (root - 1) + 64] = b"\xff" * 64
    path.write_bytes(content)
    damaged = SqliteStore(path)
    for _ in range(2):
        with pytest.raises(StoreUnusableError, match="damaged"):
            damaged.lookup(KEY)
        with pytest.raises(StoreUnusableError, match="damaged"):
            damaged.lookup_many([KEY])
        assert list(damaged.check_file()) != []
    damaged.close()


def test_the_check_names_the_table_that_is_damaged(store: SqliteStore, path: Path) -> None:
    """Whichever it is, and also when an index of it is."""
    connection = dbapi.connect(str(path))
    pages = connection.execute(
        "SELECT name, tbl_name, rootpage FROM sqlite_schema WHERE rootpage > 0"
    ).fetchall()
    connection.close()
    store.close()
    whole = path.read_bytes()
    unnamed = []
    for name, table, page in pages:
        path.write_bytes(whole[: 4096 * (page - 1)] + b"\xa5" * 4096 + whole[4096 * page :])
        try:
            damaged = SqliteStore(path)
        except StoreUnusableError:
            assert table == "_sqlite_migrations"  # what is read to open it
            continue
        if not any(finding.startswith(f"{table}: ") for finding in damaged.check_file()):
            unnamed.append(name)
        damaged.close()
    assert unnamed == []


def test_damage_is_remembered(store: SqliteStore, connections: Connections, path: Path) -> None:
    """A store that has met it says so, whatever else of it can be read."""
    assert store.damage == ""
    connections.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    page = connections.writer.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'users'"
    ).fetchone()[0]
    content[4096 * (page - 1) : 4096 * page] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError):
        store.lookup(KEY)
    assert store.lookup(sample_id("nobody"))[0] is None
    assert "SQLITE_CORRUPT" in store.damage


@pytest.mark.parametrize("table", ["users", "accounts"])
def test_a_key_without_its_owner_or_account_is_damage(
    store: SqliteStore, connections: Connections, table: str
) -> None:
    """What can only be missing because a page was lost is no verdict."""
    connections.writer.execute("PRAGMA foreign_keys = OFF")
    connections.writer.execute(f"DELETE FROM {table}")  # noqa: S608 - our names
    with pytest.raises(StoreDamagedError):
        store.lookup(KEY)
    with pytest.raises(StoreDamagedError):
        store.lookup_many([KEY])


def test_a_row_that_was_never_written_like_this_is_damage(
    store: SqliteStore, connections: Connections
) -> None:
    """Numbers and texts that no version has written are no bug of the reader."""
    connections.writer.execute("UPDATE users SET role = 77")
    with store.read() as reader, pytest.raises(StoreDamagedError):
        reader.user(EVERYWHERE, sample_id("user"))


def _error(kind: str, name: str, text: str = "text") -> Any:
    error = getattr(dbapi, kind)(text)
    error.sqlite_errorname = name
    return error


TROUBLE: dict[str, tuple[Any, type[Exception]]] = {
    "damage": (_error("DatabaseError", "SQLITE_CORRUPT_INDEX"), StoreDamagedError),
    "no database any more": (_error("DatabaseError", "SQLITE_NOTADB"), StoreDamagedError),
    "a lost table": (
        _error("OperationalError", "SQLITE_ERROR", "no such table: users"),
        StoreDamagedError,
    ),
    "a full disk": (_error("OperationalError", "SQLITE_FULL"), StoreFullError),
    "read-only": (_error("OperationalError", "SQLITE_READONLY_DBMOVED"), StoreReadOnlyError),
    "a disk that fails": (_error("OperationalError", "SQLITE_IOERR_READ"), StoreLockedError),
    "no memory": (_error("DatabaseError", "SQLITE_NOMEM"), StoreLockedError),
    "what nobody knows": (_error("DatabaseError", "SQLITE_PROTOCOL"), StoreLockedError),
    "a broken statement": (
        _error("OperationalError", "SQLITE_ERROR", 'near "SELEC": syntax error'),
        dbapi.OperationalError,
    ),
    "a wrong number of values": (_error("ProgrammingError", "unknown"), dbapi.ProgrammingError),
}


@pytest.mark.parametrize("case", sorted(TROUBLE))
def test_everything_but_a_broken_statement_is_trouble_of_the_store(case: str) -> None:
    """Whatever the driver calls it."""
    error, expected = TROUBLE[case]
    assert type(store_error(error)) is expected


def test_a_whole_file_has_no_findings(store: SqliteStore) -> None:
    """`check_file` is silent when all is well."""
    assert list(store.check_file()) == []


def test_it_is_a_file_store(store: SqliteStore, connections: Connections, path: Path) -> None:
    """It has a size, its log included, and the number that marks its file."""
    assert isinstance(store, FileStore)
    beside = path.with_name(f"{path.name}-wal")
    assert store.size_bytes == path.stat().st_size + beside.stat().st_size > 0
    assert store.application_id == pragma(connections.writer, "application_id")


def test_a_backup_does_not_start_over_when_others_write(store: SqliteStore, path: Path) -> None:
    """A commit after each of its steps changes nothing of the copy and makes it no longer."""
    _write_much(store, "big")
    with store.read() as reader:
        keys = reader.key_count()
    writer = SqliteStore(path)
    steps = 0

    class Stepwise(dbapi.Connection):  # type: ignore[misc]  # the driver has no types
        def backup(self, target: Any, **_: Any) -> None:
            def write(_status: int, remaining: int, _total: int) -> None:
                nonlocal steps
                steps += 1
                assert steps < 1000, f"{remaining} pages to go"
                add_keys(writer, sample_key(f"during{steps:04}"))

            super().backup(target, pages=1, progress=write)

    copied = SqliteStore(path, connect=Connections(Stepwise))
    copied.backup(path.with_name("copy"))
    copy = SqliteStore(path.with_name("copy"))
    with copy.read() as reader:
        assert reader.key_count() == keys
    assert list(copy.check_file()) == []
    assert steps > 10
    for one in (copy, copied, writer):
        one.close()


def test_a_backup_that_fails_leaves_no_file(store: SqliteStore, path: Path) -> None:
    """What is there under the name of a backup is whole."""

    class Failing(dbapi.Connection):  # type: ignore[misc]  # the driver has no types
        def backup(self, _target: Any, **_: Any) -> None:
            raise dbapi.OperationalError("disk I/O error")

    failing = SqliteStore(path, connect=Connections(Failing))
    with pytest.raises(StoreError):
        failing.backup(path.with_name("copy"))
    failing.close()
    assert not path.with_name("copy").exists()


# --- several processes ----------------------------------------------------------------------------

_OPEN_WHEN_TOLD = """
import sys
from pathlib import Path
from keybearer_service.storage.sqlite import SqliteStore
print("ready", flush=True)
sys.stdin.readline()
SqliteStore(Path(sys.argv[1])).close()
print("opened", flush=True)
"""
PROCESSES = 4


def test_processes_that_start_at_once_migrate_once(path: Path) -> None:
    """On an empty file all of them open, and each step was applied a single time."""
    path.touch()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN_WHEN_TOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    answers = [one.communicate() for one in started]
    assert [(out, err) for out, err in answers] == [("opened\n", "")] * PROCESSES
    connection = dbapi.connect(str(path))
    applied = connection.execute("SELECT name FROM _sqlite_migrations").fetchall()
    connection.close()
    assert len(applied) == len(set(applied)) > 0


def test_a_shared_store_notices_the_commits_of_others(store: SqliteStore, path: Path) -> None:
    """With other servers on the file, the version moves when one of them commits."""
    shared = SqliteStore(path, shared=True)
    try:
        before = shared.caller_version()
        add_keys(store, sample_key("new"))
        moved = shared.caller_version()
        assert moved != before
        add_keys(shared, sample_key("own"))
        assert shared.caller_version() != moved
    finally:
        shared.close()


def test_a_write_waits_no_longer_than_the_busy_timeout(store: SqliteStore, path: Path) -> None:
    """Another process that holds the store makes a write fail as locked, and changes nothing."""
    waiting = SqliteStore(path, busy_timeout_s=0.05)
    holder = dbapi.connect(str(path), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreLockedError):
            add_keys(waiting, sample_key("late"))
        assert waiting.lookup(KEY)[0] is not None
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    add_keys(waiting, sample_key("later"))
    waiting.close()
    assert store.lookup(sample_id("late"))[0] is None


def test_a_write_of_another_thread_is_waited_for_no_longer_either(
    store: SqliteStore, path: Path
) -> None:
    """A stuck writer makes other writes of its store fail as locked while lookups go on."""
    waiting = SqliteStore(path, busy_timeout_s=0.05)
    caught: list[BaseException] = []

    def write() -> None:
        try:
            add_keys(waiting, sample_key("late"))
        except StoreError as error:
            caught.append(error)

    with waiting.write():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert waiting.lookup(KEY)[0] is not None
    assert [type(one) for one in caught] == [StoreLockedError]
    add_keys(waiting, sample_key("later"))
    waiting.close()


# --- a full disk ----------------------------------------------------------------------------------


def _fill_up(connections: Connections, room: int) -> None:
    pages = pragma(connections.writer, "page_count")
    connections.writer.execute(f"PRAGMA max_page_count = {pages + room}")


def _write_much(store: SqliteStore, name: str) -> None:
    with store.write() as tx:
        for n in range(40):
            tx.insert_api_key(sample_key(f"{name}{n:02}x", description="x" * 900), sample_secret())
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id="", now=START)


def test_a_full_disk_is_told_and_changes_nothing(
    store: SqliteStore, connections: Connections
) -> None:
    """The write is undone as a whole and lookups go on."""
    _fill_up(connections, 4)
    with pytest.raises(StoreFullError):
        _write_much(store, "big")
    record, moment = store.lookup(KEY)
    assert record is not None
    assert moment.revision == 0
    with store.read() as reader:
        assert reader.key_count() == 1


def test_writes_go_on_when_there_is_room_again(
    store: SqliteStore, connections: Connections
) -> None:
    """Nothing has to be restarted after a full disk."""
    _fill_up(connections, 4)
    for _ in range(3):
        with pytest.raises(StoreFullError):
            _write_much(store, "big")
    connections.writer.execute("PRAGMA max_page_count = 4294967294")
    _write_much(store, "big")
    assert store.lookup(KEY)[1].revision == 40
    assert list(store.check()) == []


# --- failures of COMMIT ---------------------------------------------------------------------------


class FaultyConnection(dbapi.Connection):  # type: ignore[misc]  # the driver has no types
    """A connection whose next COMMIT fails when told so, before or after it was carried out."""

    failure: str = ""
    commits_first: bool = False

    def execute(self, sql: str, *values: Any) -> Any:
        if sql == "COMMIT" and self.failure:
            name, self.failure = self.failure, ""
            if self.commits_first:
                super().execute(sql)
            error = dbapi.OperationalError(name)
            error.sqlite_errorname = name
            raise error
        return super().execute(sql, *values)


@pytest.fixture
def faulty_connections() -> Connections:
    """The connections of `faulty`."""
    return Connections(FaultyConnection)


@pytest.fixture
def faulty(path: Path, faulty_connections: Connections) -> Iterator[SqliteStore]:
    """A store whose connections are faulty ones."""
    opened = SqliteStore.create(path, connect=faulty_connections)
    fill(opened)
    yield opened
    opened.close()


def _fail_next_commit(
    connections: Connections, failure: str, *, commits_first: bool = False
) -> None:
    writer = connections.writer
    assert isinstance(writer, FaultyConnection)
    writer.failure, writer.commits_first = failure, commits_first


FAILURES = ["SQLITE_IOERR_FSYNC", "SQLITE_IOERR_WRITE", "SQLITE_BUSY", "SQLITE_CORRUPT"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("commits_first", [False, True])
def test_a_commit_that_fails_has_an_unknown_outcome(
    faulty: SqliteStore, faulty_connections: Connections, failure: str, *, commits_first: bool
) -> None:
    """Whatever the reason, if it is not a full disk nobody may say that nothing changed."""
    _fail_next_commit(faulty_connections, failure, commits_first=commits_first)
    with pytest.raises(CommitFailedError) as caught:
        add_keys(faulty, sample_key("maybe"))
    assert caught.value.is_fatal


def test_after_a_failed_commit_every_write_has_an_unknown_outcome(
    faulty: SqliteStore, faulty_connections: Connections
) -> None:
    """The process is to end, whoever's commit it was that failed; lookups go on until then."""
    _fail_next_commit(faulty_connections, "SQLITE_IOERR_FSYNC")
    with pytest.raises(CommitFailedError):
        faulty.add_uses([Use(KEY, 1, START, 1)])
    for _ in range(2):
        with pytest.raises(CommitFailedError):
            add_keys(faulty, sample_key("later"))
    assert faulty.lookup(KEY)[0] is not None


def test_a_fresh_process_can_write_after_a_failed_commit(
    faulty: SqliteStore, faulty_connections: Connections, path: Path
) -> None:
    """The failed process leaves nothing that keeps the next one out."""
    _fail_next_commit(faulty_connections, "SQLITE_IOERR_FSYNC")
    with pytest.raises(CommitFailedError):
        add_keys(faulty, sample_key("maybe"))
    faulty.close()
    fresh = SqliteStore(path)
    add_keys(fresh, sample_key("new"))
    assert list(fresh.check()) == []
    fresh.close()


def test_a_commit_on_a_full_disk_changed_nothing(
    faulty: SqliteStore, faulty_connections: Connections
) -> None:
    """With a WAL the pages are written at COMMIT; a full disk there is a sure rollback."""
    _fail_next_commit(faulty_connections, "SQLITE_FULL")
    with pytest.raises(StoreFullError):
        add_keys(faulty, sample_key("never"))
    assert faulty.lookup(sample_id("never"))[0] is None
    add_keys(faulty, sample_key("next"))
    assert faulty.lookup(sample_id("next"))[0] is not None


def test_a_failed_use_is_not_a_failed_verdict(
    faulty: SqliteStore, faulty_connections: Connections
) -> None:
    """Lookups need nothing of the writer."""
    _fail_next_commit(faulty_connections, "SQLITE_FULL")
    with pytest.raises(StoreFullError):
        faulty.add_uses([Use(KEY, 1, START, 1)])
    record, _ = faulty.lookup(KEY)
    assert record is not None
    assert not record.secret_used


def test_filling_is_what_the_tests_believe(store: SqliteStore) -> None:
    """The sample data is there."""
    with store.read() as reader:
        assert reader.account(EVERYWHERE, Filling().account.id) == Filling().account


# --- a file whose installation leaves it ----------------------------------------------------------

MOVING = Departure("move", "postgresql://db.example.com/keybearer")
MOVED = replace(MOVING, is_done=True)


@pytest.mark.parametrize(("departure", "says"), [(MOVING, "--abandon"), (MOVED, "--database")])
def test_a_departed_file_is_refused(
    store: SqliteStore, path: Path, departure: Departure, says: str
) -> None:
    """With where the installation goes and what to do; for the move alone it opens."""
    store.mark(departure)
    with pytest.raises(StoreUnusableError, match=says) as caught:
        SqliteStore(path)
    assert departure.target in str(caught.value)
    moving = SqliteStore(path, may_be_departed=True)
    assert moving.departure == departure
    moving.close()


def test_a_departed_file_is_refused_by_programs_that_know_of_no_departures(
    store: SqliteStore, connections: Connections
) -> None:
    """They look at the number in the header."""
    store.mark(MOVING)
    assert pragma(connections.writer, "application_id") != store.application_id


def test_a_departed_file_takes_no_write_of_one_who_opened_it_before(
    store: SqliteStore, path: Path
) -> None:
    """As a command that waits for its turn: what it wrote would not go along."""
    other = SqliteStore(path)
    other.mark(MOVING)
    with pytest.raises(StoreUnusableError, match="is being moved"):
        add_keys(store, sample_key("late"))
    with pytest.raises(StoreUnusableError, match="is being moved"):
        store.add_uses([Use(KEY, 1, START, 1)])
    assert store.lookup(sample_id("late"))[0] is None
    other.close()


def test_a_file_whose_mark_is_taken_away_is_as_before(store: SqliteStore, path: Path) -> None:
    """Nothing of the mark stays."""
    before = dump_database(path)
    store.mark(MOVING)
    store.mark(None)
    assert store.departure is None
    assert dump_database(path) == before
    SqliteStore(path).close()
    add_keys(store, sample_key("next"))
