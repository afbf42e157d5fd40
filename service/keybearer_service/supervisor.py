"""Serving processes: one that serves, or one that supervises several which share the port.

A process ends on SIGTERM, SIGINT or SIGHUP with exit code 0 and nothing lost, or by itself with
EXIT_OUTCOME_UNKNOWN when a commit failed and only a fresh process can find out what happened.
"""

import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import Empty, SimpleQueue

import structlog

from keybearer_service.app import App, AppConfig
from keybearer_service.config import ConfigError, Settings
from keybearer_service.container import open_container
from keybearer_service.domain.clock import SystemClock, pause
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.ownership import give
from keybearer_service.net import descriptors
from keybearer_service.net.addresses import Address, Listener, ListenError
from keybearer_service.net.bounds import GRPC, HTTP
from keybearer_service.net.tls import TlsFiles
from keybearer_service.net.unix_sockets import UnixSocketFile
from keybearer_service.storage import ProofMode, files
from keybearer_service.telemetry import logs, metrics
from keybearer_service.usecases.quotas import Quotas

log = structlog.get_logger(__name__)

EXIT_OUTCOME_UNKNOWN = 3
"""A commit failed: recovery at the next start decides."""
EXIT_UNRESPONSIVE = 4
"""The process no longer answered, and ended itself so that it is started again."""
RESTART_DELAY_S = 1.0
"""Between the end of a worker and its replacement, so that one that cannot start does not spin."""

END_TIMEOUT_S = 25.0
"""How long workers may take to end before they are killed; below the 30 s of Kubernetes."""

_PACKAGES_OF_CONSOLE = ("jinja2", "joserfc", "httpx2")

OnServing = Callable[[Address, str], None]
"""Is called with the address and with that of the console, which is empty without one."""


def _ignore(_address: Address, _console: str) -> None:
    """Say it to nobody."""


def serve(settings: Settings, on_serving: OnServing = _ignore) -> int:
    """Serve an installation until the end, and return the exit code.

    Args:
        settings: What to serve, where and how.
        on_serving: Called once the server listens, with the ports that were taken.

    Raises:
        ConfigError, DataDirError, StoreError, KeyringError, TlsError, ListenError, RuleError: It
            cannot start; the text names the reason.
    """
    directory = DataDir(settings.data_dir, settings.database_url)
    directory.assert_initialised()
    directory.assert_writable()
    hazard = files.sharing_hazard()
    if settings.workers > 1 and directory.url is None and hazard is not None:
        raise ConfigError(f"workers: {hazard}, or serve with one worker")
    if settings.console_listen is not None and any(
        importlib.util.find_spec(one) is None for one in _PACKAGES_OF_CONSOLE
    ):
        raise ConfigError(
            "console_listen: the console needs more packages; run: "
            "pip install 'keybearer[server,console]'"
        )
    descriptors.raise_limit()
    with directory.locked():
        if settings.workers == 1:
            return _serve_alone(settings, settings.listen, on_serving, shared=False)
        with ExitStack() as ports:
            address = ports.enter_context(_reserved(settings.listen))
            http = {
                name: ports.enter_context(_reserved(wanted))
                for name in ("http_listen", "metrics_listen", "console_listen")
                if (wanted := getattr(settings, name)) is not None
            }
            if settings.http_listen or settings.metrics_listen:
                # Read by prometheus_client when a worker imports it.
                os.environ.update(metrics.prepare(directory.metrics))
                give(directory.metrics)
            settings = settings.model_copy(update=http)
            on_serving(address, settings.console_origin)
            return _Supervisor(settings, directory, address).run()


def _serve_alone(
    settings: Settings, address: Address, on_serving: OnServing, *, shared: bool
) -> int:
    # Put into by signal handlers and by threads; unlike an Event it may be used in both.
    ends: SimpleQueue[int] = SimpleQueue()
    _on_end_signal(lambda: ends.put(0))
    if shared:
        _on_end_of_supervisor(lambda: ends.put(0))
    with _listening(settings, address, shared=shared) as place:
        http = _http(settings, shared=shared)
        container = open_container(
            DataDir(settings.data_dir, settings.database_url),
            SystemClock(),
            SystemEntropy(),
            shared=shared,
            with_metrics=http.is_served,
            quotas=Quotas(keys=settings.max_keys_per_account, users=settings.max_users_per_account),
        )
        service = App(
            container,
            AppConfig(
                listener=Listener(
                    address=place.address if place else address,
                    tls=settings.tls,
                    share_port=shared,
                ),
                bounds=replace(GRPC, connections=settings.max_connections),
                http=http,
                reflection=settings.reflection,
                hot_loop=settings.hot_loop,
                database_proof=ProofMode(settings.database_proof),
            ),
            on_fatal=lambda: ends.put(EXIT_OUTCOME_UNKNOWN),
            on_unresponsive=_end_unresponsive,
        )
        if place is not None:
            place.publish()
        service.start()
        on_serving(address.with_port(service.port), service.console_origin)
        code = _first_of(ends)
        if code == EXIT_OUTCOME_UNKNOWN:
            # Whatever this process believes of the store may be wrong now: answer what is in
            # flight, write nothing more, and let recovery at the next start find out what happened.
            service.abandon()
        else:
            service.stop()
        return code


def _end_unresponsive() -> None:
    # Nothing in this process can be trusted to end it in order any more but the thread of the log.
    logging.shutdown()
    os._exit(EXIT_UNRESPONSIVE)


@contextmanager
def _listening(
    settings: Settings, address: Address, *, shared: bool
) -> Iterator[UnixSocketFile | None]:
    """Refuse an address that is taken; for a Unix socket, hold its place and clear it afterwards.

    Raises:
        ListenError: The address is in use, or cannot be bound.
    """
    if not address.is_unix:
        if not shared:
            _assert_free(address)
        yield None
        return
    place = UnixSocketFile(address, int(settings.unix_socket_mode, 8))
    try:
        yield place
    finally:
        place.remove()


def _first_of(ends: SimpleQueue[int]) -> int:
    # The system may give a signal to any thread, and then nothing interrupts the wait of this one,
    # which alone runs handlers: so it is a short one, again and again.
    while True:
        with suppress(Empty):
            return ends.get(timeout=0.2)


def _http(settings: Settings, *, shared: bool) -> HttpConfig:
    def listener(address: Address | None, tls: TlsFiles | None) -> Listener | None:
        return None if address is None else Listener(address=address, tls=tls, share_port=shared)

    return HttpConfig(
        gateway=listener(settings.http_listen, settings.tls),
        metrics=listener(settings.metrics_listen, settings.tls_of_metrics),
        console=listener(settings.console_listen, settings.tls),
        console_url=settings.console_url,
        sign_in=settings.sign_in,
        gateway_bounds=replace(
            HTTP,
            connections=settings.http_max_connections,
            connections_of_one_peer=settings.http_max_connections_per_peer,
        ),
        accounts=settings.http_account,
        is_open=settings.http_open,
    )


def _on_end_signal(end: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # `nohup` asks for SIGHUP to be ignored, and it stays so.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: end())


def _on_end_of_supervisor(end: Callable[[], None]) -> None:
    # A supervisor that is killed sends no signal, and workers must not serve unsupervised.
    def wait_for_it() -> None:
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            supervisor.join()
            end()

    threading.Thread(target=wait_for_it, name="supervisor", daemon=True).start()


# --- several processes ----------------------------------------------------------------------------


class _Supervisor:
    """Keeps workers running until a signal asks for the end, and ends them in order."""

    def __init__(self, settings: Settings, directory: DataDir, address: Address) -> None:
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
        log.info("supervising", workers=len(self._workers), address=str(self._address))
        while not self._ending:
            # A signal does not interrupt the wait of a thread, so it is a short one.
            wait([worker.sentinel for worker in self._workers], timeout=0.2)
            self._replace_the_dead()
        self._end_workers()
        # A signal that comes before a worker handles it ends the worker by itself.
        orderly = (0, -signal.SIGTERM, -signal.SIGHUP)
        return int(any(worker.exitcode not in orderly for worker in self._workers))

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.terminate()
        deadline = threading.Timer(END_TIMEOUT_S, self._kill_workers)
        deadline.start()
        for worker in self._workers:
            worker.join()
        deadline.cancel()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            if worker.is_alive():
                log.error("worker_killed", pid=worker.pid, after_s=END_TIMEOUT_S)
                worker.kill()

    def _replace_the_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.is_alive() or self._ending:
                continue
            log.error("worker_ended", pid=worker.pid, exit_code=worker.exitcode)
            metrics.forget(self._directory.metrics, worker.pid or 0)
            pause(RESTART_DELAY_S)
            if not self._ending:
                self._workers[index] = self._start()

    def _end(self) -> None:
        self._ending = True

    def _start(self) -> SpawnProcess:
        worker = self._context.Process(
            target=_work, args=(dict(self._settings), self._address), daemon=False
        )
        worker.start()
        return worker


def _work(values: dict[str, object], address: Address) -> None:
    settings = Settings.model_validate(values)
    logs.configure(settings.log_level, json=settings.log_format == "json")
    with DataDir(settings.data_dir).working():
        raise SystemExit(_serve_alone(settings, address, _ignore, shared=True))


@contextmanager
def _reserved(address: Address) -> Iterator[Address]:
    """Hold a port for the workers, so that all get the same and nobody else gets it.

    The socket never listens, so the kernel gives it no connection.

    Raises:
        ConfigError: A Unix socket, which processes cannot share.
        ListenError: The port is in use, or cannot be bound.
    """
    if address.is_unix:
        raise ConfigError("workers: a unix socket cannot be shared; listen on a port")
    _assert_free(address)
    with socket.socket(address.family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _bind_errors(address):
            holder.bind((address.host, address.port))
        yield address.with_port(holder.getsockname()[1])


def _assert_free(address: Address) -> None:
    """Refuse a port that somebody listens on, before grpc finds out and logs it in its own way.

    Raises:
        ListenError: The port is in use, or cannot be bound.
    """
    if not address.port:
        return
    # Without SO_REUSEPORT, which would let us in beside a stranger that has set it too.
    with socket.socket(address.family, socket.SOCK_STREAM) as probe, _bind_errors(address):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address.host, address.port))


@contextmanager
def _bind_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
