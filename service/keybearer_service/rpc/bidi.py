"""A stream of messages each way that costs no thread.

grpc's own streams hold a thread that sleeps until a message comes and again until each answer is
sent. With hundreds of streams that ping twice a second, all these wake-ups compete with validations
for the one interpreter: they made the slowest of them twice as slow. Here a message is taken where
grpc hears of it, on its serving thread, and the thread that has an answer begins to send it.

The first half of this is public (`experimental_non_blocking`, as grpc's own health service uses
it); for receiving and sending without waiting grpc has no public way, so this module and
`hot_loop` use `grpc._server`, and nothing else does. What they take from there is the same from
1.67 to 1.85.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

import grpc
import structlog
from grpc import _server

log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")

_cygrpc: Any = _server.cygrpc  # type: ignore[attr-defined]
_NO_FLAGS = 0
_RECEIVING: str = _server._RECEIVE_MESSAGE_TOKEN  # noqa: SLF001 - see above
_SENDING: str = _server._SEND_MESSAGE_TOKEN  # noqa: SLF001 - see above


class BidiStream(Generic[Request, Response]):
    """One open call with messages each way. May be used by any thread."""

    def __init__(
        self,
        context: grpc.ServicerContext,
        *,
        parse: Callable[[bytes], Request],
        serialize: Callable[[Response], bytes],
        conclude: Callable[[Exception], None],
        left: Callable[[], None],
        send_status: Callable[[None], None],
        executor: Executor,
    ) -> None:
        """Create the stream; nothing is read before `listen`.

        Args:
            context: Of the call.
            parse: Reads a message; what it raises ends the call.
            serialize: Writes one.
            conclude: Sets the status of the call on its context.
            left: Is told when the other side has ended the call, so that there is no status to set.
            send_status: grpc's callback of a behaviour that does not block; None ends the call.
            executor: Runs the end of the call, which is logged; grpc's serving thread must not be.
        """
        self._context = context
        self._parse = parse
        self._serialize = serialize
        self._conclude = conclude
        self._left = left
        self._send_status = send_status
        self._executor = executor
        self._state: Any = context._state  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        self._call: Any = context._rpc_event.call  # type: ignore[attr-defined]  # noqa: SLF001
        # Of grpc's, because it guards what grpc knows of the call too. May be taken again by its
        # holder.
        self._lock = self._state.condition
        self._on_message: Callable[[Request], None] | None = None
        self._on_half_close: Callable[[], None] | None = None
        self._outbox: deque[bytes] = deque()
        self._is_sending = False
        self._is_ending = False
        self._is_finished = False
        self._error: Exception | None = None

    def listen(
        self,
        on_message: Callable[[Request], None],
        on_end: Callable[[], None],
        on_half_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to read.

        Args:
            on_message: Is given each message, in order, on grpc's one serving thread: it must not
                wait for anything. What it raises ends the call.
            on_end: Called once, when the call is over, whichever side ended it.
            on_half_close: Called when the other side sends no more and may go on listening; like
                `on_message` it must not wait.
        """
        self._on_message = on_message
        self._on_half_close = on_half_close

        def over() -> None:
            # What they hold leads back to here, and a call that is held counts among the 100 of
            # its connection.
            self._on_message, self._on_half_close, self._error = None, None, None
            self._outbox.clear()
            on_end()
            if not self._is_ending:
                self._executor.submit(self._left)

        if self._context.add_callback(over):
            self._receive()
        else:
            over()

    def send(self, response: Response) -> None:
        """Send a message once those before it are sent; nothing when the call is over."""
        message = self._serialize(response)
        with self._lock:
            if self._is_open and self._error is None:
                self._outbox.append(message)
                self._go_on()

    def end(self, error: Exception) -> None:
        """End the call with the status of an error, once what was to be sent before is sent."""
        with self._lock:
            if self._is_open and self._error is None:
                self._error = error
                self._go_on()

    def finish(self) -> None:
        """End the call in order, once what was to be sent before is sent."""
        with self._lock:
            if self._is_open and self._error is None:
                self._is_finished = True
                self._go_on()

    def cancel(self) -> None:
        """Cut the call off, also while the other side does not read."""
        self._context.cancel()

    @property
    def queued(self) -> int:
        """How many messages wait to be sent."""
        return len(self._outbox)

    @property
    def _is_open(self) -> bool:
        return bool(_server._is_rpc_state_active(self._state))  # noqa: SLF001 - see above

    # --- on grpc's serving thread -----------------------------------------------------------------

    def _receive(self) -> None:
        with self._lock:
            if self._is_open:
                self._start((_cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._received)
                self._state.due.add(_RECEIVING)

    def _received(self, event: Any) -> Any:
        message: bytes | None = event.batch_operations[0].message()
        ended = self._done(_RECEIVING)
        on_message = self._on_message
        if message is None:
            if self._on_half_close is not None:
                self._on_half_close()
        elif on_message is not None:
            try:
                on_message(self._parse(message))
                self._receive()
            except Exception as error:  # noqa: BLE001 - it becomes the status; and nothing may end
                # the thread that serves everybody.
                self.end(error)
        return ended

    def _sent(self, _event: Any) -> Any:
        with self._lock:
            self._is_sending = False
            ended = self._done(_SENDING)
            self._go_on()
        return ended

    def _done(self, what: str) -> Any:
        with self._lock:
            return _server._possibly_finish_call(self._state, what)  # noqa: SLF001 - see above

    # --- sending, with the lock held --------------------------------------------------------------

    def _go_on(self) -> None:
        if self._is_sending or not self._is_open:
            return
        if self._outbox:
            self._is_sending = True
            operations = [_cygrpc.SendMessageOperation(self._outbox.popleft(), _NO_FLAGS)]
            if self._state.initial_metadata_allowed:
                self._state.initial_metadata_allowed = False
                operations.insert(0, _cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS))
            self._start(tuple(operations), self._sent)
            self._state.due.add(_SENDING)
        elif self._error is not None or self._is_finished:
            self._is_sending = self._is_ending = True  # nothing follows the status
            self._executor.submit(self._send_status_of, self._error)

    def _start(self, operations: tuple[Any, ...], then: Callable[[Any], Any]) -> None:
        self._call.start_server_batch(operations, then)

    def _send_status_of(self, error: Exception | None) -> None:
        try:
            if error is None:
                self._left()
            else:
                self._conclude(error)
            self._send_status(None)
        except Exception:
            log.exception("stream_cut_off")
            self.cancel()
