"""The HTTP side of the service put together: which routes on which port."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.routing import Route

from keybearer_service.container import Core
from keybearer_service.domain.clock import DAY
from keybearer_service.gateway.authorizer import Doors
from keybearer_service.gateway.routes import HttpDoors, application, health_routes, metrics_route
from keybearer_service.http.uvicorn_server import HttpServer
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.storage import StoreError
from keybearer_service.telemetry.metrics import PrometheusMetrics
from keybearer_service.telemetry.recorder import NoObserver, Observer

log = structlog.get_logger(__name__)

DAYS_TO_EXPIRY = (1, 7, 30, 90, 365)
"""Live keys are counted in the spans between these, and beyond, and without an expiry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Which HTTP ports there are."""

    doors: Listener | None = None
    """For gateways; and for figures, unless they have a port of their own."""
    metrics: Listener | None = None
    """For figures and health alone."""
    open_account: str = ""
    """The account whose keys anybody who reaches the port may ask about; empty for none."""


class HttpPorts:
    """The HTTP servers, and the figures that they show."""

    def __init__(self, config: HttpConfig, core: Core) -> None:
        """Choose who listens to what the service tells. `bind` takes the ports.

        Args:
            config: Which ports there are.
            core: What is served.
        """
        self._config = config
        self._core = core
        self._metrics = PrometheusMetrics() if config.doors or config.metrics else None
        self.observer: Observer = self._metrics or NoObserver()
        self.doors = Doors(core.validator, self.observer, core.clock)
        self._http_doors: HttpDoors | None = None
        self._servers: dict[str, HttpServer] = {}
        self._serving = False

    def bind(self) -> None:
        """Take the ports; `start` begins to serve.

        Raises:
            ListenError: A port is in use, or the open account does not exist.
            TlsError: A certificate or key cannot be read.
        """
        routes = health_routes(self._is_ready)
        figures = [] if self._metrics is None else [metrics_route(self._metrics.render)]
        if self._config.doors is not None:
            self._http_doors = self._open_doors()
            shown = figures if self._config.metrics is None else []
            self._bind("http", self._config.doors, [*self._http_doors.routes(), *routes, *shown])
        if self._config.metrics is not None:
            self._bind("metrics-http", self._config.metrics, [*routes, *figures])

    @property
    def port(self) -> int:
        """The port of the doors; 0 when there is none."""
        return self._servers["http"].port if "http" in self._servers else 0

    @property
    def metrics_port(self) -> int:
        """The port of the figures alone; 0 when there is none."""
        return self._servers["metrics-http"].port if "metrics-http" in self._servers else 0

    def start(self, queued_calls: Callable[[], int], store_bytes: Callable[[], int]) -> None:
        """Begin to serve.

        Args:
            queued_calls: Answers how many validations wait for a thread.
            store_bytes: Answers how large the store is.
        """
        self._serving = True
        if self._metrics is not None:
            core = self._core

            def probe() -> dict[str, float]:
                told = core.watches.told_revision
                revision = core.validator.revision()
                return {
                    "queued_calls": queued_calls(),
                    "queued_uses": core.usage.pending,
                    "store_bytes": store_bytes(),
                    "store_revision": revision,
                    "watch_streams": core.watches.watchers,
                    "watch_lag_revisions": revision - told if told else 0,
                }

            self._metrics.start(probe, self._live_keys)
        for name, server in self._servers.items():
            server.start()
            log.info("serving_http", port=server.port, name=name)

    def drain(self) -> None:
        """Say on `/readyz` that the end is near."""
        self._serving = False

    def stop(self, grace_s: float) -> None:
        """Finish what is in flight and close everything."""
        self.drain()
        for server in self._servers.values():
            server.stop(grace_s)
        if self._http_doors is not None:
            self._http_doors.close()
        if self._metrics is not None:
            self._metrics.stop()

    def tell_suppressed(self, *, everything: bool = False) -> None:
        """Log what was not logged one by one; called every minute."""
        self.doors.tell_suppressed(everything=everything)
        if self._http_doors is not None:
            self._http_doors.tell_suppressed(everything=everything)

    def _open_doors(self) -> HttpDoors:
        core, account = self._core, self._config.open_account
        if account:
            with core.store.read() as reader:
                if reader.account(account) is None:
                    raise ListenError(f"--http-account: there is no account {account[:64]!r}")
            log.warning("http_port_open", account_id=account, why="no credential of gateways asked")
        return HttpDoors(
            self.doors, core.validator, self.observer, core.clock, core.entropy, account
        )

    def _bind(self, name: str, listener: Listener, routes: list[Route]) -> None:
        try:
            self._servers[name] = HttpServer(name, application(routes), listener)
        except BaseException:
            for server in self._servers.values():
                server.close()
            raise

    def _is_ready(self) -> bool:
        try:
            self._core.validator.revision()
        except StoreError:
            return False
        return self._serving

    def _live_keys(self) -> dict[str, int]:
        now = self._core.clock.now()
        with self._core.store.read() as reader:
            *up_to, expiring, everything = reader.live_keys(
                now, [now + days * DAY for days in DAYS_TO_EXPIRY]
            )
        counts = {}
        before, least = 0, 0
        for days, count in zip(DAYS_TO_EXPIRY, up_to, strict=True):
            counts[f"{least}-{days}"] = count - before
            before, least = count, days
        return {**counts, f"{least}+": expiring - before, "never": everything - expiring}
