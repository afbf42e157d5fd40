"""Logs: nothing in them opens anything, whoever wrote the line."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from keybearer_service.domain import token_format
from keybearer_service.telemetry import logs

TOKEN = token_format.write("kbear1", "ABCDEFGHabcdefgh", "s3cr3t" * 7 + "x")
SECRET = TOKEN[24:]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(params=["json", "text"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Logging at debug level into memory, in each format; call it for what was written."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("debug", json=request.param == "json")
    return stream.getvalue


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


def test_a_json_log_has_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time, level and event, of ours and of libraries alike, tracebacks included."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", json=True)
    structlog.get_logger().info("ours", n=1)
    logging.getLogger("lib").warning("theirs\nin two lines")
    _exception()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in lines] == ["ours", "theirs\nin two lines", "failed"]
    assert {"timestamp", "level", "event"} <= set.intersection(*map(set, lines))


def test_what_is_below_the_level_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours and of libraries."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("warning", json=True)
    structlog.get_logger().info("quiet")
    logging.getLogger("lib").info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(one)["event"] for one in stream.getvalue().splitlines()] == ["loud"]


@pytest.mark.parametrize("text", ["", "kbear1_ABCDEFGHabcdefgh", "an ordinary sentence", "a_b_c"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Ids and words are no secrets."""
    assert logs.redact(text) == text
