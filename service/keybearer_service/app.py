"""The composition root: builds clock, entropy, store, use cases and server, runs and ends them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
import structlog

from keybearer.access import rules_of
from keybearer.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from keybearer_service.container import Container, open_container
from keybearer_service.domain.clock import Clock, SystemClock
from keybearer_service.domain.entropy import Entropy, SystemEntropy
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.gateway import ext_authz
from keybearer_service.gateway.routes import GatewayRoutes
from keybearer_service.gauges import live_keys_by_expiry, service_gauges
from keybearer_service.housekeeping import Housekeeper
from keybearer_service.http.listeners import HttpConfig, HttpListeners
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.rpc.executors import CallExecutor, MessageWatchdog
from keybearer_service.rpc.pipeline import CallPipeline
from keybearer_service.rpc.server import EXEMPT_METHODS, Server
from keybearer_service.rpc.servicers.accounts import AccountServicer
from keybearer_service.rpc.servicers.api_keys import ApiKeyServicer
from keybearer_service.rpc.servicers.audit import AuditServicer
from keybearer_service.rpc.servicers.tokens import TokenServicer
from keybearer_service.rpc.servicers.users import UserServicer
from keybearer_service.storage import StoreError
from keybearer_service.telemetry.metrics import PrometheusMetrics

log = structlog.get_logger(__name__)

SERVICES = (
    account_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
    token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
)
QUIET_METHODS = frozenset(
    {
        *(
            f"/keybearer.v1.TokenService/{name}"
            for name in ("ValidateToken", "BatchValidateTokens", "WhoAmI")
        ),
        ext_authz.CHECK_METHOD,
    }
)
"""Called all the time: neither logged nor audited one by one, and run on threads of their own, so
that a stuck write or a long list never makes a validation wait."""
WATCH_METHOD = "/keybearer.v1.TokenService/WatchInvalidations"
WATCH_THREADS = 16
"""Streams begin and end on them, and hold none in between."""
VALIDATION_THREADS = 2
"""The interpreter runs one at a time, and SQLite hands it over several times in a read: with more
threads a validation costs more. Those that wait for slow senders are made up for."""
MANAGEMENT_THREADS = 8
PUBLIC_THREADS = 4
"""For the public method: whoever needs no credential must not cost those who have one a thread."""
PROBE_THREADS = 4
"""For health, which must not wait behind anything."""
ABANDON_GRACE_S = 0.5
"""Long enough for the answers that are on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """What an App is built from."""

    data_dir: DataDir
    listener: Listener
    http: HttpConfig = field(default_factory=HttpConfig)
    reflection: bool = True
    shared: bool = False
    """Whether other processes serve the same data."""


class App:
    """The running service."""

    def __init__(
        self,
        config: AppConfig,
        *,
        on_fatal: Callable[[], None],
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        """Build everything and bind the port; `start` begins to serve.

        Args:
            config: Where the data is and where to listen.
            on_fatal: Called once the process must end because an outcome is unknown.
            clock: Tells the time; the machine's by default.
            entropy: Draws secrets; the machine's by default.

        Raises:
            DataDirError, StoreError, KeyringError, TlsError, ListenError: It cannot start.
            RuleError: A method of ours has no access rule.
        """
        self._metrics = PrometheusMetrics() if config.http.is_served else None
        self.container = open_container(
            config.data_dir,
            clock or SystemClock(),
            entropy or SystemEntropy(),
            shared=config.shared,
            recorder=self._metrics,
        )
        self._message_watchdog = MessageWatchdog(self.container.clock)
        try:
            self._gateway_routes = self._build_gateway_routes(config.http.open_account)
            self._http = HttpListeners(
                config.http,
                gateway_routes=self._gateway_routes.routes(),
                is_ready=self._is_ready,
                render_metrics=self._render_metrics,
            )
        except BaseException:
            self.container.close()
            raise
        try:
            self._http.bind()
            self._pipeline, self._server = self._build(config, on_fatal)
        except BaseException:
            self._http.stop(0)
            self._gateway_routes.close()
            self.container.close()
            raise
        self._is_stopped = False
        container = self.container
        self.housekeeper = Housekeeper(
            container.store,
            [container.refusals, self._pipeline, container.authorizer, self._gateway_routes],
            container.clock,
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    @property
    def http_port(self) -> int:
        """The port for gateways; 0 when there is none."""
        return self._http.port

    @property
    def metrics_port(self) -> int:
        """The port of the figures alone; 0 when there is none."""
        return self._http.metrics_port

    def start(self) -> None:
        """Begin to serve."""
        self.container.usage.start()
        self.container.watches.start()
        self.housekeeper.start()
        self._message_watchdog.start()
        self._server.start()
        if self._metrics is not None:
            self._metrics.start(self._gauges, self._live_keys)
        self._http.start()
        log.info("serving", port=self.port, keys=self._count_keys())

    def drain(self) -> None:
        """Answer readiness probes with no from now on; everything else goes on."""
        self._http.drain()

    def stop(self, grace_s: float = 10.0) -> None:
        """Finish what is in flight, write what is in memory, and close everything, once.

        Args:
            grace_s: Seconds for the calls in flight.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        log.info("draining", grace_s=grace_s)
        self.drain()
        self.container.watches.close()
        self._server.stop(grace_s)
        self._stop_http(grace_s)
        self._message_watchdog.stop()
        self.housekeeper.stop()
        self.container.close()
        log.info("stopped")

    def abandon(self) -> None:
        """End at once and write nothing more: what the store holds is no longer known."""
        self.housekeeper.abandon()
        self.container.watches.close()
        self._server.stop(ABANDON_GRACE_S)
        self._stop_http(ABANDON_GRACE_S)
        log.critical("abandoned")

    def _stop_http(self, grace_s: float) -> None:
        self._http.stop(grace_s)
        self._gateway_routes.close()
        if self._metrics is not None:
            self._metrics.stop()

    def _is_ready(self) -> bool:
        try:
            self.container.validator.revision()
        except StoreError:
            return False
        return True

    def _render_metrics(self) -> tuple[bytes, str]:
        if self._metrics is None:
            raise LookupError("no port serves metrics")
        return self._metrics.render()

    def _gauges(self) -> Mapping[str, float]:
        return service_gauges(self.container, lambda: self._server.queued_calls)

    def _live_keys(self) -> Mapping[str, int]:
        return live_keys_by_expiry(self.container.store, self.container.clock.now())

    def _count_keys(self) -> int:
        with self.container.store.read() as reader:
            return reader.key_count()

    def _build_gateway_routes(self, open_account: str) -> GatewayRoutes:
        container = self.container
        if open_account:
            with container.store.read() as reader:
                if reader.account(open_account) is None:
                    raise ListenError(f"--http-account: there is no account {open_account[:64]!r}")
            log.warning(
                "http_port_open", account_id=open_account, why="no credential of gateways asked"
            )
        return GatewayRoutes(
            container.authorizer,
            container.validator,
            container.recorder,
            container.clock,
            container.entropy,
            open_account,
        )

    def _build(
        self, config: AppConfig, on_fatal: Callable[[], None]
    ) -> tuple[CallPipeline, Server]:
        container = self.container
        rules = {**rules_of(SERVICES), ext_authz.CHECK_METHOD: ext_authz.RULE}
        validation = CallExecutor(VALIDATION_THREADS, "validation")
        management = CallExecutor(MANAGEMENT_THREADS, "management")
        public = CallExecutor(PUBLIC_THREADS, "public")
        probes = CallExecutor(PROBE_THREADS, "probes")
        streams = CallExecutor(WATCH_THREADS, "watch-stream")
        pipeline = CallPipeline(
            rules,
            exempt=EXEMPT_METHODS,
            quiet=QUIET_METHODS | {WATCH_METHOD},
            pools={
                **{method: public if rule.public else management for method, rule in rules.items()},
                **dict.fromkeys(QUIET_METHODS, validation),
                **dict.fromkeys(EXEMPT_METHODS, probes),
                WATCH_METHOD: streams,
            },
            message_watchdog=self._message_watchdog,
            validator=container.validator,
            authenticate_stream=container.watches.authenticate,
            refusals=container.refusals,
            clock=container.clock,
            entropy=container.entropy,
            recorder=container.recorder,
            on_outcome_unknown=on_fatal,
        )
        server = Server(
            config.listener,
            interceptor=pipeline,
            register=lambda server: register_servicers(server, container),
            services=[service.full_name for service in SERVICES],
            executors=[validation, management, public, probes, streams],
            with_reflection=config.reflection,
        )
        return pipeline, server


def register_servicers(server: grpc.Server, container: Container) -> None:
    """Add every servicer of ours."""
    account_service_pb2_grpc.add_AccountServiceServicer_to_server(
        AccountServicer(container.accounts, container.clock), server
    )
    user_service_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(container.users), server)
    api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server(
        ApiKeyServicer(container.keys, container.clock), server
    )
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(
        TokenServicer(
            container.validator,
            container.keys,
            container.watches,
            PeerLimiter(container.clock),
            container.clock,
            container.recorder,
        ),
        server,
    )
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
        AuditServicer(container.store, container.page_tokens), server
    )
    ext_authz.add_to_server(ext_authz.AuthorizationServicer(container.authorizer), server)
