"""TokenService."""

from collections import Counter
from functools import partial

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.net.bounds import peer_of
from keybearer_service.rpc.convert.api_keys import issued_fields, overlap
from keybearer_service.rpc.convert.common import idempotency_key
from keybearer_service.rpc.convert.tokens import (
    identity_to_proto,
    question,
    questions,
    write_verdict,
    write_verdicts,
)
from keybearer_service.rpc.convert.watch import watch_message, watch_response_to_proto
from keybearer_service.rpc.requests import MessageStream
from keybearer_service.telemetry.recorder import EntryPoint, Recorder
from keybearer_service.usecases.access import authorize_question
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.revoking import KeyRevoker
from keybearer_service.validation.validator import Validator
from keybearer_service.watch.hub import WatchHub
from keybearer_service.watch.messages import Outgoing


class TokenServicer:
    """Validation of tokens, and what their holders may do with them."""

    def __init__(
        self,
        validator: Validator,
        keys: KeyManager,
        revoker: KeyRevoker,
        watches: WatchHub,
        guesses: PeerLimiter,
        clock: Clock,
        recorder: Recorder,
    ) -> None:
        self._validator = validator
        self._keys = keys
        self._revoker = revoker
        self._watches = watches
        self._guesses = guesses
        self._clock = clock
        self._recorder = recorder

    def ValidateToken(
        self, request: pb.ValidateTokenRequest, call: CallContext
    ) -> pb.ValidateTokenResponse:
        """Validate a token."""
        asked = question(authorize_question(call.identity, request.account_id), request)
        if not asked.presented.token:
            raise FieldInvalid("token", "required")
        started = self._clock.monotonic()
        verdict = self._validator.judge(asked)
        elapsed = self._clock.monotonic() - started
        self._recorder.judged(EntryPoint.VALIDATE, verdict.outcome, elapsed)
        response = pb.ValidateTokenResponse()
        write_verdict(verdict, response)
        return response

    def BatchValidateTokens(
        self, request: pb.BatchValidateTokensRequest, call: CallContext
    ) -> pb.BatchValidateTokensResponse:
        """Validate many tokens against one snapshot."""
        asked = questions(partial(authorize_question, call.identity), request)
        started = self._clock.monotonic()
        verdicts = self._validator.judge_many(asked)
        each = (self._clock.monotonic() - started) / len(verdicts)
        for outcome, count in Counter(verdict.outcome for verdict in verdicts).items():
            self._recorder.judged(EntryPoint.BATCH, outcome, each, count)
        response = pb.BatchValidateTokensResponse()
        write_verdicts(verdicts, response)
        return response

    def WatchInvalidations(self, stream: MessageStream, call: CallContext) -> None:
        """Stream invalidations to a watcher."""
        watcher = self._watches.open(call, _StreamSink(stream))
        stream.listen(lambda request: watcher.take(watch_message(request)), watcher.leave)

    def WhoAmI(self, request: pb.WhoAmIRequest, call: CallContext) -> pb.WhoAmIResponse:
        """Return who the caller is."""
        caller, moment = self._validator.identify_again(call.identity, call.rule, call)
        return identity_to_proto(caller, moment, self._clock.now())

    def RotateSelf(self, request: pb.RotateSelfRequest, call: CallContext) -> pb.RotateSelfResponse:
        """Rotate the secret of the calling key."""
        issued = self._keys.rotate_self(
            call, overlap(request), idempotency_key(call.method, request)
        )
        return pb.RotateSelfResponse(**issued_fields(issued, self._clock.now()))

    def RevokeToken(
        self, request: pb.RevokeTokenRequest, call: CallContext
    ) -> pb.RevokeTokenResponse:
        """Revoke the secret that a token is, for its holder."""
        if not request.token:
            raise FieldInvalid("token", "required")
        is_known = self._revoker.revoke_token(call, request.token)
        # Guesses alone are bounded: a report of a real leak is never refused for those of others.
        if not is_known and self._validator.is_well_formed(request.token):
            self._guesses.admit(peer_of(call.peer))
        return pb.RevokeTokenResponse()


class _StreamSink:
    """Sends the messages of the hub to one watcher."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        self.end = stream.end
        self.cancel = stream.cancel

    @property
    def queued(self) -> int:
        return self._stream.queued

    def send(self, item: Outgoing) -> None:
        self._stream.send(watch_response_to_proto(item))
