"""The HTTP ports: which routes are served where."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from starlette.routing import Route
from starlette.types import ASGIApp

from keybearer_service.http.routes import application, health_routes, metrics_route
from keybearer_service.http.uvicorn_server import HttpServer
from keybearer_service.net.addresses import Listener
from keybearer_service.net.bounds import CONSOLE, HTTP, METRICS, Bounds
from keybearer_service.net.sign_in import SignInSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Which HTTP ports there are."""

    gateway: Listener | None = None
    """For gateways and health; for metrics too, unless they have a port of their own."""
    metrics: Listener | None = None
    """For metrics and health alone."""
    console: Listener | None = None
    """For administrators and their browsers."""
    console_url: str = ""
    """Scheme and host at which browsers reach the console; empty for this machine's own."""
    sign_in: SignInSettings = field(default_factory=SignInSettings)
    """How people sign in there."""
    gateway_bounds: Bounds = HTTP
    metrics_bounds: Bounds = METRICS
    accounts: str = ""
    """The account, or `*` for all, that gateways of the operator account may ask about beside their
    own; on an open port, that everybody who reaches it may ask about."""
    is_open: bool = False
    """Whether gateways are asked for no credential."""

    @property
    def is_served(self) -> bool:
        """Whether there is a port that shows metrics."""
        return self.gateway is not None or self.metrics is not None


class HttpListeners:
    """The HTTP servers of a process."""

    def __init__(
        self,
        config: HttpConfig,
        *,
        gateway_routes: Sequence[Route],
        is_live: Callable[[], bool],
        is_ready: Callable[[], bool],
        render_metrics: Callable[[], tuple[bytes, str]] | None,
        console: ASGIApp | None = None,
    ) -> None:
        """Create the listeners; `bind` opens the ports.

        Args:
            config: Which ports there are.
            gateway_routes: The routes for gateways.
            is_live: Returns whether the process answers.
            is_ready: Returns whether calls can be answered.
            render_metrics: Returns the metrics and their content type; None for no metrics.
            console: What the port of the console serves; None without such a port.
        """
        self._console = console
        self._config = config
        self._gateway_routes = gateway_routes
        self._is_live = is_live
        self._is_ready = is_ready
        self._render_metrics = render_metrics
        self._servers: dict[str, HttpServer] = {}

    def bind(self) -> None:
        """Open the ports; `start` begins to serve.

        Raises:
            ListenError: A port is in use.
            TlsError: A certificate or key cannot be read.
        """
        gateway, metrics = self._config.gateway, self._config.metrics
        if gateway is not None:
            shown = [] if metrics is not None else self._metrics()
            routes = [*self._gateway_routes, *self._health(), *shown]
            self._bind("http", gateway, application(routes), self._config.gateway_bounds)
        if metrics is not None:
            routes = [*self._health(), *self._metrics()]
            self._bind("metrics-http", metrics, application(routes), self._config.metrics_bounds)
        if self._config.console is not None and self._console is not None:
            self._bind("console", self._config.console, self._console, CONSOLE)

    def _health(self) -> list[Route]:
        return health_routes(self._is_live, self._is_ready)

    def _metrics(self) -> list[Route]:
        return [] if self._render_metrics is None else [metrics_route(self._render_metrics)]

    @property
    def port(self) -> int:
        """The port for gateways; 0 when there is none."""
        return self._servers["http"].port if "http" in self._servers else 0

    @property
    def metrics_port(self) -> int:
        """The port for metrics alone; 0 when there is none."""
        return self._servers["metrics-http"].port if "metrics-http" in self._servers else 0

    @property
    def console_port(self) -> int:
        """The port of the console; 0 when there is none."""
        return self._servers["console"].port if "console" in self._servers else 0

    def start(self) -> None:
        """Begin to serve."""
        for name, server in self._servers.items():
            server.start()
            log.info("serving_http", port=server.port, name=name)

    def end(self, grace_s: float) -> None:
        """Begin to end on every port: stop accepting requests, let those in flight finish."""
        for server in self._servers.values():
            server.end(grace_s)

    def wait(self, within_s: float) -> None:
        """Wait until every server has ended, and close the ports."""
        for server in self._servers.values():
            server.wait(within_s)

    def close(self) -> None:
        """Give up the ports of servers that were never started."""
        for server in self._servers.values():
            server.close()

    def _bind(self, name: str, listener: Listener, app: ASGIApp, bounds: Bounds) -> None:
        try:
            self._servers[name] = HttpServer(name, app, listener, bounds)
        except BaseException:
            self.close()
            raise
