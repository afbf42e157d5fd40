"""Which error callers see for what went wrong inside: one table for every entry point."""

from collections.abc import Callable
from typing import Protocol

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import (
    Internal,
    OutcomeUnknown,
    ServiceError,
    StoreFull,
    StoreUnavailable,
)
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.storage import (
    ClaimFailedError,
    CommitFailedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
)
from keybearer_service.telemetry.log_quotas import MinuteQuota

log = structlog.get_logger(__name__)

LOGGED_A_MINUTE = 10
"""Lines about unforeseen errors."""
OUTAGES_LOGGED_A_MINUTE = 1
"""Lines about a store that cannot be used; while that lasts every call meets it."""


class Referable(Protocol):
    """What a log line and an error name a call by."""

    @property
    def request_id(self) -> str:
        """Names the call."""
        ...


class Failures:
    """Turns what went wrong inside into the errors that callers see."""

    def __init__(self, clock: Clock) -> None:
        self._quota = MinuteQuota(clock, LOGGED_A_MINUTE)
        self._outages = MinuteQuota(clock, OUTAGES_LOGGED_A_MINUTE)

    def error_of(
        self, error: Exception, call: Referable, on_outcome_unknown: Callable[[], None]
    ) -> ServiceError:
        """Return the error that the caller sees, and log what the caller must not see.

        Args:
            error: What was raised.
            call: The call that failed.
            on_outcome_unknown: Called when a commit failed and only a fresh process can go on.
        """
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, CommitFailedError):
            log.critical("commit_failed", cause=str(error), request_id=call.request_id)
            if error.is_fatal:
                on_outcome_unknown()
            return StoreUnavailable() if isinstance(error, ClaimFailedError) else OutcomeUnknown()
        if isinstance(error, StoreFullError):
            return StoreFull()
        if isinstance(error, StoreError | KeyringError):
            event = "store_damaged" if isinstance(error, StoreDamagedError) else "store_unavailable"
            if self._outages.admit(event):
                log.error(event, cause=str(error), request_id=call.request_id)
            return StoreUnavailable()
        if self._quota.admit("internal_error"):
            log.error("internal_error", request_id=call.request_id, exc_info=error)
        return Internal(call.request_id)

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how much was not logged line by line; called every minute."""
        for quota in (self._quota, self._outages):
            for event, count in quota.collect(everything=everything).items():
                log.error(event, not_logged=count)
