"""Where requests end, for requests that mean the same to every reader; all others are refused.

What stands in front of this port may have read the same bytes. Wherever two readers of HTTP/1.1 are
known to differ (where a line ends, where a body ends, what belongs to a value), the request is
refused, although RFC 9112 lets a server be lenient in some of these cases.
"""

import re

HEAD_END = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+ /[\x21-\x7e]* HTTP/1\.([01])")
_HEADER = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,15}")


_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e]*)?")
_MAX_CHUNK_LINE = 256


class FramingError(Exception):
    """The request is refused. The text says why."""


class ChunkedBody:
    """Finds the end of a chunked body."""

    def __init__(self) -> None:
        """Begin at the first chunk."""
        self._left = 0
        self._is_last = False
        self._is_over = False

    def length_in(self, data: bytearray) -> int:
        """Return how many of the next bytes belong to the body; what is incomplete waits.

        Raises:
            FramingError: A chunk's length, or a trailer, could be read in another way.
        """
        at = 0
        while not self._is_over:
            step = min(self._left, len(data) - at)
            at, self._left = at + step, self._left - step
            end = -1 if self._left else data.find(b"\r\n", at, at + _MAX_CHUNK_LINE)
            if end < 0:
                if not self._left:
                    _assert_chunk_line_may_go_on(data[at:])
                return at
            self._take_line(bytes(data[at:end]))
            at = end + len(b"\r\n")
        return at

    def _take_line(self, line: bytes) -> None:
        if self._is_last:
            if line and not _HEADER.fullmatch(line):
                raise FramingError("a trailer must be a name, a colon and a value in one line")
            self._is_over = not line
            return
        chunk = _CHUNK.fullmatch(line)
        if chunk is None:
            raise FramingError("a chunk must begin with its length in hexadecimal digits")
        size = int(chunk[1], 16)
        self._is_last = not size
        self._left = size + len(b"\r\n") if size else 0


def _assert_chunk_line_may_go_on(line: bytearray) -> None:
    if len(line) >= _MAX_CHUNK_LINE or b"\n" in line:
        raise FramingError(f"a chunk's length ends with CRLF, within {_MAX_CHUNK_LINE} bytes")


def assert_lines_end(part: bytes | bytearray) -> None:
    """Refuse a part of a head in which a line ends with anything but CRLF.

    Args:
        part: The beginning of a head; its last byte may be the CR of a line that goes on.

    Raises:
        FramingError: A bare CR or LF.
    """
    ends = part.count(b"\r\n")
    returns = part.count(b"\r") - part.endswith(b"\r")
    if part.count(b"\n") != ends or returns != ends:
        raise FramingError("every line of a request must end with CRLF")


def body_length(head: bytes) -> int | None:
    """Return the length of the body that follows a head; None for a chunked one.

    Args:
        head: Request line and headers, with the empty line.

    Raises:
        FramingError: The head could be read in another way.
    """
    assert_lines_end(head)
    request_line, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(request_line)
    if request is None:
        raise FramingError("the request line must be a method, a path and HTTP/1.1")
    lengths, codings = [], []
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise FramingError("a header must be a name, a colon and a value in one line")
        name = header[1].lower()
        if name == b"content-length":
            lengths.append(header[2].strip(b" \t"))
        elif name == b"transfer-encoding":
            codings.append(header[2].strip(b" \t").lower())
    if not codings:
        return _length(lengths)
    if lengths:
        raise FramingError("content-length and transfer-encoding exclude each other")
    if codings != [b"chunked"] or request[1] != b"1":
        raise FramingError("the only transfer-encoding is chunked, once, in HTTP/1.1")
    return None


def _length(lengths: list[bytes]) -> int:
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise FramingError("content-length must be one number")
    return int(lengths[0])
