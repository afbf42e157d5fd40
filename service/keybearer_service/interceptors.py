"""What happens to a call on its way to a servicer and back.

One interceptor, in this order: open the call, authenticate and judge its caller, parse the request,
serve it, turn errors into a status, log. Layers of interceptors would say the same and cost every
validation a twentieth of its time each, so the order stands in one method.

`intercept_service` runs on grpc's one serving thread and only picks the handler, made once for
each method. Everything else runs in the wrapped behaviour. Requests are parsed by us, not by grpc,
so that authorisation comes before parsing and bytes that do not parse get our own error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from keybearer.access import AccessRule, RuleError
from keybearer_service.audit import RefusalLog
from keybearer_service.calls import Call, set_current_call
from keybearer_service.errors import (
    CallAbandoned,
    CredentialsMissing,
    FieldInvalid,
    Internal,
    OutcomeUnknown,
    ServiceError,
    StoreFull,
    StoreUnavailable,
    StreamEnded,
)
from keybearer_service.keyring import KeyringError
from keybearer_service.limits import MinuteQuota
from keybearer_service.model import Caller
from keybearer_service.sources import Clock, Entropy
from keybearer_service.storage import CommitFailedError, StoreError, StoreFullError
from keybearer_service.tokens import ID_LENGTH
from keybearer_service.validation import Validator, judge_caller

log = structlog.get_logger(__name__)

ERROR_DOMAIN = "keybearer.v1"
REFUSALS_LOGGED_A_MINUTE = 10
"""Refused calls of one peer that get a log line each; the rest are counted."""
_REFUSALS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
M = TypeVar("M")


def bearer_token(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Answer the token of the one `authorization: Bearer <token>`.

    Raises:
        CredentialsMissing: None, more than one, or in another form. Taking the first or the last
            of two would let a proxy and us believe in different callers.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise CredentialsMissing
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise CredentialsMissing
    return token


def status_of(error: ServiceError) -> status_pb2.Status:
    """Write an error as google.rpc.Status with its details."""
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata
        )
    ]
    if isinstance(error, FieldInvalid):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        seconds = int(error.retry_after)
        delay = Duration(seconds=seconds, nanos=int((error.retry_after - seconds) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    code: int = error.code.value[0]
    return status_pb2.Status(code=code, message=error.message, details=packed)


class CallPipeline(grpc.ServerInterceptor):
    """Guards and serves every method of ours; lets the exempted ones through."""

    def __init__(
        self,
        rules: Mapping[str, AccessRule],
        *,
        exempt: frozenset[str],
        quiet: frozenset[str],
        pools: Mapping[str, ThreadPoolExecutor],
        validator: Validator,
        authenticate_stream: Callable[[str], Caller],
        refusals: RefusalLog,
        clock: Clock,
        entropy: Entropy,
        on_outcome_unknown: Callable[[], None],
    ) -> None:
        """Take what calls are judged by.

        Args:
            rules: The access rule of each of our methods, by path.
            exempt: Paths served without any judgement: health and reflection, by exact name.
            quiet: Paths too frequent to log or audit one by one: the validating ones.
            pools: The executor of each method that is not to run on the server's own.
            validator: Authenticates callers.
            authenticate_stream: Authenticates those of streams, whose threads are too many to have
                a database connection each.
            refusals: Audits refused management calls.
            clock: Measures calls.
            entropy: Draws request ids.
            on_outcome_unknown: Called when a commit failed; the process is to end.
        """
        self._rules = rules
        self._exempt = exempt
        self._quiet = quiet
        self._pools = pools
        self._authenticate = validator.authenticate
        self._authenticate_stream = authenticate_stream
        self._refusals = refusals
        self._clock = clock
        self._entropy = entropy
        self._on_outcome_unknown = on_outcome_unknown
        self._logged_refusals = MinuteQuota(clock, REFUSALS_LOGGED_A_MINUTE)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Pick the guarded handler of a method; None, for UNIMPLEMENTED, of an unknown one."""
        method = handler_call_details.method
        guarded = self._handlers.get(method)
        if guarded is not None:
            return guarded
        handler = continuation(handler_call_details)
        if handler is None or method in self._exempt:
            return handler
        if method not in self._rules:
            raise RuleError(f"{method} is served and has no access rule")
        guarded = self._handlers[method] = self._guard(method, handler)
        return guarded

    def tell_suppressed(self, *, everything: bool = False) -> None:
        """Log how many refusals were not logged one by one; called every minute."""
        for peer, count in self._logged_refusals.collect(everything=everything).items():
            log.warning("calls_refused", peer=peer, not_logged=count)

    # --- wrapping ---------------------------------------------------------------------------------

    def _guard(
        self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]"
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        rule = self._rules[method]
        serve = self._serve_stream if handler.response_streaming else self._serve
        behaviour = cast(
            "Behaviour",
            handler.stream_stream
            or handler.stream_unary
            or handler.unary_stream
            or handler.unary_unary,
        )
        parse = _parser(handler.request_deserializer, streaming=handler.request_streaming)

        def guarded(raw: Any, context: grpc.ServicerContext) -> Any:
            return serve(method, rule, behaviour, parse, raw, context)

        # grpc reads the executor from the behaviour it is given, which is now this one.
        if method in self._pools:
            guarded.experimental_thread_pool = self._pools[method]  # type: ignore[attr-defined]
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            guarded, request_deserializer=None, response_serializer=handler.response_serializer
        )

    def _serve(
        self,
        method: str,
        rule: AccessRule,
        behaviour: Behaviour,
        parse: Callable[[Any], Any],
        raw: Any,
        context: grpc.ServicerContext,
    ) -> Any:
        started = self._clock.monotonic()
        call = Call(method, rule, context, self._new_request_id)
        try:
            self._admit(call, context, self._authenticate)
            response = behaviour(parse(raw), context)
        except Exception as error:  # noqa: BLE001 - the one place where every error becomes a status
            self._fail(call, context, error, started)
        if method not in self._quiet:
            self._log_served(call, started)
        return response

    def _serve_stream(
        self,
        method: str,
        rule: AccessRule,
        behaviour: Behaviour,
        parse: Callable[[Any], Any],
        raw: Any,
        context: grpc.ServicerContext,
    ) -> Iterator[Any]:
        started = self._clock.monotonic()
        call = Call(method, rule, context, self._new_request_id)
        try:
            self._admit(call, context, self._authenticate_stream)
            yield from behaviour(parse(raw), context)
        except Exception as error:  # noqa: BLE001 - as in _serve
            self._fail(call, context, error, started)
        self._log_served(call, started)

    # --- the steps --------------------------------------------------------------------------------

    def _admit(
        self,
        call: Call,
        context: grpc.ServicerContext,
        authenticate: Callable[[str], Caller],
    ) -> None:
        if not call.rule.public:
            call.caller = authenticate(bearer_token(context.invocation_metadata()))
            judge_caller(call.caller, call.rule)
        set_current_call(call)

    def _fail(
        self, call: Call, context: grpc.ServicerContext, error: Exception, started: float
    ) -> NoReturn:
        known = self._known(call, error)
        if known is None:  # nobody waits for an answer
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        refused = known.code in _REFUSALS
        if refused and call.method not in self._quiet:
            self._refusals.refused(call, known.reason)
        if isinstance(known, StreamEnded):
            self._log_served(call, started)
        elif not refused or self._logged_refusals.admit(call.peer):
            log.warning(
                "call_refused" if refused else "call_failed",
                method=call.method,
                code=known.code.name,
                reason=known.reason,
                **self._facts(call, started),
            )
        context.abort_with_status(rpc_status.to_status(status_of(known)))

    def _known(self, call: Call, error: Exception) -> ServiceError | None:
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, CallAbandoned):
            return None
        if isinstance(error, CommitFailedError):
            log.critical("commit_failed", cause=str(error), request_id=call.request_id)
            self._on_outcome_unknown()
            return OutcomeUnknown()
        if isinstance(error, StoreFullError):
            return StoreFull()
        if isinstance(error, StoreError | KeyringError):
            log.error("store_unavailable", cause=str(error), request_id=call.request_id)
            return StoreUnavailable()
        log.error("internal_error", request_id=call.request_id, exc_info=error)
        return Internal(call.request_id)

    def _log_served(self, call: Call, started: float) -> None:
        log.info("call_served", method=call.method, **self._facts(call, started))

    def _facts(self, call: Call, started: float) -> dict[str, Any]:
        return {
            "request_id": call.request_id,
            "peer": call.peer,
            "key_id": "" if call.caller is None else call.caller.key_id,
            "ms": round((self._clock.monotonic() - started) * 1000, 2),
        }

    def _new_request_id(self) -> str:
        return self._entropy.base62(ID_LENGTH)


def _parser(deserialize: Callable[[bytes], M] | None, *, streaming: bool) -> Callable[[Any], Any]:
    if deserialize is None:
        raise TypeError("a handler without a deserializer cannot be guarded")

    def parse(raw: bytes) -> M:
        try:
            return deserialize(raw)
        except DecodeError:
            raise FieldInvalid("(message)", "not a message of this method") from None

    def parse_each(raw: Iterator[bytes]) -> Iterator[M]:
        return map(parse, raw)

    return parse_each if streaming else parse
