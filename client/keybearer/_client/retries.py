"""When a failed call is repeated, and how long each attempt may take."""

import random
from typing import Any, Final

import grpc

from keybearer._client.requests import Kind, Request
from keybearer.errors import KeybearerError

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds that a method may take in all."""
DEFAULT_TRY_TIMEOUT: Final = 3.0
"""Seconds that one attempt may take."""
MAX_TRIES: Final = {Kind.READ: 3, Kind.WRITE: 1, Kind.ISSUE: 8}
MAX_READ_PAUSE: Final = 0.5
"""Seconds that a read waits at most before the next attempt. When the service asks for a longer
pause, the error is raised and the caller decides."""

_LOST: Final = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
"""The codes of a broken connection. Errors of the service with these codes have a reason."""


class Attempts:
    """The attempts of one call: how long each may take, and whether another one follows.

    Args:
        request: The call. The `attempt` of an ISSUE request grows with every attempt.
        timeout: Seconds for all attempts together.
        try_timeout: Seconds for one attempt.
        now: The monotonic time, in seconds.
    """

    def __init__(
        self, request: Request[Any], timeout: float, try_timeout: float, now: float
    ) -> None:
        self._request = request
        self._try_timeout = try_timeout
        self._end = now + timeout
        self._made = 0
        self._first: KeybearerError | None = None

    def begin(self, now: float) -> float:
        """Count an attempt and return the seconds that it may take."""
        if self._made and self._request.kind is Kind.ISSUE:
            self._request.message.attempt += 1  # type: ignore[attr-defined]  # every ISSUE has one
        self._made += 1
        return max(0.0, min(self._try_timeout, self._end - now))

    def pause_after(self, error: KeybearerError, now: float) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            KeybearerError: No further attempt is made: `error` itself, or that of the first attempt
                of a read which then ran out of time, since that one says the cause.
        """
        first = self._first = self._first or error
        if self._request.kind is Kind.READ and _is_out_of_time(error):
            error = first
        pause = random.uniform(0.5, 1) * min(1.0, 0.05 * 2.0**self._made)
        pause = max(pause, error.retry_after or 0)
        if self._request.kind is Kind.READ and pause > MAX_READ_PAUSE:
            raise error
        if not self._may_repeat(error) or now + pause >= self._end:
            if self._request.kind is Kind.ISSUE:
                error.request_id = self._request.message.request_id  # type: ignore[attr-defined]
                error.attempt = self._request.message.attempt  # type: ignore[attr-defined]
            raise error
        return pause

    def _may_repeat(self, error: KeybearerError) -> bool:
        if self._made >= MAX_TRIES[self._request.kind]:
            return False
        if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return True
        if error.code in _LOST and not error.reason:
            return True  # a server that stops cancels what it has not begun
        return self._request.kind is not Kind.READ and error.reason == "OVERLOADED"


def _is_out_of_time(error: KeybearerError) -> bool:
    return error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not error.reason
