"""What happens to a call on its way to a servicer and back.

One interceptor, in this order: open the call, authenticate and judge its caller, parse the request,
serve it, turn errors into a status, log. Layers of interceptors would say the same and cost every
validation a twentieth of its time each, so the order stands in one method.

`intercept_service` runs on grpc's one serving thread and only picks the handler, made once for
each method. Everything else runs in the wrapped behaviour. Requests are parsed by us, not by grpc,
so that authorisation comes before parsing and bytes that do not parse get our own error. And every
method is served as if its requests were a stream: grpc then calls us as soon as the headers are
there, so that the caller is judged before its message is waited for, and we do the waiting.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from keybearer.access import AccessRule, RuleError
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    CallAbandoned,
    Code,
    FieldInvalid,
    Internal,
    OutcomeUnknown,
    ServiceError,
    StoreFull,
    StoreUnavailable,
    StreamEnded,
)
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.domain.verdict import Caller
from keybearer_service.gateway.status import status_of
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.rpc.bidi import BidiStream
from keybearer_service.rpc.credentials import bearer_token
from keybearer_service.rpc.executors import SLOW_AFTER_S, CallExecutor, MessageWatchdog
from keybearer_service.storage import CommitFailedError, StoreError, StoreFullError
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.telemetry.recorder import Recorder
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.call_context import CallContext, set_current_call
from keybearer_service.validation.validator import Validator, judge_caller

log = structlog.get_logger(__name__)
REFUSALS_LOGGED_A_MINUTE = 10
"""Refused calls of one peer that get a log line each; the rest are counted."""
_REFUSALS = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
M = TypeVar("M")


class CallPipeline(grpc.ServerInterceptor):
    """Guards and serves every method of ours; lets the exempted ones through."""

    def __init__(
        self,
        rules: Mapping[str, AccessRule],
        *,
        exempt: frozenset[str],
        quiet: frozenset[str],
        pools: Mapping[str, CallExecutor],
        message_watchdog: MessageWatchdog,
        validator: Validator,
        authenticate_stream: Callable[[str], Caller],
        refusals: RefusalLog,
        clock: Clock,
        entropy: Entropy,
        recorder: Recorder,
        on_outcome_unknown: Callable[[], None],
    ) -> None:
        """Take what calls are judged by.

        Args:
            rules: The access rule of each of our methods, by path.
            exempt: Paths served without any judgement: health and reflection, by exact name.
            quiet: Paths too frequent to log or audit one by one: the validating ones.
            pools: The threads that each method runs on.
            message_watchdog: Waits for the messages of calls.
            validator: Authenticates callers.
            authenticate_stream: Authenticates those of streams: so many begin at once after a
                restart that they share their reads of the store.
            refusals: Audits refused management calls.
            clock: Measures calls.
            entropy: Draws request ids.
            recorder: Is told of every call that is not quiet, and of refused callers.
            on_outcome_unknown: Called when a commit failed; the process is to end.
        """
        self._rules = rules
        self._exempt = exempt
        self._quiet = quiet
        self._pools = pools
        self._message_watchdog = message_watchdog
        self._authenticate = validator.authenticate
        self._authenticate_stream = authenticate_stream
        self._refusals = refusals
        self._clock = clock
        self._entropy = entropy
        self._recorder = recorder
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
        if handler is None:
            return None
        if method in self._exempt:
            served = handler if handler.request_streaming else self._unguarded(method, handler)
        elif method in self._rules:
            served = self._guard(method, handler)
        else:
            raise RuleError(f"{method} is served and has no access rule")
        self._handlers[method] = served
        return served

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how many refusals were not logged one by one; called every minute."""
        for peer, count in self._logged_refusals.collect(everything=everything).items():
            log.warning("calls_refused", peer=peer, not_logged=count)

    # --- wrapping ---------------------------------------------------------------------------------

    def _guard(
        self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]"
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        rule, pool = self._rules[method], self._pools[method]
        behaviour = _behaviour_of(handler)
        parse = _parser(handler.request_deserializer)
        if handler.response_streaming:
            guarded = self._converse(method, rule, behaviour, parse, handler, pool)
        else:
            guarded = self._answer(method, rule, behaviour, parse, pool)
        # grpc reads the executor from the behaviour it is given, which is now this one.
        guarded.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return _stream_handler(handler, guarded, None)

    def _answer(
        self,
        method: str,
        rule: AccessRule,
        behaviour: Behaviour,
        parse: Callable[[bytes], Any],
        pool: CallExecutor,
    ) -> Callable[..., Any]:
        def read(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return parse(self._message_watchdog.first_message(raw, context, pool))

        def guarded(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return self._serve(method, rule, behaviour, read, raw, context)

        return guarded

    def _converse(
        self,
        method: str,
        rule: AccessRule,
        behaviour: Behaviour,
        parse: Callable[[bytes], Any],
        handler: "grpc.RpcMethodHandler[Any, Any]",
        pool: CallExecutor,
    ) -> Callable[..., Any]:
        serialize = handler.response_serializer
        if not handler.request_streaming or serialize is None:
            raise TypeError(f"{method}: answers in a stream are for methods with messages each way")

        def guarded(
            _raw: Iterator[bytes],
            context: grpc.ServicerContext,
            send_status: Callable[[None], None],
        ) -> None:
            started = self._clock.monotonic()
            call = CallContext(method, rule, context, self._new_request_id)

            def conclude(error: Exception) -> None:
                status = self._status_of(call, error, started)
                context.set_trailing_metadata(status.trailing_metadata)
                context.set_code(status.code)
                context.set_details(status.details)

            try:
                self._admit(call, context, self._authenticate_stream)
                conversation = BidiStream[Any, Any](
                    context,
                    parse=parse,
                    serialize=serialize,
                    conclude=conclude,
                    left=lambda: self._log_served(call, started),
                    send_status=send_status,
                    executor=pool,
                )
                behaviour(conversation, context)
            except Exception as error:  # noqa: BLE001 - as in _serve
                self._fail(call, context, error, started)
            finally:
                set_current_call(None)

        guarded.experimental_non_blocking = True  # type: ignore[attr-defined]
        return guarded

    def _unguarded(
        self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]"
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        pool = self._pools[method]
        behaviour = cast("Callable[..., Any]", _behaviour_of(handler))

        def served(requests: Iterator[Any], context: grpc.ServicerContext, *callback: Any) -> Any:
            try:
                request = self._message_watchdog.first_message(requests, context, pool)
            except (ServiceError, CallAbandoned):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "exactly one message is needed")
            return behaviour(request, context, *callback)

        vars(served).update(vars(behaviour))
        served.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return _stream_handler(handler, served, handler.request_deserializer)

    def _serve(
        self,
        method: str,
        rule: AccessRule,
        behaviour: Behaviour,
        read: Callable[[Any, grpc.ServicerContext], Any],
        raw: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Any:
        started = self._clock.monotonic()
        call = CallContext(method, rule, context, self._new_request_id)
        try:
            self._admit(call, context, self._authenticate)
            request = read(raw, context)
            if self._clock.monotonic() - started > SLOW_AFTER_S:
                # Whoever holds a message back must not outlive a revocation by it.
                self._admit(call, context, self._authenticate)
            response = behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the one place where every error becomes a status
            self._fail(call, context, error, started)
        finally:
            set_current_call(None)
        if method not in self._quiet:
            self._recorder.called(method, "OK")
            self._log_served(call, started)
        return response

    # --- the steps --------------------------------------------------------------------------------

    def _admit(
        self,
        call: CallContext,
        context: grpc.ServicerContext,
        authenticate: Callable[[str], Caller],
    ) -> None:
        if not call.rule.public:
            call.caller = authenticate(bearer_token(context.invocation_metadata()))
            judge_caller(call.caller, call.rule)
        set_current_call(call)

    def _fail(
        self, call: CallContext, context: grpc.ServicerContext, error: Exception, started: float
    ) -> NoReturn:
        if isinstance(error, CallAbandoned):  # nobody waits for an answer
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        context.abort_with_status(self._status_of(call, error, started))

    def _status_of(self, call: CallContext, error: Exception, started: float) -> grpc.Status:
        """Answer the status that an error becomes, and tell those who are to hear of it."""
        known = self._known(call, error)
        refused = known.code in _REFUSALS
        if refused and call.method not in self._quiet:
            self._refusals.refused(call, known.reason)
        if refused:
            self._recorder.refused("grpc", known.reason)
        if call.method not in self._quiet:
            self._recorder.called(call.method, known.code.name)
        if isinstance(known, StreamEnded):
            self._log_served(call, started)
        # Without a credential nobody fills the log.
        elif (not refused and call.caller is not None) or self._logged_refusals.admit(call.peer):
            log.warning(
                "call_refused" if refused else "call_failed",
                method=call.method,
                code=known.code.name,
                reason=known.reason,
                **self._facts(call, started),
            )
        return rpc_status.to_status(status_of(known))

    def _known(self, call: CallContext, error: Exception) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, CommitFailedError):
            log.critical("commit_failed", cause=str(error), request_id=call.request_id)
            if error.is_fatal:
                self._on_outcome_unknown()
            return OutcomeUnknown()
        if isinstance(error, StoreFullError):
            return StoreFull()
        if isinstance(error, StoreError | KeyringError):
            log.error("store_unavailable", cause=str(error), request_id=call.request_id)
            return StoreUnavailable()
        log.error("internal_error", request_id=call.request_id, exc_info=error)
        return Internal(call.request_id)

    def _log_served(self, call: CallContext, started: float) -> None:
        log.info("call_served", method=call.method, **self._facts(call, started))

    def _facts(self, call: CallContext, started: float) -> dict[str, Any]:
        return {
            "request_id": call.request_id,
            "peer": call.peer,
            "key_id": "" if call.caller is None else call.caller.key_id,
            "ms": round((self._clock.monotonic() - started) * 1000, 2),
        }

    def _new_request_id(self) -> str:
        return self._entropy.base62(ID_LENGTH)


def _behaviour_of(handler: "grpc.RpcMethodHandler[Any, Any]") -> Behaviour:
    return cast(
        "Behaviour",
        handler.stream_stream
        or handler.stream_unary
        or handler.unary_stream
        or handler.unary_unary,
    )


def _stream_handler(
    handler: "grpc.RpcMethodHandler[Any, Any]",
    behaviour: Callable[..., Any],
    deserialize: Callable[[bytes], Any] | None,
) -> "grpc.RpcMethodHandler[Any, Any]":
    make = (
        grpc.stream_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return make(
        behaviour,
        request_deserializer=deserialize,
        response_serializer=handler.response_serializer,
    )


def _parser(deserialize: Callable[[bytes], M] | None) -> Callable[[bytes], M]:
    if deserialize is None:
        raise TypeError("a handler without a deserializer cannot be guarded")

    def parse(raw: bytes) -> M:
        try:
            return deserialize(raw)
        except DecodeError:
            raise FieldInvalid("(message)", "not a message of this method") from None

    return parse
