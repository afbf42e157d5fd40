"""Keeps an outage of keybearer from spreading to the service that it guards.

The first checks wait for an answer. Once it is known that checks fail for everybody, callers are
refused at once instead of waiting on the threads of their service, and one probe in the background
finds out when the outage is over.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from keybearer._client.hints import Hint, hint_of
from keybearer._wire.denial import CANNOT_CHECK, RETRY_AFTER
from keybearer.errors import KeybearerError, VerifierUnavailableError

log = logging.getLogger(__name__)

PROBE_TOKEN: Final = "keybearer-probe"  # noqa: S105 - no secret: no key has this token
"""What a probe validates: no caller's token, so that trouble with one key is no outage. An answer
needs the connection, the verifier's own credential and the store, as every check does."""
PROBE_TIMEOUT: Final = 1.0
"""Seconds after which a probe without an answer has failed."""
_FIRST_PAUSE: Final = 0.05
_MAX_PAUSE: Final = 0.5
"""Seconds between two probes."""
_IDLE: Final = 5.0
"""Seconds without a caller after which probing ends; the next caller finds out by itself."""
_SLACK: Final = 1.0

_MEANINGS: Final[Mapping[Hint | None, str]] = {
    Hint.PLAINTEXT_PORT: "; this port speaks plaintext: pass tls=False",
    Hint.UNTRUSTED: "; the certificate is not trusted: pass tls=TLSConfig.from_files(ca=...)",
    Hint.OTHER_NAME: "; the certificate has another name: pass tls=TLSConfig(server_name=...)",
    Hint.NOT_GRPC: "; this is no gRPC port: is it the HTTP port?",
    Hint.TLS_PORT: "; this port may speak TLS (leave out tls=False) or demand a certificate of "
    "the client (TLSConfig.from_files(cert=..., key=...))",
    Hint.NO_SUCH_NAME: "; the address is wrong, or its name is not known here",
}


class OutageGate:
    """Whether checks fail for everybody, and what the log says about it. For any thread.

    Args:
        address: Of keybearer, for the log.
        now: Returns the monotonic time, in seconds.
    """

    # Without a lock, which a fork could leave locked: every assignment stands for itself, and the
    # worst that a race can do is a second probe.

    def __init__(self, address: str, now: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._now = now
        self.start_over()

    def start_over(self) -> None:
        """Forget everything. For the child of a fork."""
        self._is_logged = False
        self._is_known = False
        self._asked_at = 0.0
        self._pause = _FIRST_PAUSE
        self._probed_until = 0.0
        """When the probing thread or task counts as gone: a fork or the end of an event loop may
        have taken it away."""

    def assert_closed(self) -> None:
        """Refuse a check at once when it is known that checks fail for everybody.

        Raises:
            VerifierUnavailableError: It is known.
        """
        if self._is_known:
            self._asked_at = self._now()
            if self._asked_at < self._probed_until:
                raise _unavailable()

    def failed(self, error: Exception) -> VerifierUnavailableError:
        """Note that a check could not be made, and return the error to raise.

        An error with a reason may concern one key alone, so a probe has to confirm it first. One
        without a reason comes from the connection, which everybody shares.
        """
        if not self._is_logged:
            self._is_logged = True
            log.warning(
                "keybearer cannot be reached at %s, every caller is denied: %s%s",
                self._address,
                error,
                _MEANINGS.get(hint_of(error), ""),
            )
        self._asked_at = self._now()
        if isinstance(error, KeybearerError) and not error.reason:
            self._is_known = True
        return _unavailable()

    def recovered(self) -> None:
        """Note that a check could be made."""
        self._is_known = False
        if self._is_logged:
            self._is_logged = False
            log.warning("keybearer can be reached again at %s", self._address)

    # --- probing ----------------------------------------------------------------------------------

    def begin_probing(self) -> bool:
        """Return whether the caller has to probe, since nobody else does."""
        if self._now() < self._probed_until:
            return False
        self._pause = _FIRST_PAUSE
        self._plan(0)
        return True

    def probe_succeeded(self) -> None:
        """Note that a probe was answered."""
        self._probed_until = 0.0
        self.recovered()

    def probe_failed(self) -> float | None:
        """Return the seconds until the next probe; None when nobody has asked for a while."""
        if self._now() - self._asked_at > _IDLE:
            self._is_known = False
            self._probed_until = 0.0
            return None
        self._is_known = True
        pause = self._pause * random.uniform(0.5, 1)
        self._pause = min(_MAX_PAUSE, self._pause * 2)
        self._plan(pause)
        return pause

    def _plan(self, pause: float) -> None:
        self._probed_until = self._now() + pause + PROBE_TIMEOUT + _SLACK


def probe_in_thread(gate: OutageGate, probe: Callable[[], object]) -> None:
    """Probe on a thread until the outage is over, unless somebody probes already.

    Args:
        gate: What the probes are about.
        probe: Validates PROBE_TOKEN, and raises when there is no answer.
    """

    def run() -> None:
        while True:
            try:
                probe()
            except Exception:  # noqa: BLE001 - whatever happened, there is no answer
                pause = gate.probe_failed()
                if pause is None:
                    return
                time.sleep(pause)
            else:
                gate.probe_succeeded()
                return

    if gate.begin_probing():
        threading.Thread(target=run, name="keybearer-probe", daemon=True).start()


def probe_in_task(
    gate: OutageGate, probe: Callable[[], Awaitable[object]]
) -> "asyncio.Task[None] | None":
    """Probe in a task, as `probe_in_thread` does, and return the task, which must be kept."""

    async def run() -> None:
        while True:
            try:
                await probe()
            except Exception:  # noqa: BLE001 - whatever happened, there is no answer
                pause = gate.probe_failed()
                if pause is None:
                    return
                await asyncio.sleep(pause)
            else:
                gate.probe_succeeded()
                return

    return asyncio.create_task(run()) if gate.begin_probing() else None


def _unavailable() -> VerifierUnavailableError:
    return VerifierUnavailableError(CANNOT_CHECK, retry_after=RETRY_AFTER)
