"""Logs: one JSON object a line, on standard error. Nothing in them may ever open anything."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_TOKEN_LIKE = re.compile(r"\b([a-z][a-z0-9]{1,15}_[0-9A-Za-z]{16})_[0-9A-Za-z]{20,}")
"""A token, or a cut-off one. The id before it is public and stays."""


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
        [structlog.processors.dict_tracebacks, _redact, structlog.processors.JSONRenderer()]
        if json
        else [structlog.processors.format_exc_info, _redact, structlog.dev.ConsoleRenderer()]
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)


def redact(text: str) -> str:
    """Cut the secret out of anything in `text` that looks like a token of ours."""
    return _TOKEN_LIKE.sub(r"\1_[redacted]", text)


def _redact(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    # Nothing of ours logs a secret; this is for what a library may quote.
    return {key: _redacted(value) for key, value in event.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    return value
