"""Changes a second over PostgreSQL: `python -m bench.changes` from tests/.

One node, the proxy of the tests and the callers are a process each. The database is behind the
proxy, with and without half a millisecond more for each round trip. What the proxy itself costs is
shown too: the time of an empty statement through it, less that of one beside it.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import postgres_server
from bench.scaling import database_cpu_s
from bench.servers import Target
from harness import Stubs
from keybearer_service.net.database_url import DatabaseUrl
from postgres_proxy import Proxy
from reliability.clusters import Cluster, cluster_in
from reliability.processes import ServerProcess

CALLERS = (1, 8, 16)
DELAYS_S = (0.0, 0.0005)
SECONDS = 5.0
STATEMENTS = 500


def _run_proxy(url: str, delay_s: float, told: Connection) -> None:
    with Proxy(DatabaseUrl(text=url), delay_s=delay_s) as proxy:
        told.send(proxy.url.text)
        told.recv()


@contextmanager
def proxy_before(url: str, delay_s: float) -> Iterator[str]:
    """Run a proxy in a process of its own; yield the URL that leads through it."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run_proxy, args=(url, delay_s, its)
    )
    process.start()
    yield ours.recv()
    ours.send("end")
    process.join()


def changes_a_second(stubs: list[Stubs]) -> float:
    """Have callers make keys one after another, and return how many were made a second."""
    made = [0] * len(stubs)
    for one in stubs:
        one.who_am_i()
    began_at = time.monotonic()
    ends_at = began_at + SECONDS

    def call(number: int, one: Stubs) -> None:
        while time.monotonic() < ends_at:
            one.create_key()
            made[number] += 1

    threads = [threading.Thread(target=call, args=one) for one in enumerate(stubs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(made) / (time.monotonic() - began_at)


def round_trip_s(url: str) -> float:
    """Return how long an empty statement takes."""
    import psycopg  # noqa: PLC0415 - only this needs it

    with psycopg.connect(url, autocommit=True) as connection:
        began_at = time.monotonic()
        for _ in range(STATEMENTS):
            connection.execute("")
        return (time.monotonic() - began_at) / STATEMENTS


def measured(
    cluster: Cluster, delay_s: float, cpu_s: Callable[[], float], show: Callable[[str], None]
) -> None:
    """Measure with one delay."""
    direct = cluster.url.text
    with proxy_before(direct, delay_s) as through:
        added = round_trip_s(through) - round_trip_s(direct)
        show(f"delay {delay_s * 1000:.1f} ms: the proxy adds {1e6 * added:.0f} us to a round trip")
        node = ServerProcess(cluster.directories[0], flags=("--database", through))
        node.wait_until_serving()
        target = Target(0, node.pid)
        for callers in CALLERS:
            before = target.cpu_seconds(), cpu_s()
            rate = changes_a_second([node.stubs(cluster.token) for _ in range(callers)])
            ours, database = target.cpu_seconds() - before[0], cpu_s() - before[1]
            each = 1e3 / (rate * SECONDS)
            show(
                f"  {callers:2} callers: {rate:.0f} a second; processor time of each: keybearer"
                f" {ours * each:.1f} ms, the database {database * each:.1f} ms"
            )
        node.close()


def main() -> None:
    """Measure everything."""
    running = postgres_server.server()
    assert isinstance(running, postgres_server.Server)
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as directory, cluster_in(Path(directory)) as cluster:
        for delay_s in DELAYS_S:
            measured(
                cluster,
                delay_s,
                lambda: database_cpu_s(running.process.pid),
                lambda line: print(line, flush=True),
            )


if __name__ == "__main__":
    main()
