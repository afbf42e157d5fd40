"""File descriptors: how many this process may open, and how many of them are for connections."""

import resource
from typing import Final

import structlog

log = structlog.get_logger(__name__)

WANTED: Final = 65_536
"""As many as deploy/keybearer.service gives."""
RESERVED: Final = 128
"""For the database, with a connection in each thread, key files, logs, and what libraries open."""
FEW: Final = 2_048
"""With fewer than this for connections, a warning is logged at the start."""


def raise_limit(wanted: int = WANTED) -> int:
    """Raise the soft limit of open descriptors as far as this process may, and return it.

    Processes that are started later inherit it. A limit that is higher already stays.

    Args:
        wanted: How many are enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if for_connections() < FEW:
        log.warning("few_descriptors", limit=_limit(), for_connections=for_connections())
    return _limit()


def for_connections() -> int:
    """Return how many connections the process may hold, all listeners together; at least 1."""
    return max(1, _limit() - RESERVED)


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft
