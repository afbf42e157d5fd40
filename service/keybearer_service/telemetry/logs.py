"""Logs: one JSON object a line, on standard error. No line holds a secret.

Logging never blocks its caller: lines go into a bounded queue, and a thread of its own writes them.
When the reader of standard error stands still, lines are dropped and counted.
"""

import logging
import os
import select
import sys
import threading
from queue import SimpleQueue
from typing import Any, Final

import structlog
import structlog.tracebacks

from keybearer._wire.redaction import redact

MAX_QUEUED_BYTES: Final = 1024 * 1024
"""Some 4,000 lines; beyond, lines are dropped."""
FLUSH_TIMEOUT_S: Final = 1.0
"""How long a flush waits for the reader; the end of the process does so at most twice."""
MAX_REPEATING: Final = 1000
"""Different lines of libraries whose repetitions are counted; beyond, counting starts anew."""


class RepeatFilter(logging.Filter):
    """Lets a line of a library through once a second; the next one counts those left out.

    A library may write the same line thousands of times a second, as asyncio does when a port has
    no descriptors left. What the service itself repeats has quotas of its own.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record; sets its `repeated` when others were left out."""
        if not isinstance(record.msg, str):  # of structlog: ours
            return True
        line = (record.name, record.levelno, record.msg)
        written, left_out = self._seen.get(line, (0.0, 0))
        if 0 <= record.created - written < 1.0:
            self._seen[line] = (written, left_out + 1)
            return False
        if len(self._seen) >= MAX_REPEATING:
            self._seen.clear()
        self._seen[line] = (record.created, 0)
        if left_out:
            record.repeated = left_out
        return True


_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
"""Functions and lines without the values of variables, which may be somebody's secret."""


class LogHandler(logging.Handler):
    """Writes records to a file descriptor, on a thread of its own that no caller waits for."""

    def __init__(self, descriptor: int, *, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        """Start the thread.

        Args:
            descriptor: Where to write. The handler works on a duplicate, which is its own: the
                number may come to belong to another file.
            max_queued_bytes: How much may wait to be written before lines are dropped.
        """
        super().__init__()
        self._descriptor = os.dup(descriptor)
        self._max_queued_bytes = max_queued_bytes
        # SimpleQueue.put is safe where a lock is not: in a finalizer that logs while this logs.
        self._lines: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._counts = threading.RLock()
        self._queued_bytes = 0
        self._reported = 0
        self._closed = False
        self.dropped = 0
        """How many lines were lost so far."""
        self._thread = threading.Thread(target=self._write_lines, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and queue its line, or drop it when too much waits already."""
        try:
            line = self._line_of(record)
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not fail a call
            line = b""
        with self._counts:
            if not line or self._closed or self._queued_bytes + len(line) > self._max_queued_bytes:
                self.dropped += 1
                return
            self._queued_bytes += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until what is queued is written, for at most FLUSH_TIMEOUT_S."""
        if not self._closed:
            written = threading.Event()
            self._lines.put(written)
            written.wait(FLUSH_TIMEOUT_S)

    def close(self) -> None:
        """Write what is queued, for at most FLUSH_TIMEOUT_S, and end."""
        if not self._closed:
            self._closed = True
            self._lines.put(None)
            self._thread.join(FLUSH_TIMEOUT_S)
        super().close()

    def _line_of(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            is_written = self._write(line)
            lost = self._account(line, is_written=is_written)
            if lost:
                self._write(self._line_of(_report(lost)))
        os.close(self._descriptor)

    def _account(self, line: bytes, *, is_written: bool) -> int:
        """Return how many lost lines to report: none while the reader may still stand still."""
        with self._counts:
            self._queued_bytes -= len(line)
            if not is_written:
                self.dropped += 1
                return 0
            if self._queued_bytes > self._max_queued_bytes // 2:
                return 0
            lost, self._reported = self.dropped - self._reported, self.dropped
            return lost

    def _write(self, line: bytes) -> bool:
        # One write a line: up to 4,096 bytes, lines of several workers do not mix in a pipe.
        rest = line
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody has made the shared descriptor non-blocking
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll(1000)
            except OSError:  # the reader is gone, or the disk is full
                return False
        return True


def configure(level: str, *, json: bool = True, descriptor: int | None = None) -> None:
    """Set up all logging of the process, the libraries' too.

    Args:
        level: debug, info, warning or error.
        json: One object a line; otherwise lines for people, coloured on a terminal.
        descriptor: Where to write; standard error by default.
    """
    descriptor = _standard_error() if descriptor is None else descriptor
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [_TRACEBACKS, structlog.processors.JSONRenderer()]
        if json
        else [
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=_is_coloured(descriptor)),
        ]
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.NullHandler() if descriptor is None else LogHandler(descriptor)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=["lines", "repeated"])],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, _redact],
        )
    )
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], [handler]
    root.setLevel(threshold)
    # It logs each request that it sends, which is the business of nobody who reads this log.
    logging.getLogger("httpx2").setLevel(max(threshold, logging.WARNING))
    for one in before:
        if isinstance(one, LogHandler):
            one.close()


def dropped_lines() -> int:
    """Return how many lines this process has dropped because nobody read its log."""
    return sum(one.dropped for one in logging.getLogger().handlers if isinstance(one, LogHandler))


def _report(lost: int) -> logging.LogRecord:
    level = logging.ERROR
    named = {"name": __name__, "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**named, "msg": "log_lines_dropped", "lines": lost})


def _standard_error() -> int | None:
    # None where it is closed: the number 2 may belong to another file by now.
    try:
        return None if sys.stderr is None else sys.stderr.fileno()
    except (OSError, ValueError):
        return None


def _is_coloured(descriptor: int | None) -> bool:
    return descriptor is not None and os.isatty(descriptor) and not os.environ.get("NO_COLOR")


def _redact(_logger: Any, _method: str, line: Any) -> str:
    # Nothing of ours logs a secret; this is for what a library may quote. The whole line, as it
    # will be written, because a value may be bytes, a set, or an object that prints itself.
    return redact(str(line))
