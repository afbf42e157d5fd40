"""Liveness and readiness: questions that many may ask at once and that are put once.

Liveness: grpc's serving thread and each executor answer a question that needs no store; an error is
an answer. Readiness: that, and the store answered within 2 s. Never the store in liveness: a locked
file or a failover must not restart anybody.
"""

import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import structlog

from keybearer._wire.status import read_details
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import CredentialsMissing
from keybearer_service.rpc.executors import CallExecutor
from keybearer_service.rpc.handlers import is_private
from keybearer_service.telemetry.log_quotas import OutageLog

log = structlog.get_logger(__name__)

ANSWER_WITHIN_S = 2.0
LIVENESS_METHOD = "/keybearer.private.Liveness/Ask"
HOT_METHOD = "/keybearer.v1.TokenService/ValidateToken"
_YES, _NO = b"yes", b"no"
WATCHDOG_QUESTIONS = 3
"""Questions in a row that go unanswered before a process ends itself."""
WATCHDOG_INTERVAL_S = 10.0
_TICK_S = 1.0
_SUSPENDED_S = 5.0
"""A tick that took this long was no tick: the process was stopped, or the machine slept."""


class SharedQuestion:
    """A yes-or-no question on a thread of its own, so that asking often costs no more than once."""

    def __init__(self, name: str, put: Callable[[], bool], clock: Clock) -> None:
        self._put = put
        self._clock = clock
        self._lock = threading.Lock()
        self._round: _Round | None = None
        self._wanted = threading.Event()
        self._is_closing = False
        self._outage = OutageLog(f"{name.replace('-', '_')}_failed")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Return no from now on. A question that hangs is left behind."""
        self._is_closing = True
        self._wanted.set()

    def ask(self) -> bool:
        """Return the answer; no when it does not come within ANSWER_WITHIN_S of being put."""
        if self._is_closing:
            return False
        with self._lock:
            now = self._clock.monotonic()
            if self._round is None or self._round.is_over.is_set():
                self._round = _Round(now)
                self._wanted.set()
            current = self._round
        current.is_over.wait(max(0.0, current.put_at + ANSWER_WITHIN_S - now))
        return current.answer

    def _run(self) -> None:
        while not self._is_closing:
            self._wanted.wait()
            self._wanted.clear()
            current = self._round
            if current is None or current.is_over.is_set():
                continue
            try:
                current.answer = self._put()
                self._outage.recovered()
            except Exception as error:  # noqa: BLE001 - whatever it is, the answer is no
                self._outage.failed(error)
            current.is_over.set()


class _Round:
    def __init__(self, put_at: float) -> None:
        self.put_at = put_at
        self.answer = False
        self.is_over = threading.Event()


def executors_answer(executors: Sequence[CallExecutor]) -> bool:
    """Return whether every executor ends a task, an empty one or another, within 2 s.

    An executor whose threads all wait for a locked store is busy and not dead: each of its tasks
    ends in time, with an error.
    """
    pings = [executor.ping() for executor in executors]
    return all(ping.answered_within(ANSWER_WITHIN_S) for ping in pings)


class PrivateListener:
    """A socket in a private directory on which the process asks itself whether it answers.

    The public port cannot be asked: it may want a client certificate, and with several workers the
    kernel chooses who answers on it.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="keybearer-"))
        self.address = f"unix:{self._directory}/liveness.sock"
        self._channel: grpc.Channel | None = None

    def ask(self) -> bool:
        """Return whether the serving thread, the executors and the hot loop answer."""
        if self._channel is None:
            self._channel = _private_channel(self.address)
        try:
            ask: Any = self._channel.unary_unary(LIVENESS_METHOD)
            answer: bytes = ask(b"", timeout=2 * ANSWER_WITHIN_S)
        except grpc.RpcError as error:
            # An error is an answer, unless it says that none came.
            return error.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            )
        return answer == _YES

    def close(self) -> None:
        """Remove the socket and its directory."""
        if self._channel is not None:
            self._channel.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def hot_loop_works(address: str) -> bool:
    """Return whether a server on a private socket serves the hot methods on its loop."""
    with _private_channel(address) as channel:
        ask: Any = channel.unary_unary(HOT_METHOD)
        try:
            # Only the loop has an answer to this on the private socket, the one that a call without
            # a credential gets.
            ask(b"", timeout=ANSWER_WITHIN_S)
        except grpc.RpcError as error:
            call: Any = error
            details = read_details(call.trailing_metadata())
            return (call.code(), details.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                CredentialsMissing.reason,
            )
    return False


def _private_channel(address: str) -> grpc.Channel:
    return grpc.secure_channel(
        address,
        grpc.local_channel_credentials(grpc.LocalConnectionType.UDS),
        options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)],
    )


def liveness_handler(executors_answer: Callable[[], bool], own: CallExecutor) -> Any:
    """Return the handler of the one method of the private listener.

    Args:
        executors_answer: Returns whether every executor ends its tasks.
        own: Runs the question, so that it never waits behind the calls of others.
    """

    def ask(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if not is_private(context):
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return _YES if executors_answer() else _NO

    ask.experimental_thread_pool = own  # type: ignore[attr-defined]
    return grpc.unary_unary_rpc_method_handler(ask)


class Watchdog:
    """Ends a process that no longer answers, with a stack of every thread in the log."""

    def __init__(
        self,
        is_live: Callable[[], bool],
        clock: Clock,
        on_unresponsive: Callable[[], None],
    ) -> None:
        """Create the watchdog.

        Args:
            is_live: Returns whether the process answers, within a few seconds.
            clock: Tells whether the watchdog's own thread runs.
            on_unresponsive: Ends the process; called once.
        """
        self._is_live = is_live
        self._clock = clock
        self._on_unresponsive = on_unresponsive
        self._unanswered = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def _run(self) -> None:
        while self._waited_awake():
            self._unanswered = 0 if self._is_live() else self._unanswered + 1
            if self._unanswered:
                log.error("liveness_unanswered", times=self._unanswered)
            if self._unanswered >= WATCHDOG_QUESTIONS and not self._stopping.is_set():
                log.critical("unresponsive", stacks=stacks())
                self._on_unresponsive()
                return

    def _waited_awake(self) -> bool:
        """Wait until this thread has run for the whole interval; return False at the end."""
        ticks = 0
        while ticks < WATCHDOG_INTERVAL_S / _TICK_S:
            before = self._clock.monotonic()
            if self._stopping.wait(_TICK_S):
                return False
            if self._clock.monotonic() - before > _SUSPENDED_S:
                ticks = self._unanswered = 0
            else:
                ticks += 1
        return True


def stacks() -> dict[str, list[str]]:
    """Return where every thread is, by its name: functions and lines, never values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): [
            f"{Path(entry.filename).name}:{entry.lineno} {entry.name}"
            for entry in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - its documented name
    }
