"""What happens to a call between its headers and its answer.

One object for each method, and one order of steps: authenticate, judge, parse, serve, map errors,
log. The caller is judged before its message is parsed, so that nobody without authority learns
whether a message is well-formed, and bytes that do not parse get an error of ours. Nothing here
knows grpc: every way into the service hands in a `Request` and gets bytes or a status back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from keybearer.access import AccessRule
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.rpc.call_log import CallLog
from keybearer_service.rpc.credentials import presented_in
from keybearer_service.rpc.executors import SLOW_AFTER_S
from keybearer_service.rpc.requests import MessageStream, Request, StreamRequest
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.validation.callers import Callers


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """One method as it is declared."""

    path: str
    """`/package.Service/Method`."""
    rule: AccessRule
    request: type[Message]
    response: type[Message]
    is_stream: bool = False
    """Whether messages go each way."""


class _Method:
    """The steps that unary methods and streams share."""

    def __init__(
        self,
        spec: MethodSpec,
        *,
        callers: Callers,
        log: CallLog,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self.spec = spec
        self._rule = spec.rule
        self._from_bytes: Callable[[bytes], Any] = spec.request.FromString
        self._callers = callers
        self._log = log
        self._clock = clock
        self._entropy = entropy

    def begin(self, request: Request) -> CallContext:
        """Return the call that a request begins."""
        return CallContext(
            self.spec.path, self._rule, request, self._new_request_id, self._clock.monotonic()
        )

    def admit(self, call: CallContext, request: Request) -> None:
        """Authenticate the caller and judge it by the rule of the method.

        Raises:
            ServiceError, StoreError: See `Callers.admit`.
        """
        if not self._rule.public:
            self._callers.admit(call, presented_in(request))

    def parse(self, raw: bytes) -> Any:
        """Return the message.

        Raises:
            FieldInvalid: The bytes are none of this method.
        """
        try:
            return self._from_bytes(raw)
        except DecodeError:
            raise FieldInvalid("(message)", "not a message of this method") from None

    def _new_request_id(self) -> str:
        return self._entropy.base62(ID_LENGTH)


class UnaryMethod(_Method):
    """A method with one message each way."""

    def __init__(
        self, spec: MethodSpec, serve: Callable[[Any, CallContext], Message], **shared: Any
    ) -> None:
        super().__init__(spec, **shared)
        self._serve = serve

    def answer(self, request: Request) -> bytes | Status:
        """Return the answer's bytes, or the status of a call that failed."""
        call = self.begin(request)
        try:
            self.admit(call, request)
            raw = request.message()
            if self._clock.monotonic() - call.started > SLOW_AFTER_S:
                # Whoever holds its message back must not outlive a revocation by it.
                self.admit(call, request)
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            return self.refuse(call, error)
        return self.finish(call, raw)

    def finish(self, call: CallContext, raw: bytes) -> bytes | Status:
        """Return what `answer` does, for a call whose caller is admitted."""
        try:
            answer = self.serve(call, self.parse(raw))
        except Exception as error:  # noqa: BLE001 - as in `answer`
            return self.refuse(call, error)
        self.served(call)
        return answer

    def serve(self, call: CallContext, message: Any) -> bytes:
        """Return the answer's bytes; raise what the call fails with."""
        return self._serve(message, call).SerializeToString()

    def served(self, call: CallContext) -> None:
        """Report a call that was answered."""
        self._log.served(call)

    def refuse(self, call: CallContext, error: Exception) -> Status:
        """Report a call that failed; return its status. The one place where errors become such."""
        return self._log.failed(call, error)


class StreamMethod(_Method):
    """A method with a stream of messages each way."""

    def __init__(
        self, spec: MethodSpec, serve: Callable[[MessageStream, CallContext], None], **shared: Any
    ) -> None:
        super().__init__(spec, **shared)
        self._serve = serve

    def open(self, request: StreamRequest) -> Status | None:
        """Open the stream; return the status of one that cannot be opened."""
        call = self.begin(request)
        try:
            self.admit(call, request)
            stream = request.open(
                parse=self.parse,
                serialize=self.spec.response.SerializeToString,
                status_of=partial(self._log.failed, call),
                on_left=partial(self._log.stream_ended, call),
            )
            self._serve(stream, call)
        except Exception as error:  # noqa: BLE001 - as in UnaryMethod.answer
            return self._log.failed(call, error)
        return None
