"""Three PostgreSQL servers with Patroni and etcd, set up by the file that is documented."""

import functools
import json
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Final

import psycopg
import yaml

from failover.machines import Machine

FILE: Final = Path(__file__).parents[2] / "deploy" / "postgresql-ha" / "patroni.yml"
DATABASE: Final = "keybearer"
OWNER: Final = "keybearer"
PATIENCE_S: Final = 90.0
TIMES: Final[Mapping[str, int]] = {"ttl": 6, "loop_wait": 1, "retry_timeout": 2}
"""What this suite waits less than the file says."""
_ROUND: Final = 0.1
_CONNECT_S: Final = 2
_STANDBYS: Final = (
    "SELECT count(*), count(*) FILTER (WHERE sync_state IN ('sync', 'quorum'))"
    " FROM pg_stat_replication WHERE state = 'streaming'"
)


def until(what: str, is_so: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It is not.
    """
    pause = threading.Event()
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience_s:.0f} s: {what}")
        pause.wait(_ROUND)


@functools.cache
def is_old_manager() -> bool:
    """Return whether Patroni is older than 3.0.3, of which the file says how to use it."""
    told = subprocess.run(["patroni", "--version"], check=True, capture_output=True, text=True)
    return tuple(map(int, re.findall(r"\d+", told.stdout)[:3])) < (3, 0, 3)


class DatabaseServer:
    """A machine with PostgreSQL, its manager and a member of etcd."""

    def __init__(
        self, machine: Machine, peers: Mapping[str, str], logs: Path, dcs: Mapping[str, Any]
    ) -> None:
        """Prepare it.

        Args:
            machine: Where it runs.
            peers: The inner addresses of all three, by name.
            logs: Where its programs write their logs.
            dcs: Settings of all three that differ from the file.
        """
        self.machine = machine
        self.name = machine.name
        self._peers = peers
        self._logs = logs
        self._file = machine.directory / "patroni.yml"
        self._file.write_text(yaml.safe_dump(self._configuration(dcs)))
        subprocess.run(["chown", "-R", "nobody:nogroup", str(machine.directory)], check=True)

    def _configuration(self, dcs: Mapping[str, Any]) -> dict[str, Any]:
        read: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
        here, inner = self.machine.directory, self.machine.inner_address
        read["name"] = self.name
        read["restapi"]["connect_address"] = f"{inner}:8008"
        own_first = sorted(self._peers, key=lambda name: name != self.name)
        if is_old_manager():
            read["etcd"] = read.pop("etcd3")
        section = "etcd" if is_old_manager() else "etcd3"
        read[section]["hosts"] = [f"{self._peers[name]}:2379" for name in own_first]
        read["bootstrap"]["dcs"] |= {**TIMES, **dcs}
        ours = read["postgresql"]
        ours["connect_address"] = f"{inner}:5432"
        ours["data_dir"] = str(here / "data")
        ours["pgpass"] = str(here / "pgpass")
        # No keys and no passwords on a network that exists in this process alone.
        ours["parameters"] = {
            "unix_socket_directories": str(here),
            "fsync": "on",
            "shared_buffers": "32MB",
        }
        ours["pg_hba"] = [
            "local all all trust",
            "host all all all trust",
            "host replication all all trust",
        ]
        del read["watchdog"]
        return read

    def start(self) -> None:
        """Start its programs."""
        inner = self.machine.inner_address
        members = ",".join(f"{name}=http://{at}:2380" for name, at in self._peers.items())
        self.machine.start(
            self._logs / f"{self.name}-etcd.log",
            "etcd",
            f"--name={self.name}",
            f"--data-dir={self.machine.directory / 'etcd'}",
            f"--listen-peer-urls=http://{inner}:2380",
            f"--initial-advertise-peer-urls=http://{inner}:2380",
            f"--listen-client-urls=http://{inner}:2379",
            f"--advertise-client-urls=http://{inner}:2379",
            f"--initial-cluster={members}",
            "--enable-v2=true",
            "--log-level=warn",
            "--logger=zap",
        )
        self.start_manager()

    def start_manager(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        self.machine.start(self._logs / f"{self.name}-patroni.log", "patroni", str(self._file))

    def kill(self) -> None:
        """Kill everything on it."""
        self.machine.send(SIGKILL)

    def freeze(self, *names: str) -> None:
        """Stop programs of these names in the middle of what they do."""
        self.machine.send(SIGSTOP, *names)

    def thaw(self) -> None:
        """Have everything go on."""
        self.machine.send(SIGCONT)

    def query(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Return the rows of a statement, asked of this server.

        Raises:
            psycopg.Error: It does not answer.
        """
        with psycopg.connect(
            host=self.machine.address,
            dbname=database,
            user="postgres",
            connect_timeout=_CONNECT_S,
            autocommit=True,
            options="-c statement_timeout=5000",
        ) as connection:
            return connection.execute(statement.encode()).fetchall()

    @property
    def takes_writes(self) -> bool:
        """Whether it says that it is the primary."""
        try:
            return self.query("SELECT NOT pg_is_in_recovery()") == [(True,)]
        except psycopg.Error:
            return False

    def roles(self) -> list[str]:
        """Return the roles that the managers have agreed upon, as this one's manager knows them."""
        try:
            with urllib.request.urlopen(
                f"http://{self.machine.address}:8008/cluster", timeout=_CONNECT_S
            ) as answer:
                return [one["role"] for one in json.load(answer)["members"]]
        except OSError:
            return []

    def standbys(self) -> tuple[int, int]:
        """Return how many standbys follow it, and how many of them commits wait for."""
        try:
            [(all_of_them, synchronous)] = self.query(_STANDBYS)
        except psycopg.Error:
            return 0, 0
        return all_of_them, synchronous


class Trio:
    """The three."""

    def __init__(self, logs: Path, **dcs: Any) -> None:
        machines = [Machine(f"db{number}", number, is_server=True) for number in (1, 2, 3)]
        peers = {one.name: one.inner_address for one in machines}
        self.servers = [DatabaseServer(one, peers, logs, dcs) for one in machines]
        self._is_synchronous = dcs.get("synchronous_mode", True)
        for server in self.servers:
            server.start()
        until("three servers, one of them the primary", self.is_whole)
        primary = self.primary()
        # CREATE DATABASE cannot be sent together with another statement.
        for statement in (
            f"CREATE ROLE {OWNER} LOGIN",
            f"CREATE DATABASE {DATABASE} OWNER {OWNER}",
        ):
            with psycopg.connect(
                host=primary.machine.address, dbname="postgres", user="postgres", autocommit=True
            ) as connection:
                connection.execute(statement.encode())

    def primary(self) -> DatabaseServer:
        """Return the one that takes writes; it must be alone."""
        [found] = [one for one in self.servers if one.takes_writes]
        return found

    def is_whole(self) -> bool:
        """Return whether there is one primary, which both others follow, and may be replaced by."""
        writable = [one for one in self.servers if one.takes_writes]
        wanted = (2, 1) if self._is_synchronous else (2, 0)
        if len(writable) != 1 or writable[0].standbys() != wanted:
            return False
        replica = "sync_standby" if self._is_synchronous else "replica"
        return replica in writable[0].roles()

    def url(self, *, turned: bool = False) -> str:
        """Return the URL of the database, with all hosts, in one order or the other."""
        hosts = [one.machine.address for one in self.servers]
        named = ",".join(f"{host}:5432" for host in (reversed(hosts) if turned else hosts))
        return f"postgresql://{OWNER}@{named}/{DATABASE}?sslmode=disable"
