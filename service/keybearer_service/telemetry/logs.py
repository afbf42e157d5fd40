"""Logs: one JSON object a line, on standard error. Nothing in them may ever open anything."""

import logging
import re
import sys
from typing import Any

import structlog

_TOKEN_LIKE = re.compile(r"([a-z][a-z0-9]{1,15}_[0-9A-Za-z]{16})_[0-9A-Za-z]{20,}")
"""A token, or a cut-off one, whatever stands before it. Its id is public and stays."""


def configure(level: str, *, json: bool = True) -> None:
    """Set up all logging of the process, the libraries' too.

    Args:
        level: debug, info, warning or error.
        json: One object a line; otherwise lines for people, as on a terminal.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if json
        else [structlog.processors.format_exc_info, structlog.dev.ConsoleRenderer()]
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, _redact],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)


def redact(text: str) -> str:
    """Cut the secret out of anything in `text` that looks like a token of ours."""
    return _TOKEN_LIKE.sub(r"\1_[redacted]", text)


def _redact(_logger: Any, _method: str, line: Any) -> str:
    # Nothing of ours logs a secret; this is for what a library may quote. The whole line, as it
    # will be written, because a value may be bytes, a set, or an object that prints itself.
    return redact(str(line))
