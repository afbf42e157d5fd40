"""What the pipeline needs of a call, whichever way it came in."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from google.rpc.status_pb2 import Status

Metadata = Sequence[tuple[str, str | bytes]]
"""Names in lower case, each with a value; a name may come more than once."""


class Request(Protocol):
    """A call whose caller is not known yet."""

    @property
    def metadata(self) -> Metadata:
        """What the caller sent before its message."""
        ...

    @property
    def peer(self) -> str:
        """The address of the other end, without its port."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether somebody still waits for the answer."""
        ...

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the caller may still wait; None without a deadline."""
        ...

    def message(self) -> bytes:
        """Wait for the message and return it.

        Raises:
            FieldInvalid: The caller ended the call without one.
            CallAbandoned: The caller has gone, or was cut off.
        """
        ...


class MessageStream(Protocol):
    """Messages each way. May be used by any thread, and nothing in it waits."""

    @property
    def queued(self) -> int:
        """How many messages wait to be sent."""
        ...

    def listen(
        self,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
        on_half_close: Callable[[], None] = ...,
    ) -> None:
        """Begin to read.

        Args:
            on_message: Called with each message, in order. It must not wait for anything; what it
                raises ends the stream.
            on_end: Called once, when the stream is over, whichever side ended it.
            on_half_close: Called when the other side sends no more and may go on listening; like
                `on_message` it must not wait.
        """
        ...

    def send(self, message: Any) -> None:
        """Send a message after those before it; do nothing once the stream is over."""
        ...

    def end(self, error: Exception) -> None:
        """End the stream with the status of an error, after what was to be sent before."""
        ...

    def finish(self) -> None:
        """End the stream in order, after what was to be sent before."""
        ...

    def cancel(self) -> None:
        """Cut the stream off, also while the other side does not read."""
        ...


class StreamRequest(Request, Protocol):
    """A call with messages each way."""

    def open(
        self,
        *,
        parse: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
        status_of: Callable[[Exception], Status],
        on_left: Callable[[], None],
    ) -> MessageStream:
        """Open the call as a stream.

        Args:
            parse: Reads a message; what it raises ends the stream.
            serialize: Writes a message.
            status_of: Returns the status that an error ends the stream with.
            on_left: Called when the other side has ended the stream.
        """
        ...
