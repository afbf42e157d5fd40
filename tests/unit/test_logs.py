"""Logs: nothing in them opens anything, whoever wrote the line."""

import json
import logging
import os
import pty
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from keybearer._wire.redaction import redact
from keybearer_service.domain import token_format
from keybearer_service.telemetry import logs

TOKEN = token_format.write("kbear1", "ABCDEFGHabcdefgh", "s3cr3t" * 7 + "x")
SECRET = TOKEN[24:]


@dataclass
class Log:
    """Logging into a file, as the service does into standard error."""

    file: Path

    def configure(self, level: str, *, json: bool = True) -> "Log":
        """Set logging up."""
        self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        logs.configure(level, json=json, descriptor=self._descriptor)
        return self

    def text(self) -> str:
        """End logging, and read what was written."""
        for handler in logging.getLogger().handlers:
            handler.close()
        os.close(self._descriptor)
        return self.file.read_text("utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """End logging, and read the objects that were written."""
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log that is set up by the test."""
    return Log(tmp_path / "log")


@pytest.fixture(params=["json", "text"])
def written(request: pytest.FixtureRequest, log: Log) -> Callable[[], str]:
    """Logging at debug level, in each format; call it for what was written."""
    return log.configure("debug", json=request.param == "json").text


def _fail() -> None:
    held = TOKEN  # a traceback may show local variables
    raise ValueError("cannot use " + held)


def _exception() -> None:
    try:
        _fail()
    except ValueError:
        structlog.get_logger().exception("failed")


def _foreign_exception() -> None:
    try:
        _fail()
    except ValueError:
        logging.getLogger("lib").exception("failed")


class _Chatty:
    def __repr__(self) -> str:
        return f"<Chatty {TOKEN}>"


WAYS: dict[str, Callable[[], Any]] = {
    "in the event": lambda: structlog.get_logger().info(f"got {TOKEN}"),
    "in a field": lambda: structlog.get_logger().info("got", token=TOKEN),
    "in bytes": lambda: structlog.get_logger().info("got", token=TOKEN.encode()),
    "in a list": lambda: structlog.get_logger().info("got", tokens=[TOKEN, (TOKEN,)]),
    "in a mapping": lambda: structlog.get_logger().info("got", metadata={"a": {"b": TOKEN}}),
    "in a key of a mapping": lambda: structlog.get_logger().info("got", seen={TOKEN: 1}),
    "in a set": lambda: structlog.get_logger().info("got", seen={TOKEN}),
    "in an object": lambda: structlog.get_logger().info("got", thing=_Chatty()),
    "in an exception": _exception,
    "in a library's line": lambda: logging.getLogger("lib").debug("got %s", TOKEN),
    "in a library's exception": _foreign_exception,
    "in a header": lambda: structlog.get_logger().info(f"authorization: Bearer {TOKEN}"),
    "after an escape": lambda: structlog.get_logger().info(f"Bearer%20{TOKEN}"),
    "after an underscore": lambda: structlog.get_logger().info(f"TOKEN_{TOKEN}"),
    "after a letter": lambda: structlog.get_logger().info(f"x{TOKEN}"),
    "cut off": lambda: structlog.get_logger().info(TOKEN[:60]),
    "with more behind it": lambda: structlog.get_logger().info(TOKEN + "xyz"),
    "quoted": lambda: structlog.get_logger().info(f"{TOKEN!r}"),
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_no_line_holds_a_secret(written: Callable[[], str], way: str) -> None:
    """Whichever way a token gets into a line, its secret does not."""
    WAYS[way]()
    text = written()
    assert text
    assert SECRET[:20] not in text


@pytest.mark.parametrize("way", ["in a field", "in a library's line"])
def test_the_public_id_stays(written: Callable[[], str], way: str) -> None:
    """Which key it was is what one wants to know."""
    WAYS[way]()
    assert "kbear1_ABCDEFGHabcdefgh_[redacted]" in written()


def test_a_json_log_has_one_object_a_line(log: Log) -> None:
    """With time, level and event, of ours and of libraries alike, tracebacks included."""
    log.configure("info")
    structlog.get_logger().info("ours", n=1)
    logging.getLogger("lib").warning("theirs\nin two lines")
    _exception()
    lines = log.lines()
    assert [one["event"] for one in lines] == ["ours", "theirs\nin two lines", "failed"]
    assert {"timestamp", "level", "event"} <= set.intersection(*map(set, lines))


def test_what_is_below_the_level_is_left_out(log: Log) -> None:
    """Of ours and of libraries."""
    log.configure("warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("lib").info("quiet")
    structlog.get_logger().warning("loud")
    assert [one["event"] for one in log.lines()] == ["loud"]


def test_text_in_a_file_has_no_colours(log: Log) -> None:
    """Escape sequences are for terminals."""
    log.configure("info", json=False)
    structlog.get_logger().warning("plain", n=1)
    text = log.text()
    assert "plain" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_text_on_a_terminal_has_colours(
    monkeypatch: pytest.MonkeyPatch, no_color: str, *, coloured: bool
) -> None:
    """Unless NO_COLOR says otherwise."""
    monkeypatch.setenv("NO_COLOR", no_color)
    ours, terminal = pty.openpty()
    logs.configure("info", json=False, descriptor=terminal)
    structlog.get_logger().warning("bright")
    assert ("\x1b" in os.read(ours, 4096).decode()) is coloured
    os.close(ours)
    os.close(terminal)


def test_a_line_that_a_library_repeats_is_written_once_a_second_and_counted(log: Log) -> None:
    """Thousands a second would fill a disk; the next one tells how many were left out."""
    log.configure("info")
    library = logging.getLogger("lib")
    for second in (1_000.0, 1_000.5, 1_000.9, 1_001.1, 1_003.0):
        for _ in range(100):
            record = library.makeRecord("lib", logging.ERROR, "", 0, "no descriptors", (), None)
            record.created = second
            library.handle(record)
    library.error("another line")
    lines = log.lines()
    assert [one["event"] for one in lines] == ["no descriptors"] * 3 + ["another line"]
    assert [one.get("repeated") for one in lines] == [None, 299, 99, None]


def test_lines_of_our_own_are_all_written(log: Log) -> None:
    """They have quotas where they need them."""
    log.configure("info")
    for number in range(50):
        structlog.get_logger().info("ours", number=number)
    assert len(log.lines()) == 50


# --- a reader that stands still -------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe whose reader has not begun."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def _read_until(reader: int, wanted: bytes) -> bytes:
    text = b""
    while wanted not in text:
        text += os.read(reader, 65536)
    return text


def test_a_caller_never_waits_for_the_reader(pipe: tuple[int, int]) -> None:
    """Three times what the pipe and the queue hold is logged while nobody reads."""
    logs.configure("info", descriptor=pipe[1])
    for number in range(3_000):
        structlog.get_logger().info("told", number=number, padding="x" * 1000)
    assert 1_500 < logs.dropped_lines() < 3_000


def test_lines_that_were_lost_are_counted_and_told_when_the_reader_goes_on(
    pipe: tuple[int, int],
) -> None:
    """What was read, and what the log says was lost, is what was logged."""
    logs.configure("info", descriptor=pipe[1])
    for number in range(3_000):
        structlog.get_logger().info("told", number=number, padding="x" * 1000)
    text = _read_until(pipe[0], b"log_lines_dropped")
    structlog.get_logger().info("end")
    text += _read_until(pipe[0], b'"end"')
    while not text.endswith(b"\n"):
        text += os.read(pipe[0], 65536)
    lines = [json.loads(line) for line in text.splitlines()]
    lost = sum(one["lines"] for one in lines if one["event"] == "log_lines_dropped")
    told = [one["number"] for one in lines if one["event"] == "told"]
    assert told == sorted(told)
    assert len(told) + lost == 3_000
    assert lost == logs.dropped_lines()


def test_the_end_does_not_wait_for_the_reader(pipe: tuple[int, int]) -> None:
    """What nobody reads is given up after a second."""
    logs.configure("info", descriptor=pipe[1])
    for _ in range(200):
        structlog.get_logger().info("told", padding="x" * 1000)
    begin = time.monotonic()
    logging.getLogger().handlers[0].close()
    assert time.monotonic() - begin < logs.FLUSH_TIMEOUT_S + 5


def test_the_end_writes_what_is_queued(pipe: tuple[int, int]) -> None:
    """A reader that reads gets every line."""
    logs.configure("info", descriptor=pipe[1])
    for number in range(50):
        structlog.get_logger().info("told", number=number)
    logging.getLogger().handlers[0].close()
    os.close(pipe[1])
    text = b"".join(iter(lambda: os.read(pipe[0], 65536), b""))
    assert [json.loads(line)["number"] for line in text.splitlines()] == list(range(50))


def test_a_reader_that_is_gone_stops_nothing(pipe: tuple[int, int]) -> None:
    """A broken pipe, a full disk: the line is lost and counted."""
    os.close(pipe[0])
    logs.configure("info", descriptor=pipe[1])
    structlog.get_logger().info("told")
    logging.getLogger().handlers[0].close()
    assert logs.dropped_lines() == 1


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    """Another program that shares it may have made it so; no line is lost or cut."""
    os.set_blocking(pipe[1], False)
    logs.configure("info", descriptor=pipe[1])
    for number in range(300):
        structlog.get_logger().info("told", number=number, padding="x" * 1000)
    text = _read_until(pipe[0], b'"number": 299')
    while not text.endswith(b"\n"):
        text += os.read(pipe[0], 65536)
    assert [json.loads(line)["number"] for line in text.splitlines()] == list(range(300))


def test_a_line_that_cannot_be_written_as_text_is_lost_alone(log: Log) -> None:
    """The call that logged it goes on."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    log.configure("info")
    logging.getLogger("lib").info("%r", Broken())
    structlog.get_logger().info("next", odd="\ud800")
    assert [one["event"] for one in log.lines()] == ["next", "log_lines_dropped"]
    assert logs.dropped_lines() == 1


@pytest.mark.parametrize("text", ["", "kbear1_ABCDEFGHabcdefgh", "an ordinary sentence", "a_b_c"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Ids and words are no secrets."""
    assert redact(text) == text


def test_a_traceback_shows_no_value_of_a_variable(written: Callable[[], str]) -> None:
    """A variable may hold a secret that looks like nothing, such as a password in a body."""

    def fail() -> None:
        password = "correct horse"
        raise ValueError(len(password))

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    text = written()
    assert "ValueError" in text
    assert "horse" not in text.replace('password = "correct horse"', "")
