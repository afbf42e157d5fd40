"""The embedded store: SQLite in WAL mode, one writer at a time, a reader for each thread.

`synchronous=FULL`: replaying every crash point of a recorded run loses nothing with it and loses
acknowledged writes with NORMAL, so it is asserted when the store opens.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from sqlite_utils import Database
from sqlite_utils.db import Table

from keybearer._wire.enums import ApiKeyState, RevocationReason
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import AuditEvent
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Installation,
    Invalidation,
    Pepper,
    RequestRecord,
    StoredSecret,
    SubjectKind,
    Use,
    User,
)
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import (
    CHANGES_KEPT,
    CHANGES_KEPT_FOR,
    NEVER,
    NO_AUDIT_HEAD,
    REQUESTS_KEPT_FOR,
    UNUSED,
    AccountQuery,
    AuditQuery,
    CommitFailedError,
    EmailConflictError,
    KeyQuery,
    News,
    Page,
    Reader,
    Revoked,
    StoreClosedError,
    StoreConflictError,
    StoreFullError,
    StoreLockedError,
    StoreUnusableError,
    UserQuery,
    Writer,
    dbapi,
    migrations,
    rows,
)

BUSY_TIMEOUT_S: Final = 2.0
"""How long a write waits for another one; afterwards UNAVAILABLE."""
SHARED_POLL_S: Final = 0.01
"""How long a commit of another process may go unnoticed."""
MAX_USES: Final = 1_000_000
"""The most uses one item may add: an oversized count would make a STRICT table refuse them all."""
_TIMES: Final = range(253_402_300_800_000_000)
"""The moments a use can be of, 1970 to 9999; a time outside them would fail the whole batch."""
_SECRET_VERSIONS: Final = range(2**31)

_LOOKUP: Final = (
    f"SELECT i.revision, {rows.TOKEN_RECORD} FROM installation i"
    " LEFT JOIN api_keys k ON k.id = ? LEFT JOIN users u ON u.id = k.owner_id"
    " LEFT JOIN accounts a ON a.id = k.account_id"
)
_LOOKUP_MANY: Final = (
    # A list in one value keeps the statement the same, and so prepared, for every number of ids.
    f"SELECT i.revision, {rows.TOKEN_RECORD} FROM installation i LEFT JOIN json_each(?) ids"
    " LEFT JOIN api_keys k ON k.id = ids.value LEFT JOIN users u ON u.id = k.owner_id"
    " LEFT JOIN accounts a ON a.id = k.account_id"
)
_CHANGES_SINCE: Final = (
    "SELECT i.epoch, i.revision, coalesce((SELECT min(revision) FROM changes), i.revision + 1),"
    # A bound of the range, since revisions have no gaps: a LIMIT costs 20 us.
    f" {rows.INVALIDATION} FROM installation i"
    " LEFT JOIN changes c ON c.revision > ?1 AND c.revision <= ?1 + ?2"
    " WHERE i.id = 1 ORDER BY c.revision"
)
_READ_ONLY: Final = (
    "query_only = ON",
    "wal_autocheckpoint = 0",
    # A million keys do not fit into the cache; mapped, a lookup among them costs two thirds.
    "mmap_size = 2147418112",
)
_WAL_TRIES: Final = 20
"""Each is lost to another process that has switched meanwhile, or is about to."""
_FULL: Final = frozenset({"SQLITE_FULL"})
_LOCKED: Final = frozenset(
    {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_BUSY_SNAPSHOT", "SQLITE_CANTOPEN"}
)
_TAKEN: Final = "UNIQUE constraint failed: "
"""How SQLite's message begins; not every driver tells the kinds of constraints apart."""
_EMAIL_TAKEN: Final = _TAKEN + "users.account_id, users.email"
_DAMAGED: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})


class SqliteStore:
    """The FileStore over one SQLite file."""

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        connect: Callable[..., dbapi.Connection] = dbapi.connect,
    ) -> None:
        """Open the database file, which must exist, and bring its schema up to date.

        Args:
            path: The file.
            shared: Whether other servers write to it too.
            busy_timeout_s: How long a write waits for those of others.
            connect: Opens a connection, as the driver does.

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
        self._closed = False
        self._outcome_unknown = False
        try:
            self._writer = self._connect()
            self._assert_ours()
            migrations.apply(self._writer)
            self._db = Database(cast("str", self._writer))  # it takes a connection of any driver
        except dbapi.DatabaseError as error:
            self.close()
            if _name_of(error) in _LOCKED:
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

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, int]:
        """Return a key's record and the revision, of one statement's snapshot."""
        try:
            # `fetchone` notices that the row is the only one, and that ends the snapshot.
            row = self._cursor().execute(_LOOKUP, (key_id,)).fetchone()
        except dbapi.DatabaseError as error:
            self._local.cursor = None  # it may be in the middle of its statement
            raise _store_error(error) from error
        return _record_and_revision(row)

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], int]:
        """Return the known ones of many keys and the revision, of one statement's snapshot."""
        found = self._read_all(_LOOKUP_MANY, json.dumps(key_ids))
        records = {row[1]: TokenRecord._make(row[1:]) for row in found if row[1] is not None}
        return records, found[0][0]

    def version(self) -> int:
        """Return how often this process has committed; with other servers, SQLite's count for all.

        Alone, a process knows of every change that takes authority away: the local commands beside
        a server (`admin-token`, `pepper`, `backup`) take none. With other servers on the same file
        SQLite is asked, which costs every validation 4 us and three hand-overs of the GIL.
        """
        if not self._shared:
            self._assert_open()
            return self._commits
        with _translated():
            return int(self._reader().execute("PRAGMA data_version").fetchone()[0])

    # --- transactions -----------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Open a snapshot on the calling thread's connection."""
        connection = self._reader()
        with _translated():
            connection.execute("BEGIN")
        try:
            with _translated():
                yield _SqliteReader(connection)
        finally:
            _roll_back(connection)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """Take the write lock with BEGIN IMMEDIATE; commit at the end of the block."""
        with self._transaction():
            yield _SqliteWriter(self._writer, self._db)
        self._woken.set()

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        if not self._write_lock.acquire(timeout=self._busy_timeout_s):
            raise StoreLockedError("another write has held the store for too long")
        try:
            self._assert_open()
            if self._outcome_unknown:
                raise CommitFailedError("an earlier commit failed")
            # SQLite waits and tries again here. From now on this is the only writer, and neither a
            # statement nor COMMIT can meet another one.
            with _translated():
                self._writer.execute("BEGIN IMMEDIATE")
            try:
                with _translated():
                    yield
            except BaseException:
                _roll_back(self._writer)
                raise
            self._commit()
        finally:
            self._write_lock.release()

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except dbapi.DatabaseError as error:
            # With WAL the pages are written at COMMIT, so a full disk is noticed here: the commit
            # frame is not in the log and the rollback is certain. Any other failure, above all of
            # the sync, leaves the frame where recovery may find it.
            if _name_of(error) in _FULL:
                _roll_back(self._writer)
                raise StoreFullError("the disk is full") from error
            # From here on every write fails as "outcome unknown": this process no longer knows
            # what is on disk.
            self._outcome_unknown = True
            raise CommitFailedError(f"commit failed: {_name_of(error)}") from error
        self._commits += 1

    # --- usage ------------------------------------------------------------------------------------

    def add_uses(self, uses: Sequence[Use]) -> None:
        """Add uses in one transaction; times only move forward."""
        items = [
            (
                use.last_used_time,
                min(max(use.uses, 1), MAX_USES),
                use.secret_version,
                use.key_id,
            )
            for use in uses
            if use.last_used_time in _TIMES and use.secret_version in _SECRET_VERSIONS
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

    # --- changes ----------------------------------------------------------------------------------

    def changes_since(self, revision: int, limit: int) -> News:
        """Return the changes after a revision, of one statement's snapshot."""
        found = self._read_all(_CHANGES_SINCE, revision, limit)
        epoch, head, oldest = found[0][:3]
        changes = [rows.invalidation_from_row(row[3:]) for row in found if row[3] is not None]
        return News(epoch, head, oldest, changes)

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

    def prune(self, now: Micros, limit: int) -> int:
        """Delete what nobody may ask for any more; return how many rows that were."""
        with self._transaction():
            requests = self._writer.execute(
                "DELETE FROM request_records WHERE rowid IN (SELECT rowid FROM request_records"
                " WHERE create_time < ? ORDER BY create_time LIMIT ?)",
                (now - REQUESTS_KEPT_FOR, limit),
            )
            return int(requests.rowcount) + self._prune_changes(now, limit)

    def _prune_changes(self, now: Micros, limit: int) -> int:
        head, oldest = self._writer.execute(
            "SELECT (SELECT revision FROM installation), (SELECT min(revision) FROM changes)"
        ).fetchone()
        if head is None or oldest is None:
            return 0
        last = min(head - CHANGES_KEPT, oldest + limit - 1)
        # Whatever a clock that stepped back has written: the changes that stay are without gaps.
        kept = self._writer.execute(
            "SELECT min(revision) FROM changes WHERE revision <= ? AND time >= ?",
            (last, now - CHANGES_KEPT_FOR),
        ).fetchone()[0]
        deleted = self._writer.execute(
            "DELETE FROM changes WHERE revision <= ?", (last if kept is None else kept - 1,)
        )
        return int(deleted.rowcount)

    def check(self) -> Sequence[str]:
        """Look for rows that contradict each other."""
        with self.read(), _translated():
            return list(_contradictions(self._reader()))

    def check_file(self) -> Sequence[str]:
        """Run SQLite's own check of every page and index."""
        try:
            with _translated():
                found = [str(row[0]) for row in self._reader().execute("PRAGMA integrity_check")]
        except StoreUnusableError as error:  # too damaged for the check itself
            return [str(error)]
        return [finding for finding in found if finding != "ok"]

    @property
    def size_bytes(self) -> int:
        """The size of the database and of its write-ahead log."""
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    @property
    def application_id(self) -> int:
        """The number that marks the file as a database of keybearer."""
        return migrations.APPLICATION_ID

    def backup(self, path: Path) -> None:
        """Copy the database page by page, within one snapshot."""
        path.touch(mode=0o600, exist_ok=False)
        try:
            with self.read() as reader:
                # A snapshot begins with its first read. Within one, the commits of others do not
                # make the copy start again.
                reader.key_count()
                target = self._open(str(path), isolation_level=None)
                try:
                    self._reader().backup(target, pages=4096)
                    # A copy is a file by itself: no log beside it.
                    target.execute("PRAGMA journal_mode = DELETE")
                finally:
                    target.close()
        except BaseException:
            path.unlink()
            raise

    def close(self) -> None:
        """Close every connection; the last one folds the log into the database."""
        self._closed = True
        self._woken.set()
        with self._connections_lock:
            for connection in reversed(self._connections):
                connection.close()
            self._connections.clear()

    # --- connections ------------------------------------------------------------------------------

    def _reader(self) -> dbapi.Connection:
        connection: dbapi.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._closed:
            self._assert_open()
            connection = self._connect(read_only=True)
            self._local.connection = connection
        return connection

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
            raise _store_error(error) from error
        if not found:
            raise _not_initialised()
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
        _switch_to_wal(connection)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",
            "trusted_schema = OFF",
            "cache_size = -16384",
            *(_READ_ONLY if read_only else ()),
        ):
            connection.execute(f"PRAGMA {pragma}")
        if connection.execute("PRAGMA synchronous").fetchone()[0] != 2:  # noqa: PLR2004 - FULL
            raise StoreUnusableError("this SQLite does not take synchronous=FULL")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            raise StoreUnusableError("the file system cannot hold a WAL; use a local disk")
        return connection

    def _assert_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")

    def _assert_ours(self) -> None:
        # One statement, so that a process that is making the schema is seen before or after it.
        marked, tables = self._writer.execute(
            "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id"
        ).fetchone()
        if tables and marked != migrations.APPLICATION_ID:
            raise StoreUnusableError(f"{self._path.name} is a database of something else")


class _SqliteReader:
    """A Reader over one connection that is inside a transaction."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection

    def installation(self) -> Installation:
        row = self._one(f"SELECT {rows.INSTALLATION} FROM installation")
        if row is None:
            raise _not_initialised()
        return rows.installation_from_row(row)

    def lookup(self, key_id: str) -> TokenRecord | None:
        return _record_and_revision(self._one(_LOOKUP, key_id))[0]

    def account(self, scope: AccountScope, account_id: str) -> Account | None:
        if not scope.covers(account_id):
            return None
        row = self._one(f"SELECT {rows.ACCOUNT} FROM accounts WHERE id = ?", account_id)
        return None if row is None else rows.account_from_row(row)

    def user(self, scope: AccountScope, user_id: str) -> User | None:
        where = _within(scope)
        where.add("id = ?", user_id)
        row = self._one(f"SELECT {rows.USER} FROM users{where}", *where.values)
        return None if row is None else rows.user_from_row(row)

    def user_by_email(self, scope: AccountScope, email: str) -> User | None:
        where = _within(scope)
        where.add("email = ? AND delete_time IS NULL", email)
        row = self._one(f"SELECT {rows.USER} FROM users{where}", *where.values)
        return None if row is None else rows.user_from_row(row)

    def api_key(self, scope: AccountScope, key_id: str) -> ApiKey | None:
        where = _within(scope, "k.account_id")
        where.add("k.id = ?", key_id)
        row = self._one(f"SELECT {rows.API_KEY} FROM {rows.API_KEY_SOURCE}{where}", *where.values)
        return None if row is None else rows.api_key_from_row(row)

    def secrets_of(self, key_id: str) -> tuple[StoredSecret, StoredSecret | None]:
        row = self._one(
            "SELECT digest, pepper_id, secret_version, old_digest, old_pepper_id,"
            " old_secret_version FROM api_keys WHERE id = ?",
            key_id,
        )
        if row is None:
            raise KeyError(key_id)
        return StoredSecret(*row[:3]), None if row[3] is None else StoredSecret(*row[3:])

    def list_accounts(self, query: AccountQuery, page: Page) -> Sequence[Account]:
        where = _within(query.scope, "id")
        if query.name_contains:
            where.add("instr(lower(name), lower(?)) > 0", query.name_contains)
        found = self._page(
            f"SELECT {rows.ACCOUNT} FROM accounts",
            where,
            page,
            sort="create_time",
            tie="id",
            descending=True,
        )
        return [rows.account_from_row(row) for row in found]

    def list_users(self, query: UserQuery, page: Page) -> Sequence[User]:
        where = _within(query.scope)
        if not query.show_deleted:
            where.add("delete_time IS NULL")
        where.add_any("role", query.roles)
        where.add_any("type", query.types)
        if query.email_contains:
            where.add("instr(lower(email), lower(?)) > 0", query.email_contains)
        found = self._page(
            f"SELECT {rows.USER} FROM users",
            where,
            page,
            sort="create_time",
            tie="id",
            descending=True,
        )
        return [rows.user_from_row(row) for row in found]

    def list_api_keys(self, query: KeyQuery, page: Page) -> Sequence[ApiKey]:
        where = _within(query.scope, "k.account_id")
        if query.states:
            tests = [_STATE_TESTS[state] for state in query.states]
            where.add(
                f"({' OR '.join(tests)})",
                *(query.now for test in tests for _ in range(test.count("?"))),
            )
        if query.owner_id:
            where.add("k.owner_id = ?", query.owner_id)
        if query.name_contains:
            where.add("instr(lower(k.name), lower(?)) > 0", query.name_contains)
        if query.expires_before is not None:
            where.add("k.expire_time < ?", query.expires_before)
        if query.unused_since is not None:
            where.add("coalesce(k.last_used_time, k.create_time) < ?", query.unused_since)
        found = self._page(
            f"SELECT {rows.API_KEY} FROM {rows.API_KEY_SOURCE}",
            where,
            page,
            sort=_KEY_ORDERS[query.order_by],
            tie="k.id",
            descending=query.descending,
        )
        return [rows.api_key_from_row(row) for row in found]

    def list_audit_events(self, query: AuditQuery, page: Page) -> Sequence[AuditEvent]:
        where = _within(query.scope)
        if query.actor_id:
            where.add("(actor_key_id = ? OR actor_user_id = ?)", query.actor_id, query.actor_id)
        if query.target_id:
            where.add("target_id = ?", query.target_id)
        where.add_any("action", query.actions)
        if query.after is not None:
            where.add("time > ?", query.after)
        if query.before is not None:
            where.add("time < ?", query.before)
        found = self._page(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events",
            where,
            page,
            sort="seq",
            tie="id",
            descending=True,
        )
        return [rows.audit_event_from_row(row) for row in found]

    def live_admins(self, scope: AccountScope) -> int:
        where = _within(scope)
        where.add("delete_time IS NULL AND role = 3")
        return self._count(f"SELECT count(*) FROM users{where}", *where.values)

    def unrevoked_keys(
        self, *, owner_id: str = "", created_by: str = "", not_owner_id: str = "", limit: int
    ) -> Revoked:
        where = _keys_of(owner_id, created_by, not_owner_id)
        count = self._count(f"SELECT count(*) FROM api_keys{where}", *where.values)
        found = self._all(f"SELECT id FROM api_keys{where} LIMIT ?", *where.values, limit)
        return Revoked(count=count, ids=tuple(row[0] for row in found))

    def request_record(self, user_id: str, request_id: str) -> RequestRecord | None:
        row = self._one(
            "SELECT user_id, request_id, body_hash, attempt, key_id, secret_version, create_time"
            " FROM request_records WHERE user_id = ? AND request_id = ?",
            user_id,
            request_id,
        )
        return None if row is None else rows.request_record_from_row(row)

    def peppers(self) -> Sequence[Pepper]:
        found = self._all(
            "SELECT id, check_value, create_time, retire_time FROM peppers"
            " ORDER BY create_time DESC, rowid DESC"
        )
        return [rows.pepper_from_row(row) for row in found]

    def live_secrets(self, pepper_id: str) -> int:
        return self._count(
            "SELECT total((pepper_id = ?1) + coalesce(old_pepper_id = ?1, 0)) FROM api_keys"
            " WHERE revoke_time IS NULL AND (pepper_id = ?1 OR old_pepper_id = ?1)",
            pepper_id,
        )

    def audit_head(self) -> tuple[int, bytes]:
        row = self._one("SELECT seq, hash FROM audit_events ORDER BY seq DESC LIMIT 1")
        return NO_AUDIT_HEAD if row is None else (row[0], row[1])

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditEvent]:
        found = self._all(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events WHERE seq > ? ORDER BY seq LIMIT ?",
            after_seq,
            limit,
        )
        return [rows.audit_event_from_row(row) for row in found]

    def key_count(self) -> int:
        return self._count("SELECT count(*) FROM api_keys")

    def live_keys(self, now: Micros, expiring_by: Sequence[Micros]) -> Sequence[int]:
        counts = ", ".join("count(*) FILTER (WHERE expire_time <= ?)" for _ in expiring_by)
        return self._all(
            f"SELECT {counts}, count(expire_time), count(*) FROM api_keys"
            " WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > ?)",
            *expiring_by,
            now,
        )[0]

    def _one(self, sql: str, *values: object) -> rows.Row | None:
        return cast("rows.Row | None", self._connection.execute(sql, values).fetchone())

    def _all(self, sql: str, *values: object) -> list[rows.Row]:
        return cast("list[rows.Row]", self._connection.execute(sql, values).fetchall())

    def _count(self, sql: str, *values: object) -> int:
        row = self._one(sql, *values)
        return 0 if row is None else int(row[0])

    def _page(
        self, select: str, where: "_Where", page: Page, *, sort: str, tie: str, descending: bool
    ) -> list[rows.Row]:
        # By key set, never by offset: rows that come or go between two pages move nothing.
        direction = "DESC" if descending else "ASC"
        if page.after is not None:
            where.add(f"({sort}, {tie}) {'<' if descending else '>'} (?, ?)", *page.after)
        return self._all(
            f"{select}{where} ORDER BY {sort} {direction}, {tie} {direction} LIMIT ?",
            *where.values,
            page.limit,
        )


class _SqliteWriter(_SqliteReader):
    """A Writer over the writing connection, inside BEGIN IMMEDIATE."""

    def __init__(self, connection: dbapi.Connection, db: Database) -> None:
        super().__init__(connection)
        self._db = db

    def put_installation(self, installation: Installation) -> None:
        self._table("installation").upsert(rows.row_from_installation(installation), pk="id")

    def insert_account(self, account: Account) -> None:
        self._insert("accounts", rows.row_from_account(account))

    def update_account(self, account: Account) -> None:
        self._update("accounts", account.id, rows.changeable_account_columns(account))

    def insert_user(self, user: User) -> None:
        self._insert("users", rows.row_from_user(user))

    def update_user(self, user: User) -> None:
        self._update("users", user.id, rows.changeable_user_columns(user))

    def insert_api_key(self, key: ApiKey, secret: StoredSecret) -> None:
        self._insert("api_keys", rows.row_from_new_api_key(key, secret))

    def update_api_key(self, key: ApiKey) -> None:
        self._update("api_keys", key.id, rows.administrative_columns(key))
        self._erase_dead_secret(key)

    def replace_secret(self, key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> None:
        self._update("api_keys", key.id, rows.secret_columns(key, current, old))

    def revoke_keys(
        self,
        *,
        owner_id: str = "",
        created_by: str = "",
        not_owner_id: str = "",
        reason: RevocationReason,
        revoked_by: str,
        now: Micros,
    ) -> int:
        where = _keys_of(owner_id, created_by, not_owner_id)
        cursor = self._connection.execute(
            "UPDATE api_keys SET revoke_time = ?, update_time = ?, revoked_by = ?,"
            f" revocation_reason = ?, row_version = row_version + 1, {_ERASE_DEAD_SECRET}{where}",
            (now, now, revoked_by, int(reason), *[now] * len(rows.OLD_SECRET), *where.values),
        )
        return int(cursor.rowcount)

    def append_change(
        self, *, kind: SubjectKind, subject_id: str, account_id: str, now: Micros
    ) -> int:
        revision = self._count("UPDATE installation SET revision = revision + 1 RETURNING revision")
        change = Invalidation(revision, now, account_id, kind, subject_id)
        self._insert("changes", rows.row_from_invalidation(change))
        return revision

    def append_audit(self, event: AuditEvent) -> None:
        self._insert("audit_events", rows.row_from_audit_event(event))

    def put_request_record(self, record: RequestRecord) -> None:
        self._table("request_records").insert(rows.row_from_request_record(record), replace=True)

    def insert_pepper(self, pepper: Pepper) -> None:
        self._insert("peppers", rows.row_from_pepper(pepper))

    def retire_pepper(self, pepper_id: str, now: Micros) -> None:
        self._update("peppers", pepper_id, {"retire_time": now})

    def _erase_dead_secret(self, key: ApiKey) -> None:
        if not key.overlaps_at(key.update_time):
            self._update("api_keys", key.id, dict.fromkeys(rows.OLD_SECRET))

    def _insert(self, table: str, row: rows.Columns) -> None:
        with _conflicts():
            self._table(table).insert(row)

    def _update(self, table: str, row_id: str, columns: rows.Columns) -> None:
        with _conflicts():
            self._table(table).update(row_id, columns)

    def _table(self, name: str) -> Table:
        return self._db.table(name)


class _Where:
    """The conditions of a statement and their values; text is never built from a value."""

    def __init__(self, condition: str = "", *values: object) -> None:
        self._conditions = [condition] if condition else []
        self.values = list(values)

    def add(self, condition: str, *values: object) -> None:
        self._conditions.append(condition)
        self.values.extend(values)

    def add_any(self, column: str, values: Sequence[int]) -> None:
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *map(int, values))

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


_ERASE_DEAD_SECRET: Final = ", ".join(
    f"{column} = CASE WHEN overlap_end_time > ? THEN {column} END" for column in rows.OLD_SECRET
)
_STATE_TESTS: Final = {
    ApiKeyState.REVOKED: "k.revoke_time IS NOT NULL",
    ApiKeyState.EXPIRED: "(k.revoke_time IS NULL AND k.expire_time <= ?)",
    ApiKeyState.DISABLED: "(k.revoke_time IS NULL AND k.disable_time IS NOT NULL"
    " AND (k.expire_time IS NULL OR k.expire_time > ?))",
    ApiKeyState.ACTIVE: "(k.revoke_time IS NULL AND k.disable_time IS NULL"
    " AND (k.expire_time IS NULL OR k.expire_time > ?))",
}
_KEY_ORDERS: Final = {
    "create_time": "k.create_time",
    "expire_time": f"coalesce(k.expire_time, {NEVER})",
    "name": "k.name",
    "last_used_time": f"coalesce(k.last_used_time, {UNUSED})",
}


def _within(scope: AccountScope, column: str = "account_id") -> _Where:
    return _Where() if scope.account_id is None else _Where(f"{column} = ?", scope.account_id)


def _keys_of(owner_id: str, created_by: str, not_owner_id: str) -> _Where:
    where = _Where("revoke_time IS NULL")
    if owner_id:
        where.add("owner_id = ?", owner_id)
    if created_by:
        where.add("created_by = ?", created_by)
    if not_owner_id:
        where.add("owner_id <> ?", not_owner_id)
    return where


def _switch_to_wal(connection: dbapi.Connection) -> None:
    """Have the file use a write-ahead log; costs nothing where it does already.

    Raises:
        OperationalError: Others have held the file for too long.
    """
    for _ in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except dbapi.OperationalError as error:
            if _name_of(error) not in _LOCKED:
                raise
            # Of several processes that switch at once SQLite refuses all but one, and at once,
            # whatever the busy timeout. A transaction does wait for that one.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")


def _not_initialised() -> StoreUnusableError:
    return StoreUnusableError("the database was never initialised; run `init`")


def _record_and_revision(row: rows.Row | None) -> tuple[TokenRecord | None, int]:
    if row is None:
        raise _not_initialised()
    if row[1] is None:
        return None, row[0]
    return TokenRecord._make(row[1:]), row[0]


def _roll_back(connection: dbapi.Connection) -> None:
    # Some errors end the transaction by themselves, and so does closing the store.
    with suppress(dbapi.ProgrammingError):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _name_of(error: dbapi.DatabaseError) -> str:
    return str(getattr(error, "sqlite_errorname", "unknown"))


def _contradictions(connection: dbapi.Connection) -> Iterator[str]:
    for row in connection.execute("PRAGMA foreign_key_check"):
        yield f"a row of {row[0]} points to a missing row of {row[2]}"
    installation = connection.execute("SELECT revision FROM installation").fetchone()
    count, oldest, newest = connection.execute(
        "SELECT count(*), min(revision), max(revision) FROM changes"
    ).fetchone()
    if count and count != newest - oldest + 1:
        yield f"changes are missing between the revisions {oldest} and {newest}"
    if installation is not None and installation[0] != (newest or 0):
        yield f"the revision is {installation[0]} and the newest change is {newest or 0}"
    count, first, last = connection.execute(
        "SELECT count(*), min(seq), max(seq) FROM audit_events"
    ).fetchone()
    if count and count != last - first + 1:
        yield f"audit events are missing between {first} and {last}"


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into the store's."""
    try:
        yield
    except dbapi.DatabaseError as error:
        raise _store_error(error) from error


@contextmanager
def _conflicts() -> Iterator[None]:
    """Raise StoreConflictError for a value that is taken, where the use case can catch it."""
    try:
        yield
    except dbapi.IntegrityError as error:
        raise _store_error(error) from error


def _store_error(error: dbapi.DatabaseError) -> Exception:
    """Return a driver's error as the store's; a bug of ours stays what it is."""
    name = _name_of(error)
    if name in _DAMAGED:
        return StoreUnusableError(f"the database is damaged: {name}")
    if str(error) == _EMAIL_TAKEN:
        return EmailConflictError("the e-mail address is taken")
    if str(error).startswith(_TAKEN):
        return StoreConflictError(f"taken: {str(error).removeprefix(_TAKEN)}")
    if isinstance(error, dbapi.ProgrammingError) and "closed" in str(error):
        return StoreClosedError("the store is closed")
    if not isinstance(error, dbapi.OperationalError):
        return cast("Exception", error)
    if name in _FULL:
        return StoreFullError("the disk is full")
    return StoreLockedError(f"the store cannot be used: {name}")
