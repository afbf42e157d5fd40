"""The composition root: builds clock, entropy, store, use cases and servers, runs and ends them."""

import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from keybearer_service.container import Container
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.endpoints import RpcEndpoints
from keybearer_service.gateway.routes import GatewayRoutes
from keybearer_service.gauges import live_keys_by_expiry, service_gauges
from keybearer_service.housekeeping import Housekeeper
from keybearer_service.http.listeners import HttpConfig, HttpListeners
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.bounds import GRPC, Bounds
from keybearer_service.net.sign_in import SignInSettings
from keybearer_service.rpc.probes import PrivateListener, SharedQuestion, Watchdog
from keybearer_service.storage import ProofMode, ServerStore
from keybearer_service.validation.callers import Callers

if TYPE_CHECKING:
    from keybearer_service.console.application import Console

log = structlog.get_logger(__name__)

ABANDON_GRACE_S = 0.5
"""Long enough for the answers that are on their way."""
DRAIN_GRACE_S = 10.0
"""How long calls in flight may take to finish; below the 30 s that Kubernetes waits."""
END_AFTER_GRACE_S = 2.0
"""For an HTTP port to end once its grace is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """Where an App listens."""

    listener: Listener
    bounds: Bounds = GRPC
    http: HttpConfig = field(default_factory=HttpConfig)
    reflection: bool = True
    hot_loop: bool = True
    database_proof: ProofMode = ProofMode.AUTO


class App:
    """The running service."""

    def __init__(
        self,
        container: Container,
        config: AppConfig,
        *,
        on_fatal: Callable[[], None],
        on_unresponsive: Callable[[], None] | None = None,
    ) -> None:
        """Build the servers and bind the ports; `start` begins to serve.

        Args:
            container: The use cases. They are the App's from now on, which closes them at its end,
                and here already when it raises.
            config: Where to listen.
            on_fatal: Called once the process must end because an outcome is unknown.
            on_unresponsive: Called once the process no longer answers; None for no watchdog.

        Raises:
            TlsError, ListenError: It cannot listen.
            RuleError: A method of ours has no access rule.
            StoreError, KeyringError: It cannot be one of the nodes over its database.
        """
        self.container = container
        self._config = config.http
        self._is_serving = False
        self._is_stopped = False
        with ExitStack() as undo:
            undo.callback(container.close)
            join_nodes(container, config.database_proof)
            self._private_listener = PrivateListener()
            undo.callback(self._private_listener.close)
            self._store_answers = SharedQuestion("store-probe", self._read_store, container.clock)
            self._liveness = SharedQuestion(
                "liveness-probe", self._private_listener.ask, container.clock
            )
            self._watchdog = (
                None
                if on_unresponsive is None
                else Watchdog(self._liveness.ask, container.clock, on_unresponsive)
            )
            self._gateway_routes = gateway_routes_of(container, config.http, on_fatal)
            undo.callback(self._gateway_routes.close)
            self._console = None
            if config.http.console is not None:
                self._console = console_of(container, config.http.sign_in, on_fatal)
                undo.callback(self._console.close)
            self._http = HttpListeners(
                config.http,
                gateway_routes=self._gateway_routes.routes(),
                is_live=self._liveness.ask,
                is_ready=lambda: self._liveness.ask() and self._is_ready(),
                render_metrics=None if container.metrics is None else container.metrics.render,
                console=self._console,
            )
            undo.callback(self._http.close)
            self._http.bind()
            if self._console is not None:
                self._console.serve_at(self.console_origin)
            self._rpc = RpcEndpoints(
                container,
                config.listener,
                bounds=config.bounds,
                private_address=self._private_listener.address,
                is_ready=self._is_ready,
                on_outcome_unknown=on_fatal,
                with_reflection=config.reflection,
                with_hot_loop=config.hot_loop,
            )
            undo.pop_all()
        self.housekeeper = Housekeeper(
            container.store,
            [
                container.refusals,
                container.failures,
                self._rpc.call_log,
                container.authorizer,
                self._gateway_routes,
                container.sign_in_refusals,
            ],
            container.clock,
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._rpc.port

    @property
    def http_port(self) -> int:
        """The port for gateways; 0 when there is none."""
        return self._http.port

    @property
    def metrics_port(self) -> int:
        """The port of the metrics alone; 0 when there is none."""
        return self._http.metrics_port

    @property
    def console_port(self) -> int:
        """The port of the console; 0 when there is none."""
        return self._http.console_port

    @property
    def console_origin(self) -> str:
        """The scheme and host at which browsers reach the console; empty when there is none."""
        listener = self._config.console
        if listener is None:
            return ""
        address = listener.address.with_port(self.console_port)
        return self._config.console_url or address.web_origin(is_tls=listener.tls is not None)

    @property
    def calls_without_message(self) -> int:
        """How many calls have sent their headers and not yet their message."""
        return self._rpc.calls_without_message

    def start(self) -> None:
        """Begin to serve."""
        self._store_answers.start()
        self._liveness.start()
        self.container.usage.start()
        self.container.watches.start()
        self.housekeeper.start()
        self._is_serving = True
        self._rpc.start()
        if self.container.metrics is not None:
            self.container.metrics.start(self._gauges, self._live_keys)
        self._http.start()
        # Their connections are opened now, while there are descriptors for them.
        self._liveness.ask()
        self._store_answers.ask()
        if self._watchdog is not None:
            self._watchdog.start()
        log.info("serving", port=self.port, keys=self._count_keys())

    def drain(self) -> None:
        """Report not ready from now on; everything else continues."""
        self._is_serving = False

    def stop(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Finish what is in flight, write what is in memory, and close everything, once.

        Args:
            grace_s: Seconds for the calls in flight.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        log.info("draining", grace_s=grace_s)
        self._end_serving(grace_s)
        self.housekeeper.stop()
        self.container.close()
        log.info("stopped")

    def abandon(self) -> None:
        """End at once and write nothing more: what the store holds is no longer known."""
        self.housekeeper.abandon()
        self._end_serving(ABANDON_GRACE_S)
        log.critical("abandoned")

    def _end_serving(self, grace_s: float) -> None:
        self.drain()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._liveness.close()
        self._store_answers.close()
        self.container.watches.close()
        # All ports at once: one grace after the other would be longer than anybody waits.
        began = self.container.clock.monotonic()
        self._http.end(grace_s)
        self._rpc.stop(grace_s)
        spent_s = self.container.clock.monotonic() - began
        self._http.wait(max(0.0, grace_s - spent_s) + END_AFTER_GRACE_S)
        self._gateway_routes.close()
        if self._console is not None:
            self._console.close()
        if self.container.metrics is not None:
            self.container.metrics.stop()
        self._private_listener.close()

    def _is_ready(self) -> bool:
        return self._is_serving and self._store_answers.ask()

    def _read_store(self) -> bool:
        self.container.validator.revision()
        # What can still be read of a damaged store does not make it whole.
        return not self.container.store.damage

    def _gauges(self) -> Mapping[str, float]:
        return service_gauges(self.container, lambda: self._rpc.queued_calls)

    def _live_keys(self) -> Mapping[str, int]:
        return live_keys_by_expiry(self.container.store, self.container.clock.now())

    def _count_keys(self) -> int:
        with self.container.store.read() as reader:
            return reader.key_count()


def console_of(
    container: Container, sign_in: SignInSettings, on_fatal: Callable[[], None]
) -> "Console":
    """Return the console.

    Args:
        container: The use cases.
        sign_in: How people sign in.
        on_fatal: Called once the process must end because an outcome is unknown.

    Raises:
        ListenError: The secret of the provider cannot be read, or there is no account of that id.
    """
    from keybearer_service.console.application import (  # noqa: PLC0415 - needs an extra
        Console,
        ConsoleParts,
    )

    if sign_in.provider is not None:
        try:
            sign_in.provider.secret()
        except (OSError, ValueError) as error:
            raise ListenError(f"oidc_client_secret_file: {error}") from None
        log.info("provider_set", issuer=sign_in.provider.issuer, bind=sign_in.bind)
    parts = ConsoleParts(
        keys=container.keys,
        revoker=container.revoker,
        users=container.users,
        accounts=container.accounts,
        audit_history=container.audit_history,
        sessions=container.sessions,
        sign_ins=container.sign_ins,
        identities=container.identities,
        sign_in=replace(sign_in, bind_account=_bind_account(container, sign_in.bind_account)),
        operator_account=container.installation.operator_account_id,
        seal_key=container.keyring.derived_key(b"console cookies"),
        key_callers=Callers(container.validator),
        session_callers=Callers(container.session_validator),
        refusals=container.refusals,
        sign_in_refusals=container.sign_in_refusals,
        failures=container.failures,
        clock=container.clock,
        entropy=container.entropy,
    )
    return Console(parts, on_fatal)


def _bind_account(container: Container, account_id: str) -> str:
    """Return the account whose users sign in by their addresses.

    Raises:
        ListenError: There is none of that id.
    """
    operator = container.installation.operator_account_id
    if account_id in ("", operator):
        return operator
    scope = AccountScope.of_installation("the settings name the account of those who sign in")
    with container.store.read() as reader:
        if reader.account(scope, account_id) is None:
            raise ListenError(f"oidc_bind_account: there is no account {account_id!r}")
    return account_id


def join_nodes(container: Container, proof: ProofMode) -> None:
    """Be one of the nodes over a database that many share; over a file there are none.

    Args:
        container: The parts of the service.
        proof: Whether the database has to prove that it is the real one.

    Raises:
        StoreError: The clock of this machine is off, or the database cannot be reached.
        KeyringError: A pepper is missing that other nodes issue secrets under.
    """
    store = container.store
    if not isinstance(store, ServerStore):
        return
    store.join(socket.gethostname(), container.keyring.holds, proof)
    # After that: a pepper that is activated from now on waits for this node to have it.
    with store.read() as reader:
        container.keyring.assert_complete(reader.peppers())


def gateway_routes_of(
    container: Container, config: HttpConfig, on_fatal: Callable[[], None] = lambda: None
) -> GatewayRoutes:
    """Return the HTTP routes for gateways.

    Args:
        container: The use cases.
        config: Whose keys may be asked about, and by whom.
        on_fatal: Called once the process must end because an outcome is unknown.

    Raises:
        ListenError: There is no such account.
    """
    if config.accounts not in ("", "*"):
        scope = AccountScope.of_installation("the settings name an account for gateways")
        with container.store.read() as reader:
            if reader.account(scope, config.accounts) is None:
                raise ListenError(f"--http-account: there is no account {config.accounts[:64]!r}")
    if config.is_open:
        log.warning(
            "http_port_open", account_id=config.accounts, why="no credential of gateways asked"
        )
    return GatewayRoutes(
        container.authorizer,
        Callers(container.validator),
        container.recorder,
        partial(container.failures.error_of, on_outcome_unknown=on_fatal),
        container.clock,
        container.entropy,
        accounts=config.accounts,
        is_open=config.is_open,
    )
