"""The composition root: builds clock, entropy, store, use cases and server, runs and ends them."""

import threading
from collections.abc import Callable
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
from keybearer_service.container import Core, open_core
from keybearer_service.domain.clock import Clock, SystemClock
from keybearer_service.domain.entropy import Entropy, SystemEntropy
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.gateway import ext_authz
from keybearer_service.http.listeners import HttpConfig, HttpPorts
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.addresses import Listener
from keybearer_service.rpc.executors import Pool, SlowSenders
from keybearer_service.rpc.pipeline import CallPipeline
from keybearer_service.rpc.server import EXEMPT_METHODS, Server
from keybearer_service.rpc.servicers.accounts import AccountServicer
from keybearer_service.rpc.servicers.api_keys import ApiKeyServicer
from keybearer_service.rpc.servicers.audit import AuditServicer
from keybearer_service.rpc.servicers.tokens import TokenServicer
from keybearer_service.rpc.servicers.users import UserServicer
from keybearer_service.storage import StoreError

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
HOLDER_THREADS = 4
"""For the public method: whoever needs no credential must not cost those who have one a thread."""
PROBE_THREADS = 4
"""For health, which must not wait behind anything."""
HOUSEKEEPING_INTERVAL_S = 60.0
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
        self.core = open_core(
            config.data_dir,
            clock or SystemClock(),
            entropy or SystemEntropy(),
            shared=config.shared,
        )
        self._slow_senders = SlowSenders(self.core.clock)
        self._data_dir = config.data_dir
        self._http = HttpPorts(config.http, self.core)
        try:
            self._http.bind()
            self._pipeline, self._server = self._build(config, on_fatal)
        except BaseException:
            self._http.stop(0)
            self.core.close()
            raise
        self._housekeeper = threading.Thread(target=self._keep_house, name="house", daemon=True)
        self._stopping = threading.Event()
        self._told_head = 0

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    @property
    def http_port(self) -> int:
        """The port of the HTTP doors; 0 when there is none."""
        return self._http.port

    @property
    def metrics_port(self) -> int:
        """The port of the figures alone; 0 when there is none."""
        return self._http.metrics_port

    def start(self) -> None:
        """Begin to serve."""
        self.core.usage.start()
        self.core.watches.start()
        self._housekeeper.start()
        self._slow_senders.start()
        self._server.start()
        self._http.start(lambda: self._server.queued_calls, lambda: self._data_dir.store_bytes)
        log.info("serving", port=self.port, keys=self._count_keys())

    def stop(self, grace_s: float = 10.0) -> None:
        """Finish what is in flight, write what is in memory, and close everything."""
        log.info("draining", grace_s=grace_s)
        self._stopping.set()
        self._http.drain()
        self.core.watches.close()
        self._server.stop(grace_s)
        self._http.stop(grace_s)
        self._slow_senders.stop()
        self._housekeeper.join()
        try:
            self._tell(everything=True)
        except StoreError as error:
            # The end is in order all the same: what is still to be told is in the store or lost.
            log.warning("last_words_not_told", cause=type(error).__name__)
        self.core.close()
        log.info("stopped")

    def abandon(self) -> None:
        """End at once and write nothing more: what the store holds is no longer known."""
        self._stopping.set()
        self.core.watches.close()
        self._server.stop(ABANDON_GRACE_S)
        self._http.stop(ABANDON_GRACE_S)
        log.critical("abandoned")

    def _build(
        self, config: AppConfig, on_fatal: Callable[[], None]
    ) -> tuple[CallPipeline, Server]:
        core = self.core
        rules = {**rules_of(SERVICES), ext_authz.CHECK_METHOD: ext_authz.RULE}
        validation = Pool(VALIDATION_THREADS, "validation")
        management = Pool(MANAGEMENT_THREADS, "management")
        holders = Pool(HOLDER_THREADS, "holders")
        probes = Pool(PROBE_THREADS, "probes")
        streams = Pool(WATCH_THREADS, "watch-stream")
        pipeline = CallPipeline(
            rules,
            exempt=EXEMPT_METHODS,
            quiet=QUIET_METHODS | {WATCH_METHOD},
            pools={
                **{
                    method: holders if rule.public else management for method, rule in rules.items()
                },
                **dict.fromkeys(QUIET_METHODS, validation),
                **dict.fromkeys(EXEMPT_METHODS, probes),
                WATCH_METHOD: streams,
            },
            slow_senders=self._slow_senders,
            validator=core.validator,
            authenticate_stream=core.watches.authenticate,
            refusals=core.refusals,
            clock=core.clock,
            entropy=core.entropy,
            observer=self._http.observer,
            on_outcome_unknown=on_fatal,
        )
        server = Server(
            config.listener,
            interceptor=pipeline,
            register=lambda server: register_servicers(server, core, self._http),
            services=[service.full_name for service in SERVICES],
            executors=[validation, management, holders, probes, streams],
            with_reflection=config.reflection,
        )
        return pipeline, server

    def _keep_house(self) -> None:
        while not self._stopping.wait(HOUSEKEEPING_INTERVAL_S):
            try:
                self._tell()
            except Exception:  # the housekeeper outlives what it cannot foresee
                log.exception("housekeeping_failed")

    def _tell(self, *, everything: bool = False) -> None:
        self.core.refusals.flush(everything=everything)
        self._pipeline.tell_suppressed(everything=everything)
        self._http.tell_suppressed(everything=everything)
        with self.core.store.read() as reader:
            seq, head = reader.audit_head()
        if seq != self._told_head:
            # Kept outside the database, a head proves that the end of the log was not cut off.
            self._told_head = seq
            log.info("audit_head", seq=seq, hash=head.hex())

    def _count_keys(self) -> int:
        with self.core.store.read() as reader:
            return reader.key_count()


def register_servicers(server: grpc.Server, core: Core, http: HttpPorts) -> None:
    """Add every servicer of ours."""
    account_service_pb2_grpc.add_AccountServiceServicer_to_server(
        AccountServicer(core.accounts, core.clock), server
    )
    user_service_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(core.users), server)
    api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server(
        ApiKeyServicer(core.keys, core.clock), server
    )
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(
        TokenServicer(
            core.validator,
            core.keys,
            core.watches,
            PeerLimiter(core.clock),
            core.clock,
            http.observer,
        ),
        server,
    )
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
        AuditServicer(core.store, core.page_tokens), server
    )
    ext_authz.add_to_server(ext_authz.AuthorizationServicer(http.doors), server)
