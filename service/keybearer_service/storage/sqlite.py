"""The embedded store: SQLite in WAL mode, one writer at a time, a reader for each thread.

`synchronous=FULL`: replaying every crash point of a recorded run loses nothing with it and loses
acknowledged writes with NORMAL, so it is asserted when the store opens.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, cast

from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import Moment, SecretId, Use
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import (
    CLAIM_WAIT_S,
    ClaimFailedError,
    CommitFailedError,
    Departure,
    Foreseen,
    News,
    OnProgress,
    Reader,
    StoreClosedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreUnusableError,
    Waiting,
    Writer,
    dbapi,
    migrations,
    no_progress,
    rows,
    sqlite_departures,
)
from keybearer_service.storage.care import (
    contradictions,
    dangling_row,
    planted_object,
    pruned,
    storable_uses,
)
from keybearer_service.storage.files import new_copy
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.sqlite_connections import (
    WhenThreadEnds,
    begin_soon,
    ending_with,
    prepare,
    roll_back,
)
from keybearer_service.storage.sqlite_errors import (
    FULL,
    LOCKED,
    name_of,
    store_error,
    translated,
)
from keybearer_service.storage.sqlite_session import KEYS, SqliteSession
from keybearer_service.storage.transactions import (
    changes_since,
    lookup_in,
    news_of,
    not_initialised,
    reader_over,
    record_and_moment,
    token_record,
    writer_over,
)

BUSY_TIMEOUT_S: Final = 2.0
"""How long a write waits for another one; afterwards UNAVAILABLE."""
PATIENCE_S: Final = 10.0
"""The same for a command. SQLite looks ten times a second whether a busy service has let go."""
BACKUP_PAGES: Final = 4096
"""What a backup copies in one step, 16 MB; between two steps it can be broken off."""
SHARED_POLL_S: Final = 0.01
"""How long a commit of another process may go unnoticed."""
_LOOKUP: Final = lookup_in(KEYS)
_CHANGES_SINCE: Final = changes_since()
_LOOKUP_MANY: Final = (
    # A list in one value keeps the statement the same, and so prepared, for every number of ids.
    f"SELECT i.epoch, i.revision, {rows.TOKEN_RECORD} FROM installation i"
    " LEFT JOIN json_each(?) ids LEFT JOIN api_keys k ON k.id = ids.value"
    " LEFT JOIN users u ON u.id = k.owner_id LEFT JOIN accounts a ON a.id = k.account_id"
)
_TRIGGERS_AND_VIEWS: Final = (
    "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('trigger', 'view')"
)


class SqliteStore:
    """The FileStore over one SQLite file."""

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        connect: Callable[..., dbapi.Connection] = dbapi.connect,
        may_be_departed: bool = False,
    ) -> None:
        """Open the database file, which must exist, and bring its schema up to date.

        Args:
            path: The file.
            shared: Whether other servers write to it too.
            busy_timeout_s: How long a write waits for those of others.
            connect: Opens a connection, as the driver does.
            may_be_departed: Whether to open a file whose installation leaves it, or has left it.

        Raises:
            StoreUnusableError: Not a database of ours, damaged, or written by a newer version.
            StoreLockedError: Another process holds it.
        """
        self._path = path
        self._shared = shared
        self._busy_timeout_s = busy_timeout_s
        self._open = connect
        self._commits = 0
        self._woken = threading.Event()
        self._local = threading.local()
        self._connections: list[dbapi.Connection] = []
        self._connections_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._first_uses = FirstUses()
        self._claim_lock = threading.Lock()
        self._claimer: dbapi.Connection | None = None
        self._closed = False
        self._outcome_unknown = False
        self._damage = ""
        try:
            self._writer = self._connect()
            self._assert_ours(may_be_departed=may_be_departed)
            migrations.apply(self._writer)
        except dbapi.DatabaseError as error:
            self.close()
            if name_of(error) in LOCKED:
                raise StoreLockedError("the database is locked by another process") from error
            raise StoreUnusableError(f"{path.name} cannot be used: {error}") from error
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(
        path: Path, *, connect: Callable[..., dbapi.Connection] = dbapi.connect
    ) -> "SqliteStore":
        """Create a new database file and open it.

        Args:
            path: The file.
            connect: Opens a connection, as the driver does.

        Raises:
            StoreUnusableError: The file exists already.
        """
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            raise StoreUnusableError(f"{path.name} exists already") from None
        return SqliteStore(path, connect=connect)

    # --- the hot path -----------------------------------------------------------------------------

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        """Return a key's record and the moment, of one statement's snapshot."""
        try:
            # `fetchone` notices that the row is the only one, and that ends the snapshot.
            row = self._cursor().execute(_LOOKUP, (key_id,)).fetchone()
        except dbapi.DatabaseError as error:
            self._local.cursor = None  # it may be in the middle of its statement
            raise self._noted(store_error(error)) from error
        try:
            return record_and_moment(row)
        except StoreDamagedError as error:
            self._noted(error)
            raise

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        """Return the known ones of many keys and the moment, of one statement's snapshot."""
        found = self._read_all(_LOOKUP_MANY, json.dumps(key_ids))
        with self._translated():
            records = {row[2]: token_record(row[2:]) for row in found if row[2] is not None}
        return records, Moment._make(found[0][:2])

    def caller_version(self) -> int:
        """Return how often this process has committed; with other servers, SQLite's count for all.

        Alone, a process knows of every change that takes authority away: the local commands beside
        a server (`admin-token`, `pepper`, `backup`) take none. With other servers on the same file
        SQLite is asked, which costs every validation 4 us and three hand-overs of the GIL.
        """
        if not self._shared:
            self._assert_open()
            return self._commits
        with self._translated():
            return int(self._reader().execute("PRAGMA data_version").fetchone()[0])

    # --- transactions -----------------------------------------------------------------------------

    @contextmanager
    def read(self, caller: Waiting | None = None) -> Iterator[Reader]:
        """Open a snapshot on the calling thread's connection."""
        connection = self._reader()
        with self._translated():
            connection.execute("BEGIN")
        try:
            with self._translated(), ending_with(caller, connection):
                yield reader_over(SqliteSession(connection, self._first_uses))
        finally:
            roll_back(connection)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:  # noqa: ARG002 - a read costs little
        """Begin a transaction that may write (BEGIN IMMEDIATE), and commit it after the block."""
        with self._transaction():
            yield writer_over(SqliteSession(self._writer, self._first_uses))
        self._woken.set()

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        if not self._write_lock.acquire(timeout=self._busy_timeout_s):
            raise _held_for_too_long()
        try:
            self._assert_open()
            if self._outcome_unknown:
                raise CommitFailedError("an earlier commit failed")
            # SQLite waits and tries again here. From now on this is the only writer, and neither a
            # statement nor COMMIT can meet another one.
            with self._translated():
                self._writer.execute("BEGIN IMMEDIATE")
            try:
                with self._translated():
                    self._assert_not_departed()
                    yield
            except BaseException:
                roll_back(self._writer)
                raise
            self._commit()
        finally:
            self._first_uses.end_write()
            self._write_lock.release()

    def _commit(self, connection: dbapi.Connection | None = None) -> None:
        connection = connection or self._writer
        try:
            connection.execute("COMMIT")
        except dbapi.DatabaseError as error:
            # With WAL the pages are written at COMMIT, so a full disk is noticed here: the commit
            # frame is not in the log and the rollback is certain. Any other failure, above all of
            # the sync, leaves the frame where recovery may find it.
            if name_of(error) in FULL:
                roll_back(connection)
                raise StoreFullError("the disk is full") from error
            # From here on every write fails as "outcome unknown": this process no longer knows
            # what is on disk.
            self._outcome_unknown = True
            raise CommitFailedError(f"commit failed: {name_of(error)}") from error
        self._commits += 1

    # --- usage ------------------------------------------------------------------------------------

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        """Record first uses: with other servers in the rows, alone in memory.

        Alone, no other process issues secrets again, so that memory is enough, and `add_uses`
        writes the rows within a moment. A process that is killed in that moment has answered a use
        that it forgets.
        """
        if not self._first_uses.note(secrets, now):
            # What the write that runs does to these secrets decides; a fresh read will tell.
            if not self._write_lock.acquire(timeout=CLAIM_WAIT_S):
                raise _held_for_too_long()
            self._write_lock.release()
            return False
        if self._shared:
            return self._write_claims(secrets)
        # One that was issued again before it was noted is seen here; later ones see the note.
        records, _ = self.lookup_many([secret.key_id for secret in secrets])
        return all(
            (record := records.get(secret.key_id)) is not None
            and record.secret_version == secret.version
            for secret in secrets
        )

    def _write_claims(self, secrets: Sequence[SecretId]) -> bool:
        with self._claiming() as connection:
            changed = [
                connection.execute(
                    "UPDATE api_keys SET secret_used = 1 WHERE id = ? AND secret_version = ?",
                    secret,
                ).rowcount
                for secret in sorted(secrets)
            ]
        self._first_uses.stored(secrets)
        return all(changed)

    @contextmanager
    def _claiming(self) -> Generator[dbapi.Connection, None, None]:
        """Hold the store for a block that claims secrets, on a connection of its own.

        The writing connection may belong to a change that waits for another process by now, for
        longer than a claim may wait.
        """
        if not self._claim_lock.acquire(timeout=CLAIM_WAIT_S):
            raise _held_for_too_long()
        try:
            if self._outcome_unknown:
                raise ClaimFailedError("an earlier commit failed")
            connection = self._claimer = self._claimer or self._connect()
            with self._translated():
                begin_soon(connection)
            try:
                with self._translated():
                    yield connection
            except BaseException:
                roll_back(connection)
                raise
            try:
                self._commit(connection)
            except CommitFailedError as error:
                raise ClaimFailedError(str(error)) from error
        finally:
            self._claim_lock.release()

    def add_uses(self, uses: Sequence[Use]) -> None:
        """Add uses in one transaction; times only move forward."""
        items = [
            (use.last_used_time, use.uses, use.secret_version, use.key_id)
            for use in storable_uses(uses)
        ]
        with self._transaction():
            self._writer.executemany(
                "UPDATE api_keys SET"
                " last_used_time = max(coalesce(last_used_time, 0), create_time, ?1),"
                " use_count = min(use_count + ?2, 4611686018427387904),"
                " secret_used = (secret_used OR secret_version = ?3),"
                " old_secret_last_used_time = CASE"
                "  WHEN old_secret_version = ?3"
                "  THEN max(coalesce(old_secret_last_used_time, 0), create_time, ?1)"
                "  ELSE old_secret_last_used_time END"
                " WHERE id = ?4 AND revoke_time IS NULL",
                items,
            )
        self._first_uses.stored(SecretId(use.key_id, use.secret_version) for use in uses)

    # --- changes ----------------------------------------------------------------------------------

    def changes_since(self, revision: int, limit: int) -> News:
        """Return the changes after a revision, of one statement's snapshot."""
        found = self._read_all(_CHANGES_SINCE, revision, limit)
        return news_of(found)

    @property
    def poll_interval_s(self) -> float | None:
        """10 ms with other servers on the file; alone, the process notices every commit itself.

        It does not notice those of the local commands, which take no authority away.
        """
        return SHARED_POLL_S if self._shared else None

    def wait(self, timeout_s: float | None) -> None:
        """Wait for a commit of this process, for `wake`, or for the timeout."""
        self._assert_open()
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        """Make the thread that waits return."""
        self._woken.set()

    # --- care -------------------------------------------------------------------------------------

    @property
    def damage(self) -> str:
        """What was met of damage since the database was opened; empty for none."""
        return self._damage

    def prune(self, now: Micros, limit: int) -> int:
        """Delete what nobody may ask for any more; return how many rows that were."""
        self._first_uses.prune(now)
        with self._transaction():
            return pruned(SqliteSession(self._writer, self._first_uses), now, limit)

    def check(self) -> Sequence[str]:
        """Look for rows that contradict each other."""
        with self.read(), self._translated():
            connection = self._reader()
            dangling = connection.execute("PRAGMA foreign_key_check").fetchall()
            return [
                *(dangling_row(table=row[0], target=row[2]) for row in dangling),
                *contradictions(SqliteSession(connection, self._first_uses)),
                *_planted(connection),
            ]

    def fold_log(self) -> bool:
        """Fold the write-ahead log into the database and truncate it; False while others read it.

        Raises:
            StoreLockedError: Another process holds the store.
        """
        with self._write_lock, translated():
            self._assert_open()
            row = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return bool(row[0] == 0)

    @property
    def departure(self) -> Departure | None:
        """The move that the file is marked with; None for a file that may be served."""
        with self._write_lock, self._translated():
            return sqlite_departures.of(self._writer)

    def mark(self, departure: Departure | None) -> None:
        """Mark the file, or take its mark away."""
        with self._write_lock, self._translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                sqlite_departures.mark(self._writer, departure)
                self._commit()
            finally:
                roll_back(self._writer)

    def check_file(self) -> Sequence[str]:
        """Run SQLite's own check of every page and index; say which tables it is about."""
        findings = self._integrity("")
        if not findings:
            return []
        names = self._reader().execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        tables = [str(row[0]) for row in names.fetchall()]
        named = [f"{table}: {finding}" for table in tables for finding in self._integrity(table)]
        return named or findings

    def _integrity(self, table: str) -> list[str]:
        argument = f"('{table}')" if table else ""
        connection = self._reader()
        # Lets signals in: they are handled between two steps of the interpreter.
        connection.set_progress_handler(lambda: None, 100_000)
        try:
            with self._translated():
                found = connection.execute(f"PRAGMA integrity_check{argument}").fetchall()
        except StoreLockedError:
            raise
        except StoreError as error:  # too damaged for the check itself
            return [str(error)]
        finally:
            connection.set_progress_handler(None, 0)
        # It tells of trees by the number of a page, in several lines.
        lines = (line for row in found for line in str(row[0]).splitlines())
        return [line for line in lines if line != "ok" and not line.startswith("*** ")]

    @property
    def size_bytes(self) -> int:
        """The size of the database and of its write-ahead log."""
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    @property
    def application_id(self) -> int:
        """The number that marks the file as a database of keybearer."""
        return migrations.APPLICATION_ID

    def backup(self, path: Path, on_progress: OnProgress = no_progress) -> None:
        """Copy the database page by page, within one snapshot."""
        with new_copy(path), self.read() as reader:
            # A snapshot begins with its first read. Within one, the commits of others do not make
            # the copy start again.
            reader.key_count()
            target = self._open(str(path), isolation_level=None)
            try:
                # A copy that is not whole is thrown away: it needs neither log nor syncs.
                target.execute("PRAGMA journal_mode = OFF")
                target.execute("PRAGMA synchronous = OFF")
                self._reader().backup(
                    target,
                    pages=BACKUP_PAGES,
                    progress=lambda _status, left, total: on_progress(total - left, total),
                )
                # A copy is a file by itself: no log beside it.
                target.execute("PRAGMA journal_mode = DELETE")
            finally:
                target.close()

    def close(self) -> None:
        """Close every connection; the last one folds the log into the database."""
        self._closed = True
        self._woken.set()
        with self._connections_lock:
            for connection in reversed(self._connections):
                connection.close()
            self._connections.clear()

    # --- errors -----------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into the store's, and remember damage."""
        try:
            with translated():
                yield
        except StoreDamagedError as error:
            self._noted(error)
            raise

    def _noted(self, error: Exception) -> Exception:
        if isinstance(error, StoreDamagedError):
            self._damage = str(error)
        return error

    # --- connections ------------------------------------------------------------------------------

    def _reader(self) -> dbapi.Connection:
        connection: dbapi.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._closed:
            self._assert_open()
            connection = self._connect(read_only=True)
            self._local.connection = connection
            self._local.ending = WhenThreadEnds(lambda: self._close_one(connection))
        return connection

    def _close_one(self, connection: dbapi.Connection) -> None:
        with self._connections_lock:
            if connection in self._connections:
                self._connections.remove(connection)
                connection.close()

    def _cursor(self) -> dbapi.Cursor:
        """Return the calling thread's cursor for single statements; a new one costs 1 us."""
        cursor: dbapi.Cursor | None = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self._reader().cursor()
        return cursor

    def _read_all(self, statement: str, *values: object) -> list[rows.Row]:
        """Return the rows of one statement that begins with the installation's row."""
        try:
            found = self._cursor().execute(statement, values).fetchall()
        except dbapi.DatabaseError as error:
            self._local.cursor = None  # it may be in the middle of its statement
            raise self._noted(store_error(error)) from error
        if not found:
            raise not_initialised()
        return cast("list[rows.Row]", found)

    def _connect(self, *, read_only: bool = False) -> dbapi.Connection:
        # Any thread may close a connection; only its own thread uses it (the writer: its lock).
        connection = self._open(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=self._busy_timeout_s,
            check_same_thread=False,
        )
        with self._connections_lock:
            self._connections.append(connection)
        prepare(connection, read_only=read_only)
        return connection

    def _assert_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")

    def _assert_ours(self, *, may_be_departed: bool) -> None:
        # One statement, so that a process that is making the schema is seen before or after it.
        marked, tables = self._writer.execute(
            "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id"
        ).fetchone()
        if marked == sqlite_departures.APPLICATION_ID:
            if not may_be_departed:
                raise self._departed()
        elif tables and marked != migrations.APPLICATION_ID:
            raise StoreUnusableError(f"{self._path.name} is a database of something else")

    def _assert_not_departed(self) -> None:
        # In every write: a command that has opened the file before may wait for its turn.
        [marked] = self._writer.execute("PRAGMA application_id").fetchone()
        if marked == sqlite_departures.APPLICATION_ID:
            raise self._departed()

    def _departed(self) -> StoreUnusableError:
        departure = sqlite_departures.of(self._writer)
        return StoreUnusableError(sqlite_departures.refusal(self._path.name, departure))


def _held_for_too_long() -> StoreLockedError:
    return StoreLockedError("another write has held the store for too long")


def _planted(connection: dbapi.Connection) -> Iterator[str]:
    found = connection.execute(_TRIGGERS_AND_VIEWS).fetchall()
    for kind, name, _ in sorted(set(found) - _triggers_and_views()):
        yield planted_object(kind, name)


def _triggers_and_views() -> set[tuple[str, str, str]]:
    with closing(dbapi.connect(":memory:", isolation_level=None)) as fresh:
        migrations.apply(fresh)
        return set(fresh.execute(_TRIGGERS_AND_VIEWS).fetchall())
