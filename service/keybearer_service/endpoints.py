"""Everything that is served over gRPC, put together: methods, servicers, threads, health."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog

from keybearer.v1 import (
    account_service_pb2,
    api_key_service_pb2,
    audit_service_pb2,
    token_service_pb2,
    user_service_pb2,
)
from keybearer_service.container import Container
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.gateway import ext_authz
from keybearer_service.net.addresses import Listener
from keybearer_service.net.bounds import (
    AUTHORITY_CALLS,
    LIST_CALLS,
    LIST_SHARES,
    LIVENESS_CALLS,
    MANAGEMENT_CALLS,
    PROBE_CALLS,
    PUBLIC_CALLS,
    REFLECTION_CALLS,
    REMOTE_VALIDATION_CALLS,
    STREAM_CALLS,
    VALIDATION_CALLS,
    Bounds,
    CallBounds,
)
from keybearer_service.rpc import health, reflection
from keybearer_service.rpc.call_log import CallLog
from keybearer_service.rpc.executors import CallExecutor, MessageWatchdog
from keybearer_service.rpc.handlers import (
    MethodHandlers,
    ServedMethod,
    refusing_handler,
    stream_handler,
    unary_handler,
)
from keybearer_service.rpc.health import HealthServicer
from keybearer_service.rpc.hot_loop import HotLoop, HotMethod
from keybearer_service.rpc.methods import behaviour_of, specs_of
from keybearer_service.rpc.pipeline import MethodSpec, StreamMethod, UnaryMethod
from keybearer_service.rpc.probes import (
    ANSWER_WITHIN_S,
    HOT_METHOD,
    LIVENESS_METHOD,
    executors_answer,
    hot_loop_works,
    liveness_handler,
)
from keybearer_service.rpc.reflection import ReflectionServicer
from keybearer_service.rpc.server import Server
from keybearer_service.rpc.servicers.accounts import AccountServicer
from keybearer_service.rpc.servicers.api_keys import ApiKeyServicer
from keybearer_service.rpc.servicers.audit import AuditServicer
from keybearer_service.rpc.servicers.tokens import TokenServicer
from keybearer_service.rpc.servicers.users import UserServicer
from keybearer_service.rpc.shares import AccountShares
from keybearer_service.storage import FileStore
from keybearer_service.validation.callers import Callers, SharedCallers
from keybearer_service.validation.groups import GroupReads, PromptUses
from keybearer_service.validation.validator import Validator

log = structlog.get_logger(__name__)

SERVICES = (
    account_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
    token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
)
SERVICE_NAMES = tuple(service.full_name for service in SERVICES)

VALIDATING_METHODS = frozenset(
    {
        *(
            f"/keybearer.v1.TokenService/{name}"
            for name in ("ValidateToken", "BatchValidateTokens", "WhoAmI")
        ),
        ext_authz.CHECK_METHOD,
    }
)
"""Called all the time, so they run on threads of their own: a stuck write or a long list never
makes a validation wait."""
HOT_METHODS: Mapping[str, Callable[[Any], Sequence[str]]] = {
    HOT_METHOD: lambda request: (request.token,),
    "/keybearer.v1.TokenService/BatchValidateTokens": lambda request: [
        one.token for one in request.requests
    ],
    ext_authz.CHECK_METHOD: ext_authz.tokens_in,
}
"""What the hot loop serves, and the tokens that a message asks about."""
AUTHORITY_METHODS = frozenset(
    {
        "/keybearer.v1.AccountService/DisableAccount",
        "/keybearer.v1.ApiKeyService/DisableApiKey",
        "/keybearer.v1.ApiKeyService/RevokeApiKey",
        "/keybearer.v1.ApiKeyService/RevokeApiKeys",
        "/keybearer.v1.ApiKeyService/RotateApiKey",
        "/keybearer.v1.ApiKeyService/UpdateApiKey",
        "/keybearer.v1.UserService/DeleteUser",
        "/keybearer.v1.UserService/UpdateUser",
    }
)
"""What can take authority away, so it waits for nothing else. RevokeToken is public and has threads
of its own too."""
WATCH_METHOD = "/keybearer.v1.TokenService/WatchInvalidations"
QUIET_METHODS = frozenset(
    {
        *VALIDATING_METHODS,
        WATCH_METHOD,
        *(spec.path for spec in (*health.SPECS, *reflection.SPECS)),
    }
)
"""Neither logged nor audited one by one."""


def served_methods() -> Mapping[str, MethodSpec]:
    """Return every method of ours that is served, by path.

    Raises:
        RuleError: A method has no access rule.
    """
    check = MethodSpec(
        path=ext_authz.CHECK_METHOD,
        rule=ext_authz.RULE,
        request=ext_authz.REQUEST,
        response=ext_authz.RESPONSE,
    )
    return {**specs_of(SERVICES), check.path: check}


def is_list(spec: MethodSpec) -> bool:
    """Return whether a method answers with pages of a list, as large as its caller asks for."""
    return "page_size" in spec.request.DESCRIPTOR.fields_by_name


class Executors:
    """The threads that calls run on, apart so that none waits behind another kind."""

    def __init__(self, validation: CallBounds = VALIDATION_CALLS) -> None:
        """Start the threads; those of `validation` depend on where the store is."""
        self.validation = CallExecutor(validation, "validation")
        self._authority = CallExecutor(AUTHORITY_CALLS, "authority")
        self._management = CallExecutor(MANAGEMENT_CALLS, "management")
        self.lists = CallExecutor(LIST_CALLS, "lists")
        self._public = CallExecutor(PUBLIC_CALLS, "public")
        self._streams = CallExecutor(STREAM_CALLS, "watch-stream")
        self._probes = CallExecutor(PROBE_CALLS, "probes")
        self.reflection = CallExecutor(REFLECTION_CALLS, "reflection")
        self.liveness = CallExecutor(LIVENESS_CALLS, "liveness")
        self.hot_loop: HotLoop | None = None
        """Serves the hot methods in the place of an executor, when there is one."""

    @property
    def serving(self) -> Sequence[CallExecutor]:
        """Every executor that serves callers."""
        return (
            self.validation,
            self._authority,
            self._management,
            self.lists,
            self._public,
            self._streams,
            self._probes,
            self.reflection,
        )

    def of(self, spec: MethodSpec) -> CallExecutor:
        """Return the executor of a method."""
        if spec in health.SPECS:
            return self._probes
        if spec in reflection.SPECS:
            return self.reflection
        if spec.is_stream:
            return self._streams
        if spec.path in VALIDATING_METHODS:
            return self.validation
        if spec.rule.public:
            return self._public
        if spec.path in AUTHORITY_METHODS:
            return self._authority
        return self.lists if is_list(spec) else self._management

    def answer(self) -> bool:
        """Return whether the hot loop and every executor that serves callers end their tasks."""
        return executors_answer(self.serving) and (
            self.hot_loop is None or self.hot_loop.answers_within(ANSWER_WITHIN_S)
        )

    def shutdown(self) -> None:
        """Drop what waits and end every thread."""
        for executor in (*self.serving, self.liveness):
            executor.shutdown(wait=True, cancel_futures=True)


class RpcEndpoints:
    """The gRPC server and what it serves."""

    def __init__(
        self,
        container: Container,
        listener: Listener,
        *,
        bounds: Bounds,
        private_address: str,
        is_ready: Callable[[], bool],
        on_outcome_unknown: Callable[[], None],
        with_reflection: bool,
        with_hot_loop: bool,
    ) -> None:
        """Build everything and bind the port; `start` begins to serve.

        Args:
            container: The use cases.
            listener: Where to listen.
            bounds: What the port holds for its clients.
            private_address: The socket that the process asks itself on.
            is_ready: Returns whether calls can be answered.
            on_outcome_unknown: Called when a commit failed; the process is to end.
            with_reflection: Whether tools may ask what is served.
            with_hot_loop: Whether the hot methods have a thread of their own, if that works here.

        Raises:
            ListenError, TlsError: The port cannot be had.
            RuleError: A method of ours has no access rule.
        """
        self._container = container
        self._is_store_local = isinstance(container.store, FileStore)
        self._executors = Executors(
            VALIDATION_CALLS if self._is_store_local else REMOTE_VALIDATION_CALLS
        )
        self._list_shares = AccountShares(LIST_SHARES, "lists", container.recorder)
        self._watchdog = MessageWatchdog(container.clock)
        self.call_log = CallLog(
            quiet=QUIET_METHODS,
            failures=container.failures,
            refusals=container.refusals,
            recorder=container.recorder,
            clock=container.clock,
            on_outcome_unknown=on_outcome_unknown,
        )
        self._health = HealthServicer(
            SERVICE_NAMES, is_ready=is_ready, is_live=self._executors.answer
        )
        self._reflection = ReflectionServicer(
            [*SERVICE_NAMES, health.SERVICE, *reflection.SERVICES[1:]], self._executors.reflection
        )
        make_server = partial(
            Server,
            bounds=bounds,
            methods=MethodHandlers(
                self._methods(with_reflection=with_reflection), self.call_log.overloaded
            ),
            private_address=private_address,
            default_executor=self._executors.validation,
        )
        try:
            if with_hot_loop and self._hot_loop_works(make_server):
                self._executors.hot_loop = self._new_hot_loop()
            self._server = make_server(listener, hot_loop=self._executors.hot_loop)
        except BaseException:
            self._executors.shutdown()
            raise

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    @property
    def queued_calls(self) -> int:
        """How many validations wait for a thread."""
        return self._executors.validation.queued

    @property
    def calls_without_message(self) -> int:
        """How many calls have sent their headers and not yet their message."""
        return self._watchdog.waiting

    def executors_answer(self) -> bool:
        """Return whether every executor that serves callers ends its tasks."""
        return self._executors.answer()

    def start(self) -> None:
        """Begin to serve."""
        self._watchdog.start()
        self._health.start()
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """End the streams, let the calls in flight finish for a while, and end.

        Args:
            grace_s: Seconds for the calls in flight.
        """
        self._health.close()
        self._reflection.close()
        self._server.stop(grace_s)
        self._executors.shutdown()
        self._watchdog.stop()

    def _hot_loop_works(self, make_server: Callable[..., Server]) -> bool:
        """Serve the private socket alone by a hot loop, and ask there whether it works."""
        try:
            trial = make_server(None, hot_loop=self._new_hot_loop())
            trial.start()
            if hot_loop_works(trial.private_address):
                trial.stop(0)
                return True
            trial.leave_behind()
            cause = "no answer"
        except Exception as error:  # noqa: BLE001 - whatever a part of grpc raises that has moved
            cause = f"{type(error).__name__}: {error}"
        log.warning("hot_loop_unusable", cause=cause, grpcio=version("grpcio"))
        return False

    def _new_hot_loop(self) -> HotLoop:
        container = self._container
        reads = GroupReads(container.store)
        validator = container.validator.reading(reads, PromptUses(container.usage))
        servicers, here = servicers_of(container), servicers_of(container, validator)
        specs = served_methods()
        return HotLoop(
            [
                HotMethod(
                    here=self._unary(specs[path], behaviour_of(here, specs[path]), validator),
                    ordinary=self._unary(
                        specs[path], behaviour_of(servicers, specs[path]), container.validator
                    ),
                    tokens_in=tokens_in,
                    executor=self._executors.of(specs[path]),
                )
                for path, tokens_in in HOT_METHODS.items()
            ],
            reads=reads,
            watchdog=self._watchdog,
            is_store_local=self._is_store_local,
            on_overload=self.call_log.overloaded,
        )

    def _methods(self, *, with_reflection: bool) -> dict[str, ServedMethod]:
        servicers = servicers_of(self._container)
        servicers[health.SERVICE] = self._health
        specs = {**served_methods(), **{spec.path: spec for spec in health.SPECS}}
        if with_reflection:
            servicers |= dict.fromkeys(reflection.SERVICES, self._reflection)
            specs |= {spec.path: spec for spec in reflection.SPECS}
        methods = {
            path: self._method_of(spec, behaviour_of(servicers, spec))
            for path, spec in specs.items()
        }
        liveness = self._executors.liveness
        methods[LIVENESS_METHOD] = ServedMethod(
            liveness_handler(self._executors.answer, liveness), liveness, None
        )
        return methods

    def _method_of(self, spec: MethodSpec, serve: Callable[..., Any]) -> ServedMethod:
        executor = self._executors.of(spec)
        if executor is self._executors.lists:
            serve = self._list_shares.sharing(serve)
        return ServedMethod(
            self._handler_of(spec, serve, executor), executor, refusing_handler(spec)
        )

    def _handler_of(
        self, spec: MethodSpec, serve: Callable[..., Any], executor: CallExecutor
    ) -> Any:
        container = self._container
        if spec.is_stream:
            # So many streams begin at once after a restart that they share reads of the store.
            callers = SharedCallers(container.validator, container.watches.run)
            stream = StreamMethod(spec, serve, callers=callers, **self._shared)
            return stream_handler(stream, executor, self._watchdog)
        method = self._unary(spec, serve, container.validator)
        return unary_handler(method, executor, self._watchdog)

    def _unary(
        self, spec: MethodSpec, serve: Callable[..., Any], validator: Validator
    ) -> UnaryMethod:
        return UnaryMethod(spec, serve, callers=Callers(validator), **self._shared)

    @property
    def _shared(self) -> dict[str, Any]:
        container = self._container
        return {"log": self.call_log, "clock": container.clock, "entropy": container.entropy}


def servicers_of(container: Container, validator: Validator | None = None) -> dict[str, object]:
    """Return the servicers by the full name of the service that each serves.

    Args:
        container: The use cases.
        validator: Judges tokens; the container's own when none is given.
    """
    validator = validator or container.validator
    return {
        "keybearer.v1.AccountService": AccountServicer(container.accounts, container.clock),
        "keybearer.v1.UserService": UserServicer(container.users),
        "keybearer.v1.ApiKeyService": ApiKeyServicer(
            container.keys, container.revoker, container.clock
        ),
        "keybearer.v1.TokenService": TokenServicer(
            validator,
            container.keys,
            container.revoker,
            container.watches,
            PeerLimiter(container.clock),
            container.clock,
            container.recorder,
        ),
        "keybearer.v1.AuditService": AuditServicer(container.audit_history),
        ext_authz.SERVICE: ext_authz.AuthorizationServicer(container.authorizer.asking(validator)),
    }
