"""TokenService: the hot path, and what holders of tokens may do."""

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.rpc import convert
from keybearer_service.rpc.requests import MessageStream
from keybearer_service.telemetry.recorder import EntryPoint, Recorder
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.validation.validator import Validator
from keybearer_service.watch.hub import WatchHub
from keybearer_service.watch.messages import Outgoing


class TokenServicer:
    """Questions about tokens."""

    def __init__(
        self,
        validator: Validator,
        keys: KeyManager,
        watches: WatchHub,
        limiter: PeerLimiter,
        clock: Clock,
        recorder: Recorder,
    ) -> None:
        """Take the use cases, what bounds the one public method, and who hears of verdicts."""
        self._validator = validator
        self._keys = keys
        self._watches = watches
        self._limiter = limiter
        self._clock = clock
        self._recorder = recorder

    def ValidateToken(
        self, request: pb.ValidateTokenRequest, call: CallContext
    ) -> pb.ValidateTokenResponse:
        """Judge a token."""
        question = convert.question(call, request)
        if not question.token:
            raise FieldInvalid("token", "required")
        started = self._clock.monotonic()
        verdict = self._validator.judge(question)
        elapsed = self._clock.monotonic() - started
        self._recorder.judged(EntryPoint.VALIDATE, verdict.outcome, elapsed)
        return convert.verdict_to_proto(verdict)

    def BatchValidateTokens(
        self, request: pb.BatchValidateTokensRequest, call: CallContext
    ) -> pb.BatchValidateTokensResponse:
        """Judge many tokens against one snapshot."""
        questions = convert.questions(call, request)
        started = self._clock.monotonic()
        verdicts = self._validator.judge_many(questions)
        each = (self._clock.monotonic() - started) / len(verdicts)
        for verdict in verdicts:
            self._recorder.judged(EntryPoint.BATCH, verdict.outcome, each)
        return pb.BatchValidateTokensResponse(
            responses=[convert.verdict_to_proto(verdict) for verdict in verdicts]
        )

    def WatchInvalidations(self, stream: MessageStream, call: CallContext) -> None:
        """Send changes as they happen."""
        watcher = self._watches.open(call, _StreamSink(stream))
        stream.listen(lambda request: watcher.take(convert.watch_message(request)), watcher.leave)

    def WhoAmI(self, request: pb.WhoAmIRequest, call: CallContext) -> pb.WhoAmIResponse:
        """Answer who the caller is."""
        caller, revision = self._validator.identify_again(call.identity, call.rule)
        return convert.identity_to_proto(caller, revision, self._clock.now())

    def RotateSelf(self, request: pb.RotateSelfRequest, call: CallContext) -> pb.RotateSelfResponse:
        """Give the calling key a new secret."""
        issued = self._keys.rotate_self(
            call, convert.overlap(request), convert.idempotency_key(call.method, request)
        )
        return pb.RotateSelfResponse(**convert.issued_fields(issued, self._clock.now()))

    def RevokeToken(
        self, request: pb.RevokeTokenRequest, call: CallContext
    ) -> pb.RevokeTokenResponse:
        """Revoke what a token opens, for whoever holds it."""
        self._limiter.admit(call.peer)
        if not request.token:
            raise FieldInvalid("token", "required")
        self._keys.revoke_token(call, request.token)
        return pb.RevokeTokenResponse()


class _StreamSink:
    """The way to one watcher, in the words of `watch`."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        self.end = stream.end
        self.cancel = stream.cancel

    @property
    def queued(self) -> int:
        return self._stream.queued

    def send(self, item: Outgoing) -> None:
        self._stream.send(convert.watch_response_to_proto(item))
