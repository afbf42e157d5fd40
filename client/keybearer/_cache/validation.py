"""One validation at the server: its attempts, and what is kept of its verdicts."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from keybearer._cache.connection import Connection
from keybearer._cache.verdict_cache import SECOND, VerdictCache
from keybearer._client.remote import request_about, restrict_all_to_account
from keybearer.errors import KeybearerError, VerifierUnavailableError, from_rpc_error
from keybearer.models import Verdict

RETRY_TIMEOUT: Final = 0.5
"""Seconds that a broken connection has to return within one validation."""
_BROKEN: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class Validation:
    """The validation of up to 100 tokens, which begins now.

    Args:
        connection: Where it is sent.
        verdicts: Where its verdicts are kept.
        tokens: The tokens, each once.
        account_id: The account restriction.
        timeout: Seconds that all attempts may take together.
        clock: Nanoseconds; see `verdict_cache`.
    """

    def __init__(
        self,
        connection: Connection,
        verdicts: VerdictCache,
        *,
        tokens: Sequence[str],
        account_id: str,
        timeout: float,
        clock: Callable[[], int],
    ) -> None:
        now = clock()
        self._connection = connection
        self._verdicts = verdicts
        self._pending = [verdicts.begin(token, now) for token in tokens]
        self._account_id = account_id
        self._request = request_about(tokens, account_id)
        self._end = now + int(timeout * SECOND)
        self._clock = clock
        self._first_error: KeybearerError | None = None
        self._asked_over = 0
        """The number of the connection of the last attempt."""

    def method(self) -> Any:
        """Return the method that the next attempt calls.

        Raises:
            VerifierUnavailableError: The verifier is closed.
        """
        stubs = self._connection.stubs()
        self._asked_over = stubs.number
        return stubs.batch_validate_tokens if len(self._pending) > 1 else stubs.validate_token

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the next attempt, without its metadata."""
        left = max(0.0, (self._end - self._clock()) / SECOND)
        is_second = self._first_error is not None
        return {
            "request": self._request.message,
            "timeout": min(RETRY_TIMEOUT, left) if is_second else left,
            # A connection that broke under the first attempt may be back in a moment.
            "wait_for_ready": is_second,
        }

    def failed(self, error: Any) -> None:
        """Note that an attempt failed, and return when another one has to be made.

        Args:
            error: A `grpc.RpcError`, or a call that has ended.

        Raises:
            KeybearerError: There is no other attempt.
        """
        if self._connection.is_closed:
            raise VerifierUnavailableError("the verifier was closed")
        if self._first_error is not None or error.code() not in _BROKEN:
            # The second attempt waits for a connection, so its own error does not say the cause.
            raise self._first_error or from_rpc_error(error)
        self._first_error = from_rpc_error(error)

    def read(self, response: Any) -> list[Verdict]:
        """Return the verdicts of a response, and keep what may be kept of them."""
        verdicts = restrict_all_to_account(self._request.read(response), self._account_id)
        if len(verdicts) == len(self._pending):
            for pending, verdict in zip(self._pending, verdicts, strict=True):
                self._verdicts.store(pending, verdict, self._asked_over)
        return verdicts
