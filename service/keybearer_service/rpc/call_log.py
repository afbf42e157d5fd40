"""How a call ended: its status, its log line, its metrics, its audit event."""

from collections.abc import Callable
from typing import Any

import structlog
from google.rpc.status_pb2 import Status

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import CallAbandoned, Code, StoreUnavailable, StreamEnded
from keybearer_service.gateway.status import status_of
from keybearer_service.net.bounds import peer_of
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.telemetry.recorder import Recorder
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.failures import Failures

log = structlog.get_logger(__name__)

LOGGED_A_MINUTE = 10
"""Refused calls of one peer, and failed calls of one key, that get a line each; the rest are
counted."""
OVERLOADS_LOGGED_A_MINUTE = 1
"""Calls for which an executor has no room that get a line; the rest are counted."""
_REFUSALS = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})
_CANCELLED = Status(code=1, message="the caller has gone")
_DEADLINE_EXCEEDED = Status(code=4, message="the deadline is over")


class CallLog:
    """Turns the end of a call into what callers, operators and auditors see of it."""

    def __init__(
        self,
        *,
        quiet: frozenset[str],
        failures: Failures,
        refusals: RefusalLog,
        recorder: Recorder,
        clock: Clock,
        on_outcome_unknown: Callable[[], None],
    ) -> None:
        """Create the log.

        Args:
            quiet: Paths too frequent to log or audit one by one: the validating ones.
            failures: Knows which error a caller sees.
            refusals: Audits refused management calls.
            recorder: Counts every call that is not quiet, and refused callers.
            clock: Measures calls.
            on_outcome_unknown: Called when a commit failed; the process is to end.
        """
        self._quiet = quiet
        self._failures = failures
        self._refusals = refusals
        self._recorder = recorder
        self._clock = clock
        self._on_outcome_unknown = on_outcome_unknown
        self._logged_refusals = MinuteQuota(clock, LOGGED_A_MINUTE)
        self._logged_failures = MinuteQuota(clock, LOGGED_A_MINUTE)
        self._logged_overloads = MinuteQuota(clock, OVERLOADS_LOGGED_A_MINUTE)

    def served(self, call: CallContext) -> None:
        """Report a call that was answered."""
        if call.method not in self._quiet:
            self._recorder.called(call.method, "OK")
            self._log_served(call)

    def stream_ended(self, call: CallContext) -> None:
        """Report a stream that its caller ended, or that ended in order."""
        # Nobody without a credential may fill the log.
        if call.caller is not None:
            self._log_served(call)

    def failed(self, call: CallContext, error: Exception) -> Status:
        """Report a call that failed; return its status."""
        if isinstance(error, CallAbandoned):  # nobody waits for an answer
            remaining = call.remaining_s
            return _CANCELLED if remaining is None or remaining > 0 else _DEADLINE_EXCEEDED
        known = self._failures.error_of(error, call, self._on_outcome_unknown)
        is_refusal = known.code in _REFUSALS
        if is_refusal:
            self._recorder.refused("grpc", known.reason)
        if call.method not in self._quiet:
            self._recorder.called(call.method, known.code.name)
            if is_refusal:
                self._refusals.refused(call, known.reason)
        if isinstance(known, StreamEnded):
            self.stream_ended(call)
        elif not isinstance(known, StoreUnavailable) and self._is_logged(
            call, is_refusal=is_refusal
        ):  # an outage is logged once, not for each call that meets it
            log.warning(
                "call_refused" if is_refusal else "call_failed",
                method=call.method,
                code=known.code.name,
                reason=known.reason,
                **self._facts(call),
            )
        return status_of(known)

    def overloaded(self, executor: str) -> None:
        """Report a call that was refused because too many of its kind wait."""
        self._recorder.overloaded(executor, "all")
        if self._logged_overloads.admit(executor):
            log.warning("calls_overloaded", executor=executor)

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how much was not logged line by line; called every minute."""
        for peer, count in self._logged_refusals.collect(everything=everything).items():
            log.warning("calls_refused", peer=peer, not_logged=count)
        for key_id, count in self._logged_failures.collect(everything=everything).items():
            log.warning("calls_failed", key_id=key_id, not_logged=count)
        for executor, count in self._logged_overloads.collect(everything=everything).items():
            log.warning("calls_overloaded", executor=executor, not_logged=count)

    def _log_served(self, call: CallContext) -> None:
        log.info("call_served", method=call.method, **self._facts(call))

    def _is_logged(self, call: CallContext, *, is_refusal: bool) -> bool:
        # Nobody may fill the log, with a credential or without.
        if call.caller is None or is_refusal:
            return self._logged_refusals.admit(peer_of(call.peer))
        return self._logged_failures.admit(call.caller.key_id)

    def _facts(self, call: CallContext) -> dict[str, Any]:
        return {
            "request_id": call.request_id,
            "peer": call.peer,
            "key_id": "" if call.caller is None else call.caller.key_id,
            "ms": round((self._clock.monotonic() - call.started) * 1000, 2),
        }
