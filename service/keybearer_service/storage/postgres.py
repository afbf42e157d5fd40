"""The store on PostgreSQL, which many nodes share.

One row orders everything: every write begins by updating the row of `commits`. Whoever has it is
alone, as a writer of SQLite is, and the database shows a commit before it lets go of the row. So
revisions are in the order of commits and without gaps, whichever node writes.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Moment, Pepper, SecretId, Use
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import (
    CLAIM_WAIT_S,
    Foreseen,
    News,
    Node,
    OnProgress,
    OnStep,
    ProofMode,
    Reader,
    StoreClosedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnusableError,
    Waiting,
    Writer,
    no_progress,
    rows,
)
from keybearer_service.storage import postgres_yugabyte as yugabyte
from keybearer_service.storage.care import (
    contradictions,
    dangling_row,
    planted_object,
    pruned,
)
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.postgres_arrival import fill
from keybearer_service.storage.postgres_backup import copy_to_file
from keybearer_service.storage.postgres_connections import (
    STATEMENT_LIMIT_S,
    Connection,
    Connector,
    Hosts,
    Pool,
)
from keybearer_service.storage.postgres_errors import is_conflict, store_error
from keybearer_service.storage.postgres_gathering import Gathering
from keybearer_service.storage.postgres_nodes import FORGET_NODES, Membership
from keybearer_service.storage.postgres_schema import TRIGGERS, assert_current, migrate
from keybearer_service.storage.postgres_session import (
    KEYS,
    SNAPSHOT,
    PostgresSession,
    SnapshotSession,
    numbered,
    statements_of,
)
from keybearer_service.storage.postgres_usage import add_uses, claim_uses
from keybearer_service.storage.postgres_wakeups import Wakeups
from keybearer_service.storage.postgres_writes import Writes
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

POLL_S: Final = 0.02
"""How long a commit of another node may go unnoticed when its notification is lost."""
_EPOCH: Final = "i.epoch || i.epoch_suffix"
_LOOKUP: Final = numbered(lookup_in(KEYS, _EPOCH))
_LOOKUP_MANY: Final = (
    f"SELECT {_EPOCH}, i.revision, {rows.TOKEN_RECORD} FROM installation i"
    f" LEFT JOIN {KEYS} ON k.id = ANY($1::text[]) LEFT JOIN users u ON u.id = k.owner_id"
    " LEFT JOIN accounts a ON a.id = k.account_id"
)
_CHANGES_SINCE: Final = numbered(changes_since(f"i.server, {_EPOCH}"))
_UNSAFE_SETTINGS: Final = (
    "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
)
_REFERENCES: Final = (
    "SELECT c.conrelid::regclass::text, f.attname, c.confrelid::regclass::text, t.attname"
    " FROM pg_constraint c"
    " JOIN pg_attribute f ON f.attrelid = c.conrelid AND f.attnum = c.conkey[1]"
    " JOIN pg_attribute t ON t.attrelid = c.confrelid AND t.attnum = c.confkey[1]"
    " WHERE c.contype = 'f' AND c.connamespace = current_schema()::regnamespace ORDER BY 1, 2"
)
_TRIGGERS_AND_VIEWS: Final = (
    "SELECT 'trigger', tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
    " WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace"
    " UNION ALL SELECT 'view', relname FROM pg_class"
    " WHERE relkind IN ('v', 'm') AND relnamespace = current_schema()::regnamespace ORDER BY 1, 2"
)
_MOST_FINDINGS: Final = 100
"""Findings of one kind that `check` lists."""
_OUTCOMES_KEPT: Final = "10 minutes"
_FLUSH_TRIES: Final = 5
_HISTORY_TRIES: Final = 3
_NAME_LENGTH: Final = 16


class PostgresStore:
    """The Store over one PostgreSQL database."""

    def __init__(
        self,
        url: DatabaseUrl,
        *,
        clock: Clock,
        entropy: Entropy,
        busy_timeout_s: float = STATEMENT_LIMIT_S,
        limit_s: float | None = STATEMENT_LIMIT_S,
    ) -> None:
        """Open the database, which must have the schema of this version.

        Args:
            url: The database.
            clock: The time.
            entropy: The randomness.
            busy_timeout_s: How long a write waits for those of others.
            limit_s: How long a statement may take; None for as long as it needs, for commands.

        Raises:
            StoreUnusableError: Not a database of ours, too old or too new, or not to be relied on.
            StoreLockedError: It cannot be reached.
        """
        self._damage = ""
        self._entropy = entropy
        hosts = Hosts(url)
        connector = Connector(url, hosts, limit_s=limit_s, lock_limit_s=busy_timeout_s)
        self._pool = Pool(connector.open)
        reading = Connector(
            url, hosts, limit_s=limit_s, lock_limit_s=busy_timeout_s, plans_once=True
        )
        self._reads = Pool(reading.open)
        self._gathering = Gathering(self._lookup_alone, self.lookup_many)
        self._wakeups = Wakeups(self._pool, clock)
        self._first_uses = FirstUses()
        self._writes = Writes(self._pool, self._first_uses, clock, entropy, busy_timeout_s)
        hurried = Connector(url, hosts, limit_s=limit_s, lock_limit_s=CLAIM_WAIT_S)
        self._claims = Pool(hurried.open)
        self._membership = Membership(
            self._pool, self._writes, clock, entropy, hosts=hosts, on_other_server=self._drop_idle
        )
        try:
            connection = self._pool.take()
            assert_current(connection)
            _assert_safe(connection)
            self._pool.give(connection)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def migrate(url: DatabaseUrl) -> list[str]:
        """Bring the schema of a database up to date; return the names of the steps that were done.

        Raises:
            StoreUnusableError, StoreLockedError: It cannot be done; the text says why.
        """
        connection = Connector(url, limit_s=None, lock_limit_s=STATEMENT_LIMIT_S).open()
        try:
            _assert_safe(connection)
            return migrate(connection)
        finally:
            connection.close()

    # --- the hot path -----------------------------------------------------------------------------

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        """Return a key's record and the moment, of one statement's snapshot.

        What many threads look up at once goes in one statement: see `Gathering`.
        """
        return self._gathering.lookup(key_id)

    def _lookup_alone(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        with self._noting_damage():
            found, _ = self._read(_LOOKUP, _storable(key_id))
            return record_and_moment(found[0] if found else None)

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        """Return the known ones of many keys and the moment, of one statement's snapshot."""
        with self._noting_damage():
            found, _ = self._read(_LOOKUP_MANY, list(map(_storable, key_ids)))
            if not found:
                raise not_initialised()
            records = {row[2]: token_record(row[2:]) for row in found if row[2] is not None}
            return records, Moment._make(found[0][:2])

    def caller_version(self) -> None:
        """Return None: a caller is one more key in a statement that is sent anyway."""
        self._pool.assert_open()

    # --- transactions -----------------------------------------------------------------------------

    @contextmanager
    def read(self, caller: Waiting | None = None) -> Iterator[Reader]:
        """Open a snapshot on a connection of its own."""
        self._membership.assert_proven()
        with self._snapshot() as connection:
            self._membership.assert_proven(connection)
            yield reader_over(SnapshotSession(connection, self._first_uses, caller))

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        """Take the row that orders all writes, and commit after the block."""
        self._membership.assert_trusted()
        statements = statements_of(foreseen)
        with self._told_when_closed(), self._writes.begin(statements) as session:
            try:
                yield writer_over(session)
            except StoreError:
                raise
            except Exception:
                # A commit proves itself. What is refused instead was read, like a verdict.
                self._membership.assert_proven(session.connection)
                raise
        self._wakeups.wake()

    @contextmanager
    def receive(self, file: Path, on_step: OnStep) -> Iterator[Writer]:
        """Open a write transaction that begins with every row of a file."""
        with self._told_when_closed(), self._writes.begin() as session:
            _allow_all_time(session.connection)
            try:
                fill(session.connection, file, on_step)
                session.begin_history()
            except psycopg.Error as error:
                raise self._told(error) from error
            yield writer_over(session)
        self._wakeups.wake()

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        """Record first uses in one statement, which waits for a change that replaces a secret."""
        if not secrets:
            self._pool.assert_open()
            return True
        try:
            with self._connection(self._claims) as connection:
                return claim_uses(connection, secrets)
        except (StoreFullError, StoreReadOnlyError):
            self._first_uses.note(secrets, now)
            raise

    def add_uses(self, uses: Sequence[Use]) -> None:
        """Add uses in one statement; times only move forward."""
        for remaining in reversed(range(_FLUSH_TRIES)):
            with self._connection(self._claims) as connection:
                try:
                    add_uses(connection, uses)
                except psycopg.Error as error:
                    if not remaining or not is_conflict(error):
                        raise
                else:
                    break
        self._first_uses.stored(SecretId(use.key_id, use.secret_version) for use in uses)

    # --- changes ----------------------------------------------------------------------------------

    def changes_since(self, revision: int, limit: int) -> News:
        """Return the changes after a revision, of one statement's snapshot.

        Never those of a server that the epoch does not hold for: see `Writes`.
        """
        for _ in range(_HISTORY_TRIES):
            with self._noting_damage():
                found, history = self._read(_CHANGES_SINCE, revision, limit)
                if not found:
                    raise not_initialised()
                if found[0][0] == history:
                    return news_of([row[1:] for row in found])
            with self.write():
                pass  # any write gives the epoch another name
        raise StoreLockedError("the database goes from one server to another")

    @property
    def poll_interval_s(self) -> float | None:
        """20 ms: a look costs the database some 30 us, and notifications can be lost."""
        return POLL_S

    def wait(self, timeout_s: float | None) -> None:
        """Wait for a commit of this or another node, for `wake`, or for the timeout."""
        self._wakeups.wait(timeout_s)

    def wake(self) -> None:
        """Make the thread that waits return."""
        self._wakeups.wake()

    # --- nodes ------------------------------------------------------------------------------------

    def join(
        self, name: str, holds: Callable[[Pepper], bool], proof: ProofMode = ProofMode.AUTO
    ) -> None:
        """Be one of the nodes from now on."""
        with self._told_when_closed():
            self._assert_sessions()
            self._membership.join(name, holds, proof)

    @property
    def proofs_begun(self) -> int:
        """How many times this node has begun to prove that it reads the real database."""
        return self._membership.proofs_begun

    def is_proven_since(self, begun: int) -> bool:
        """Return whether a proof has succeeded that began after that many."""
        return self._membership.is_proven_since(begun)

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that have been heard of lately."""
        with self._connection() as connection:
            return self._membership.nodes(connection)

    @property
    def clock_offset_s(self) -> float:
        """How far the clock of the database is ahead of this machine's."""
        return self._membership.offset_s

    # --- care -------------------------------------------------------------------------------------

    @property
    def damage(self) -> str:
        """What the database has said of damage since the store was opened; empty for nothing."""
        return self._damage

    def prune(self, now: Micros, limit: int) -> int:
        """Delete what nobody may ask for any more, unless another node is at it."""
        self._first_uses.prune(now)
        with self._connection() as connection, connection.transaction():
            lease = connection.execute(
                "SELECT name FROM leases WHERE name = 'prune' FOR UPDATE SKIP LOCKED"
            )
            if lease.fetchone() is None:
                return 0
            connection.execute(FORGET_NODES)
            connection.execute(
                f"DELETE FROM outcomes WHERE time < now() - interval '{_OUTCOMES_KEPT}'"
            )
            return pruned(PostgresSession(connection, self._first_uses), now, limit)

    def check(self) -> Sequence[str]:
        """Look for rows that contradict each other."""
        with self._snapshot() as connection:
            _allow_all_time(connection)
            session = PostgresSession(connection, self._first_uses)
            return [*_dangling_rows(session), *contradictions(session), *_planted(session)]

    def backup(self, path: Path, on_progress: OnProgress = no_progress) -> None:
        """Copy every row of one snapshot to a SQLite file."""
        with self._snapshot() as connection:
            _allow_all_time(connection)
            copy_to_file(connection, path, on_progress)

    def close(self) -> None:
        """Leave the nodes, and close every connection."""
        self._membership.close()
        self._pool.close()
        self._reads.close()
        self._claims.close()
        self._wakeups.close()

    # --- connections ------------------------------------------------------------------------------

    def _read(self, statement: str, *values: object) -> tuple[list[rows.Row], str]:
        """Return the rows of one statement and the history of the server, which takes writes."""
        self._membership.assert_trusted()
        self._membership.assert_proven()
        is_repeated = False
        while True:
            connection = self._reads.take()
            try:
                found = connection.execute(statement, values, prepare=True).fetchall()
            except psycopg.Error as error:
                # One that was lost while nobody used it says nothing about the database.
                was_idle = connection.is_lost and not connection.has_timed_out
                self._reads.drop(connection)
                if is_repeated or not was_idle:
                    raise self._told(error) from error
                self._reads.drop_idle()
                is_repeated = True
                continue
            if connection.is_at_standby:
                self._reads.drop(connection)
                raise StoreLockedError("the database has become a standby")
            try:
                self._membership.assert_proven(connection)
            except StoreLockedError:
                self._reads.drop(connection)
                raise
            self._reads.give(connection)
            return found, connection.history

    def _assert_sessions(self) -> None:
        """Refuse a pooler that hands one session of the database to several connections.

        Behind one a connection does not stay with its server, and what is listened for and prepared
        is somebody else's.
        """
        connections = [self._pool.new() for _ in range(2)]
        names = [self._entropy.base62(_NAME_LENGTH) for _ in connections]
        try:
            for connection, name in zip(connections, names, strict=True):
                connection.execute(f"SET keybearer.session = '{name}'")
            shown = [
                (connection.execute("SHOW keybearer.session").fetchone() or ("",))[0]
                for connection in connections
            ]
        except psycopg.Error as error:
            raise self._told(error) from error
        finally:
            for connection in connections:
                self._pool.give(connection)
        if shown != names:
            raise StoreUnusableError(
                "the database is behind a pooler in transaction mode; connect directly or to a "
                "pooler in session mode"
            )

    def _drop_idle(self) -> None:
        self._pool.drop_idle()
        self._reads.drop_idle()
        self._claims.drop_idle()

    @contextmanager
    def _connection(self, pool: Pool | None = None) -> Generator[Connection]:
        pool = pool or self._pool
        connection = pool.take()
        try:
            yield connection
        except psycopg.Error as error:
            raise self._told(error) from error
        finally:
            pool.give(connection)

    @contextmanager
    def _snapshot(self) -> Generator[Connection]:
        with self._told_when_closed(), self._connection() as connection:
            connection.execute(SNAPSHOT)
            try:
                yield connection
            finally:
                if not connection.is_lost:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _noting_damage(self) -> Generator[None]:
        try:
            yield
        except StoreDamagedError as error:
            self._damage = self._damage or str(error)
            raise

    @contextmanager
    def _told_when_closed(self) -> Generator[None]:
        try:
            with self._noting_damage():
                yield
        except StoreLockedError as error:
            if self._pool.is_closed:
                raise StoreClosedError("the store is closed") from error
            raise

    def _told(self, error: psycopg.Error) -> Exception:
        return (
            StoreClosedError("the store is closed") if self._pool.is_closed else store_error(error)
        )


def _storable(key_id: str) -> str:
    # PostgreSQL takes no NUL, and no id has one.
    return "" if "\0" in key_id else key_id


def _assert_safe(connection: Connection) -> None:
    try:
        if connection.is_yugabyte:
            yugabyte.assert_suitable(connection)
            return
        unsafe = [row[0] for row in connection.execute(_UNSAFE_SETTINGS).fetchall()]
    except psycopg.Error as error:
        raise store_error(error) from error
    if unsafe:
        raise StoreUnusableError(
            f"the database is set up with {' and '.join(unsafe)} = off, and would lose what it has "
            "acknowledged"
        )


def _allow_all_time(connection: Connection) -> None:
    connection.execute("SET LOCAL statement_timeout = 0")
    connection.limit_s = None


def _planted(session: PostgresSession) -> Iterator[str]:
    for kind, name in session.all(_TRIGGERS_AND_VIEWS):
        if name not in TRIGGERS:
            yield planted_object(kind, name)


def _dangling_rows(session: PostgresSession) -> Iterator[str]:
    for table, column, target, key in session.all(_REFERENCES):
        found = session.all(
            f"SELECT 1 FROM {table} f WHERE {column} IS NOT NULL AND NOT EXISTS"
            f" (SELECT 1 FROM {target} t WHERE t.{key} = f.{column}) LIMIT {_MOST_FINDINGS}"
        )
        for _ in found:
            yield dangling_row(table=table, target=target)
