"""Connections to PostgreSQL: how they are opened, checked, limited and kept."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.types.numeric import Int8Dumper

from keybearer._wire.peer import is_loopback
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import (
    StoreClosedError,
    StoreLockedError,
    StoreUnusableError,
    rows,
)
from keybearer_service.storage import postgres_yugabyte as yugabyte
from keybearer_service.storage.postgres_errors import store_error

RV = TypeVar("RV")

STATEMENT_LIMIT_S: Final = 2.0
"""How long a statement of a call may take, on the server and on our side."""
_IDLE_LIMIT_S: Final = 10.0
"""How long a transaction may be open without a statement, before the server ends it."""
_CONNECT_LIMIT_S: Final = 2
_UNANSWERED_MS: Final = 1000
"""How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT)."""
_LONG_UNANSWERED_MS: Final = 60_000
"""The same for commands, which send so much that a busy server does not read for a while."""
_SAFE_MODE: Final = "verify-full"
_DEFAULT_MODE: Final = "prefer"
"""What libpq does when nobody says anything."""
_DURABLE: Final = frozenset({"on", "remote_apply"})
HISTORY: Final = (
    "(SELECT system_identifier FROM pg_control_system()) || '/' || CASE WHEN pg_is_in_recovery()"
    " THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
)
"""The installation of PostgreSQL and its timeline. A standby writes none of its own."""
_ALWAYS_PREPARE: Final = 2**31 - 1
"""Only statements that ask for it are prepared: those of changes and of verdicts. Lists are planned
for their own values."""


class Connection(psycopg.Connection[rows.Row]):
    """A connection that is closed when an answer does not come in time: a frozen server is."""

    usual_limit_s: float | None = None
    limit_s: float | None = None
    """How long an answer may take, in seconds; None for ever."""
    has_timed_out = False
    history = ""
    """The server's history: a promotion begins another one, as does a copy restored elsewhere.

    Empty on YugabyteDB, where there is one."""
    server = ""
    """The running server: its history, and since when it runs. A connection never changes it."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for an answer, no longer than the limit of this connection."""
        try:
            return super().wait(gen, interval, self.limit_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self.has_timed_out = True
                self.close()  # whatever comes later is not read
            raise

    @property
    def is_yugabyte(self) -> bool:
        """Whether YugabyteDB answers."""
        return yugabyte.is_yugabyte(self.pgconn.parameter_status(b"server_version"))

    @contextmanager
    def warnings(self) -> Generator[list[str]]:
        """Yield the list of the warnings that the server sends in the block."""
        found: list[str] = []

        def note(notice: psycopg.errors.Diagnostic) -> None:
            # At once: what it reads from is gone when the driver returns.
            if notice.severity_nonlocalized == "WARNING":
                found.append(notice.message_primary or "a warning without a text")

        self.add_notice_handler(note)
        try:
            yield found
        finally:
            self.remove_notice_handler(note)

    @property
    def is_lost(self) -> bool:
        """Whether nothing more will come over this connection."""
        return self.closed or self.pgconn.status == pq.ConnStatus.BAD

    @property
    def is_at_standby(self) -> bool:
        """Whether the server says that it only follows another one."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"


class Hosts:
    """The hosts that a URL names, and which of them is asked first.

    A primary that was replaced may go on and say that it takes writes, and one whose machine is
    gone costs everybody who asks it first the time limit of a connection.
    """

    def __init__(self, url: DatabaseUrl) -> None:
        """Begin with the order of the URL.

        Raises:
            StoreUnusableError: The URL is none.
        """
        given = _given(url)
        lists = {name: given.get(name, "").split(",") for name in ("host", "hostaddr", "port")}
        self._lists = {name: values for name, values in lists.items() if len(values) > 1}
        self._first = 0

    def options(self) -> dict[str, str]:
        """Return the options of a connection that name the hosts, in the order of asking."""
        first = self._first
        return {
            name: ",".join((*values[first:], *values[:first]))
            for name, values in self._lists.items()
        }

    def skip(self) -> None:
        """Ask the next one first: this one does not do what a primary does."""
        self._first = (self._first + 1) % max(map(len, self._lists.values()), default=1)

    def prefer(self, connection: "Connection") -> None:
        """Ask the one first that a connection has led to."""
        info = connection.info
        reached = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port)}
        # A port that stands for all hosts says nothing about them, and is no list.
        candidates = zip(*self._lists.values(), strict=False)
        for number, values in enumerate(candidates):
            if all(
                not value or reached[name] == value
                for name, value in zip(self._lists, values, strict=True)
            ):
                self._first = number
                return


class Connector:
    """Opens connections to one database, and refuses those that cannot keep the promises."""

    def __init__(
        self,
        url: DatabaseUrl,
        hosts: Hosts | None = None,
        *,
        limit_s: float | None,
        lock_limit_s: float,
        plans_once: bool = False,
    ) -> None:
        """Prepare to open connections.

        Args:
            url: The database.
            hosts: Which host is asked first, where that changes.
            limit_s: How long a statement may take, in seconds; None for ever, and to wait for
                others as long.
            lock_limit_s: How long a statement may wait for another transaction.
            plans_once: Whether statements are planned once, whatever their values: planning one
                for a few keys costs the server several times what its execution does.

        Raises:
            StoreUnusableError: The way to the database is not safe.
        """
        self._url = url
        self._limit_s = limit_s
        self._lock_limit_s = lock_limit_s
        plans = {"plan_cache_mode": "force_generic_plan"} if plans_once else {}
        self._conninfo = _conninfo(url, limit_s, lock_limit_s, plans)
        self._hosts = hosts or Hosts(url)

    def open(self) -> Connection:
        """Open a connection.

        Raises:
            StoreLockedError: The database cannot be reached, or does not take writes.
            StoreUnusableError: It does not keep what it is told.
        """
        try:
            password = self._url.secret()
        except OSError as error:
            raise StoreLockedError(
                f"database_password_file: {error.filename}: {error.strerror}"
            ) from error
        try:
            connection = Connection.connect(
                make_conninfo(self._conninfo, **self._hosts.options()),
                password=password or None,
                autocommit=True,
                cursor_factory=psycopg.RawCursor,
            )
        except psycopg.Error as error:
            raise store_error(error) from error
        try:
            connection.limit_s = connection.usual_limit_s = self._limit_s
            connection.prepare_threshold = _ALWAYS_PREPARE
            connection.adapters.register_dumper(int, Int8Dumper)
            self._check(connection)
            self._hosts.prefer(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, psycopg.Error):
                raise store_error(error) from error
            raise
        return connection

    def _check(self, connection: Connection) -> None:
        if connection.is_yugabyte:
            yugabyte.prepare(connection)
        follows, durability, *limits, history, started = _settings(connection)
        if follows or connection.is_at_standby:
            raise StoreLockedError("the database is a standby, which takes no writes")
        connection.history = history
        connection.server = f"{history}/{started}"
        if self._limit_s is not None and "0" in limits:
            # A pooler that drops start-up options, as in transaction mode.
            raise StoreUnusableError(
                "the database does not keep the time limits it was given; connect directly or to a "
                "pooler in session mode"
            )
        if durability not in _DURABLE:
            connection.execute("SET synchronous_commit = on")
            if _settings(connection)[1] not in _DURABLE:
                raise StoreUnusableError("the database does not take synchronous_commit = on")


def _settings(connection: Connection) -> rows.Row:
    history = "''" if connection.is_yugabyte else HISTORY
    found = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('synchronous_commit'),"
        " current_setting('statement_timeout'), current_setting('lock_timeout'),"
        " current_setting('idle_in_transaction_session_timeout'),"
        f" {history}, pg_postmaster_start_time()::text"
    ).fetchone()
    return found or ()


def _conninfo(
    url: DatabaseUrl, limit_s: float | None, lock_limit_s: float, more: Mapping[str, str]
) -> str:
    given = _given(url)
    known = {**_options_of(pq.Conninfo.get_defaults()), **given}
    limits = {
        "statement_timeout": limit_s,
        "lock_timeout": lock_limit_s,
        "idle_in_transaction_session_timeout": _IDLE_LIMIT_S,
    }
    settings = {
        name: "0" if limit_s is None or value is None else str(max(1, int(value * 1000)))
        for name, value in limits.items()
    }
    options = " ".join(f"-c {name}={value}" for name, value in {**settings, **more}.items())
    defaults = {
        "connect_timeout": _CONNECT_LIMIT_S,
        "tcp_user_timeout": _LONG_UNANSWERED_MS if limit_s is None else _UNANSWERED_MS,
        "target_session_attrs": "read-write",
        "application_name": "keybearer",
    }
    wanted: dict[str, Any] = {name: value for name, value in defaults.items() if name not in given}
    if not _is_local(known):
        mode = known.get("sslmode", _DEFAULT_MODE)
        if mode == _DEFAULT_MODE and "sslmode" not in given:
            wanted["sslmode"] = _SAFE_MODE
        elif mode != _SAFE_MODE and not url.is_insecure:
            raise StoreUnusableError(
                f"database: sslmode={_SAFE_MODE} is needed on the way to another machine; with "
                f"{mode} nothing proves which server answers. --insecure-database allows it"
            )
    wanted["options"] = f"{known.get('options', '')} {options}".strip()
    return make_conninfo(url.text, **wanted)


def _given(url: DatabaseUrl) -> dict[str, str]:
    try:
        return _options_of(pq.Conninfo.parse(url.text.encode()))
    except psycopg.Error as error:
        raise StoreUnusableError(f"database: {error}") from None


def _options_of(found: Sequence[pq.ConninfoOption]) -> dict[str, str]:
    return {one.keyword.decode(): one.val.decode() for one in found if one.val}


def _is_local(known: dict[str, str]) -> bool:
    hosts = f"{known.get('host', '')},{known.get('hostaddr', '')}".split(",")
    return all(not host or host.startswith(("/", "@")) or is_loopback(host) for host in hosts)


class Pool:
    """Connections that nobody uses at the moment. Safe for use by many threads.

    The last one that came back is taken first, so that there are as many as are used at a time.
    """

    def __init__(self, open_one: Callable[[], Connection]) -> None:
        self._open = open_one
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._lock = threading.Lock()
        self.is_closed = False

    def take(self) -> Connection:
        """Return a connection that is the caller's until it gives it back or drops it.

        Raises:
            StoreClosedError: The pool is closed.
            StoreLockedError, StoreUnusableError: None can be opened.
        """
        try:
            return self._idle.pop()
        except IndexError:
            return self.new()

    def new(self) -> Connection:
        """Open a connection.

        Raises:
            StoreClosedError, StoreLockedError, StoreUnusableError: As `take`.
        """
        self.assert_open()
        connection = self._open()
        with self._lock:
            self._all.add(connection)
        if self.is_closed:
            self.drop(connection)
            self.assert_open()
        return connection

    def give(self, connection: Connection) -> None:
        """Take a connection back; one that is no longer of use is closed."""
        if (
            self.is_closed
            or connection.is_lost
            or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE
        ):
            self.drop(connection)
        else:
            connection.limit_s = connection.usual_limit_s
            self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        with self._lock:
            self._all.discard(connection)
        connection.close()

    def drop_idle(self) -> None:
        """Close every connection that nobody uses: a lost one is seldom alone."""
        with suppress(IndexError):
            while True:
                self.drop(self._idle.pop())

    def assert_open(self) -> None:
        """Raise StoreClosedError when the pool is closed."""
        if self.is_closed:
            raise StoreClosedError("the store is closed")

    def close(self) -> None:
        """Close every connection; a statement that still runs on one fails."""
        self.is_closed = True
        with self._lock:
            connections = list(self._all)
            self._all.clear()
        self._idle.clear()
        for connection in connections:
            connection.close()
