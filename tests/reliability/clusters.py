"""Several nodes over one database on PostgreSQL, each in a process and a directory of its own."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import postgres_server
from keybearer_service.net.database_url import DatabaseUrl
from reliability.processes import ServerProcess, command, init, serving


class Cluster(NamedTuple):
    """A database, and the directories of the nodes over it."""

    url: DatabaseUrl
    directories: tuple[Path, Path]
    token: str

    def serve(self, node: int) -> ServerProcess:
        """Start a node."""
        process = ServerProcess(self.directories[node], flags=("--database", self.url.text))
        process.wait_until_serving()
        return process


@contextmanager
def cluster_in(path: Path, init: Callable[..., Any] = command) -> Iterator[Cluster]:
    """Make an installation, and a second directory with its key files.

    Args:
        path: Where the directories are made.
        init: Runs a command of the version that makes the installation.
    """
    url = postgres_server.new_database(is_empty=True)
    first, second = path / "first", path / "second"
    done = init(
        *("init", "--data-dir", str(first), "--database", url.text),
        *("--account", "operator", "--admin-email", "admin@example.com", "--output", "json"),
    )
    assert done.returncode == 0, done.stderr
    second.mkdir(mode=0o700)
    shutil.copytree(first / "peppers", second / "peppers")
    yield Cluster(url, (first, second), json.loads(done.stdout)["token"])
    postgres_server.drop_database(url)


class Served(NamedTuple):
    """A service that is called from outside."""

    servers: Sequence[ServerProcess]
    """One over a file, or several nodes over a database."""
    token: str
    """The first administrator's."""


SERVED = ("one server", "two nodes")
"""What `served` can be asked for."""


@contextmanager
def served(kind: str, path: Path) -> Iterator[Served]:
    """Serve an installation as one of SERVED."""
    if kind == "one server":
        token = init(path / "data")["token"]
        with serving(path / "data") as server:
            yield Served([server], token)
    else:
        with cluster_in(path) as cluster, two_nodes(cluster) as nodes:
            yield Served(nodes, cluster.token)


@contextmanager
def two_nodes(cluster: Cluster) -> Iterator[list[ServerProcess]]:
    """Serve with both."""
    with ExitStack() as stack:
        started = []
        for number in range(2):
            started.append(cluster.serve(number))
            stack.callback(started[-1].close)
        yield started
