"""The messages of a watch stream."""

from typing import NamedTuple

from keybearer_service.domain.model import Invalidation
from keybearer_service.watch.usage_reports import UsageReport


class Subscribe(NamedTuple):
    """The first message of a stream."""

    epoch: str
    from_revision: int


class Ping(NamedTuple):
    """Asks for a pong."""

    sent_at: int


class Hello(NamedTuple):
    """The stream starts where it was asked to."""

    epoch: str
    head: int


class Reset(NamedTuple):
    """The stream starts afresh: what changed since is not known."""

    epoch: str
    head: int


class Pong(NamedTuple):
    """Every change up to the head was sent before."""

    sent_at: int
    head: int


Incoming = Subscribe | Ping | UsageReport
Outgoing = Hello | Reset | Invalidation | Pong
