"""Changes a second over PostgreSQL: `python -m bench.changes` from tests/.

One node and its callers in this process, the database behind the proxy of the tests, with and
without half a millisecond more for each round trip. What the proxy itself costs is shown too: the
time of an empty statement through it, less that of one beside it.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import postgres_server
from harness import Service, Stubs, running
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import Store
from keybearer_service.storage.postgres import PostgresStore
from postgres_proxy import Proxy

CALLERS = (1, 8, 16)
DELAYS_S = (0.0, 0.0005)
SECONDS = 5.0
STATEMENTS = 500


class Behind:
    """Opens stores behind a proxy."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self.proxy: Proxy | None = None

    def __call__(self, location: Path | DatabaseUrl, *, shared: bool = False) -> Store:
        assert isinstance(location, DatabaseUrl)
        assert not shared
        self.proxy = Proxy(location, delay_s=self._delay_s)
        self.proxy.open()
        return PostgresStore(self.proxy.url, clock=SystemClock(), entropy=SystemEntropy())


def changes_a_second(service: Service, callers: int) -> float:
    """Have callers make keys one after another, and return how many were made a second."""
    made = [0] * callers
    ends_at = time.monotonic() + SECONDS

    def call(number: int, stubs: Stubs) -> None:
        while time.monotonic() < ends_at:
            stubs.create_key()
            made[number] += 1

    stubs = [service.as_token(service.admin_token) for _ in range(callers)]
    for one in stubs:
        one.who_am_i()
    threads = [threading.Thread(target=call, args=one) for one in enumerate(stubs)]
    began_at = time.monotonic()
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


def measured(delay_s: float, show: Callable[[str], None]) -> None:
    """Measure with one delay."""
    behind = Behind(delay_s)
    with tempfile.TemporaryDirectory() as directory:
        clock, entropy = SystemClock(), SystemEntropy()
        path = Path(directory) / "data"
        with running(path, clock, entropy, on_postgres=True, opener=behind) as service:
            assert behind.proxy is not None
            assert service.data_dir.url is not None
            beside = round_trip_s(service.data_dir.url.text)
            through = round_trip_s(behind.proxy.url.text)
            show(f"delay {delay_s * 1000:.1f} ms: proxy {1e6 * (through - beside):.0f} us")
            for callers in CALLERS:
                show(f"  {callers:2} callers: {changes_a_second(service, callers):.0f} a second")
        behind.proxy.close()


def main() -> None:
    """Measure everything."""
    postgres_server.server()
    for delay_s in DELAYS_S:
        measured(delay_s, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
