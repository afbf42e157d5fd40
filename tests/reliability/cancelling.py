"""Calls that are taken back: every one at the same stage, many of them at once."""

import enum

from reliability.hostile import HostileConnection
from reliability.served import Method

AT_ONCE = 50
"""Calls that are open at a time on one connection, which may have 100."""


class Stage(enum.Enum):
    """How far a call had come when its caller took it back."""

    HEADERS = "before the headers are answered"
    MESSAGE = "before the first message"
    MIDDLE = "in the middle"
    END = "at the end"


def cancel_calls(
    connection: HostileConnection, method: Method, stage: Stage, token: str, count: int
) -> int:
    """Open calls and take them back; return how many the server had not ended before.

    Args:
        connection: Where to call.
        method: What to call.
        stage: When to take the calls back.
        token: The credential; empty for none.
        count: How many calls.
    """
    taken_back = 0
    for begun in range(0, count, AT_ONCE):
        streams = _open(connection, method, stage, token, min(AT_ONCE, count - begun))
        if stage is Stage.END:
            # Half of them while their answer is under way, half once they have it.
            connection.wait_for_answers(streams[1::2])
        taken_back += sum([connection.reset(stream) for stream in streams])
        connection.wait_until_taken_in()
    return taken_back


def _open(
    connection: HostileConnection, method: Method, stage: Stage, token: str, count: int
) -> list[int]:
    flush = stage is not Stage.HEADERS
    streams = [connection.begin_call(method.path, token, flush=flush) for _ in range(count)]
    if stage is Stage.MESSAGE:
        connection.wait_until_taken_in()
    elif stage is Stage.MIDDLE and method.is_stream:
        for stream in streams:
            connection.send_some(stream, method.request)
        connection.wait_for_answers(streams)
    elif stage is Stage.MIDDLE:
        for stream in streams:
            connection.send_some(stream, method.request[: len(method.request) // 2])
        connection.wait_until_taken_in()
    elif stage is Stage.END:
        for stream in streams:
            connection.send_some(stream, method.request, is_last=True)
    return streams
