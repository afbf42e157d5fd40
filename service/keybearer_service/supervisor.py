"""Serving processes: one that serves, or one that looks after several which share the port.

A process ends on SIGTERM or SIGINT with exit code 0 and nothing lost, or by itself with
EXIT_OUTCOME_UNKNOWN when a commit failed and only a fresh process can tell what happened.
"""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import Empty, SimpleQueue
from typing import cast

import structlog

from keybearer_service.app import App, AppConfig
from keybearer_service.config import ConfigError, Settings
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.tls import TlsFiles
from keybearer_service.storage import dbapi
from keybearer_service.telemetry import logs, metrics

log = structlog.get_logger(__name__)

EXIT_OUTCOME_UNKNOWN = 3
"""A commit failed: start again, recovery decides."""
EXIT_UNRESPONSIVE = 4
"""The process no longer answered, and ended itself so that it is started again."""
RESTART_DELAY_S = 1.0
"""Between the end of a worker and its replacement, so that one that cannot start does not spin."""


def serve(settings: Settings, on_serving: Callable[[str], None] = lambda _address: None) -> int:
    """Serve an installation until the end; answer the exit code.

    Args:
        settings: What to serve, where and how.
        on_serving: Told the address once it is listened on, with the port that was taken.

    Raises:
        ConfigError, DataDirError, StoreError, KeyringError, TlsError, ListenError, RuleError: It
            cannot start; the text says why.
    """
    directory = DataDir(settings.data_dir)
    directory.assert_initialised()
    if settings.workers > 1 and dbapi.has_wal_reset_bug():
        raise ConfigError(
            f"workers: this SQLite ({'.'.join(map(str, dbapi.VERSION))}) can damage a database "
            "that several processes write; install pysqlite3, or serve with one"
        )
    with directory.locked():
        if settings.workers == 1:
            return _serve_alone(settings, settings.listen, on_serving, shared=False)
        with ExitStack() as ports:
            address = ports.enter_context(_reserved(settings.listen))
            http = {
                name: ports.enter_context(_reserved(wanted))
                for name in ("http_listen", "metrics_listen")
                if (wanted := getattr(settings, name)) is not None
            }
            if http:
                # Read by prometheus_client when a worker imports it.
                os.environ.update(metrics.prepare(directory.metrics))
            on_serving(address)
            return _Supervisor(settings.model_copy(update=http), directory, address).run()


def _serve_alone(
    settings: Settings, address: str, on_serving: Callable[[str], None], *, shared: bool
) -> int:
    if not shared and not address.startswith("unix:"):
        _assert_free(address)
    # Put into by signal handlers and by threads; unlike an Event it may be used in both.
    ends: SimpleQueue[int] = SimpleQueue()
    _on_end_signal(lambda: ends.put(0))
    if shared:
        _on_end_of_supervisor(lambda: ends.put(0))
    service = App(
        AppConfig(
            data_dir=DataDir(settings.data_dir),
            listener=Listener(address=address, tls=settings.tls, share_port=shared),
            http=_http(settings, shared=shared),
            reflection=settings.reflection,
            shared=shared,
        ),
        on_fatal=lambda: ends.put(EXIT_OUTCOME_UNKNOWN),
        # Nothing in this process can be trusted to end it in order any more.
        on_unresponsive=lambda: os._exit(EXIT_UNRESPONSIVE),
    )
    service.start()
    on_serving(_with_port(address, service.port))
    code = _first_of(ends)
    if code == EXIT_OUTCOME_UNKNOWN:
        # Whatever this process believes of the store may be wrong now: answer what is in flight,
        # write nothing more, and let recovery at the next start tell what happened.
        service.abandon()
    else:
        service.stop()
    return code


def _first_of(ends: SimpleQueue[int]) -> int:
    # The system may give a signal to any thread, and then nothing interrupts the wait of this one,
    # which alone runs handlers: so it is a short one, again and again.
    while True:
        with suppress(Empty):
            return ends.get(timeout=0.2)


def _http(settings: Settings, *, shared: bool) -> HttpConfig:
    def listener(address: str | None, tls: TlsFiles | None) -> Listener | None:
        return None if address is None else Listener(address=address, tls=tls, share_port=shared)

    return HttpConfig(
        gateway=listener(settings.http_listen, settings.tls),
        metrics=listener(settings.metrics_listen, settings.tls_of_metrics),
        accounts=settings.http_account,
        is_open=settings.http_open,
    )


def _with_port(address: str, port: int) -> str:
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _on_end_signal(tell: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: tell())


def _on_end_of_supervisor(tell: Callable[[], None]) -> None:
    # A supervisor that was killed tells nobody, and workers that nobody looks after must not serve.
    def wait_for_it() -> None:
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            supervisor.join()
            tell()

    threading.Thread(target=wait_for_it, name="supervisor", daemon=True).start()


# --- several processes ----------------------------------------------------------------------------


class _Supervisor:
    """Keeps workers running until it is told to end, and ends them in order."""

    def __init__(self, settings: Settings, directory: DataDir, address: str) -> None:
        self._settings = settings
        self._directory = directory
        self._address = address
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._workers: list[SpawnProcess] = []
        # A plain flag: the signal handler that sets it runs between two steps of this very thread,
        # which may hold the lock of anything better.
        self._ending = False

    def run(self) -> int:
        _on_end_signal(self._end)
        self._workers = [self._start() for _ in range(self._settings.workers)]
        log.info("supervising", workers=len(self._workers), address=self._address)
        while not self._ending:
            # A signal does not interrupt the wait of a thread, so it is a short one.
            wait([worker.sentinel for worker in self._workers], timeout=0.2)
            self._replace_the_dead()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()
        # One that was told to end before it could listen for that is told by the signal itself.
        told = (0, -signal.SIGTERM)
        return int(any(worker.exitcode not in told for worker in self._workers))

    def _replace_the_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.is_alive() or self._ending:
                continue
            log.error("worker_ended", pid=worker.pid, exit_code=worker.exitcode)
            metrics.forget(self._directory.metrics, worker.pid or 0)
            threading.Event().wait(RESTART_DELAY_S)  # one that nobody sets
            if not self._ending:
                self._workers[index] = self._start()

    def _end(self) -> None:
        self._ending = True

    def _start(self) -> SpawnProcess:
        worker = self._context.Process(
            target=_work, args=(self._settings.model_dump(), self._address), daemon=False
        )
        worker.start()
        return worker


def _work(values: dict[str, object], address: str) -> None:
    settings = Settings.model_validate(values)
    logs.configure(settings.log_level, json=settings.log_format == "json")
    with DataDir(settings.data_dir).working():
        raise SystemExit(_serve_alone(settings, address, lambda _address: None, shared=True))


@contextmanager
def _reserved(address: str) -> Iterator[str]:
    """Hold a port for the workers, so that all get the same and nobody else gets it.

    The socket never listens, so the kernel gives it no connection.

    Raises:
        ConfigError: A Unix socket, which processes cannot share.
        ListenError: The port is in use, or not to be had.
    """
    if address.startswith("unix:"):
        raise ConfigError("workers: a unix socket cannot be shared; listen on a port")
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            _refuse_if_taken(family, name, int(port))
            holder.bind((name, int(port)))
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
        yield f"{host}:{cast('int', holder.getsockname()[1])}"


def _assert_free(address: str) -> None:
    """Refuse a port that somebody listens on, before grpc finds out and logs it in its own way.

    Raises:
        ListenError: The port is in use, or not to be had.
    """
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    try:
        _refuse_if_taken(socket.AF_INET6 if ":" in name else socket.AF_INET, name, int(port))
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None


def _refuse_if_taken(family: int, name: str, port: int) -> None:
    # Without SO_REUSEPORT, which would let us in beside a stranger that has set it too.
    if port:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((name, port))
