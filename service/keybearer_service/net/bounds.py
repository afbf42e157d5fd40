"""How much the service holds for its clients, and for how long: one table for every port.

A client that was not identified yet costs a connection, memory and time, and every call a place in
a queue. Each of these has a bound here.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from keybearer._wire.limits import MAX_REQUEST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of one listener."""

    connections: int
    """Open at once. A new one takes the place of the one that has been silent longest."""
    connections_of_one_peer: int
    """Open at once from one address (IPv6: one /64); the same holds among them."""
    handshakes: int
    """TLS handshakes at once; a new one takes the place of the oldest."""
    handshake_s: float
    """Seconds from the connection to the end of the TLS handshake."""
    header_s: float
    """Seconds from the connection, or the first byte of a later request, to the end of its
    headers."""
    header_bytes: int
    """Request line and headers together."""
    body_s: float
    """Seconds from the end of the headers to the end of the body."""
    body_bytes: int
    """Read of a body that nobody has asked for before the connection is closed."""
    answer_s: float
    """Seconds from the end of the body until the client has taken the whole response."""
    idle_s: float
    """Seconds between two requests."""


HTTP = Bounds(
    connections=1000,
    connections_of_one_peer=500,
    handshakes=100,
    handshake_s=10.0,
    header_s=10.0,
    header_bytes=16 * 1024,
    body_s=10.0,
    body_bytes=64 * 1024,
    answer_s=30.0,
    # Longer than nginx (60 s) and Envoy keep an idle connection, so that we never close first.
    idle_s=75.0,
)
"""The port for gateways."""
METRICS = replace(HTTP, connections=100, connections_of_one_peer=50, handshakes=20)
"""The port for metrics and health alone: a few scrapers and probes."""

CONSOLE = replace(
    HTTP,
    connections=64,
    connections_of_one_peer=32,
    handshakes=16,
    answer_s=10.0,
)
"""The port of the console: a few administrators, with a few connections each."""

GRPC = replace(
    HTTP,
    connections=10_000,
    # The transport counts connections alone: it has no bound for one peer, nor for handshakes.
    connections_of_one_peer=10_000,
    handshakes=10_000,
    header_bytes=8 * 1024,
    body_bytes=MAX_REQUEST_BYTES,
    idle_s=300.0,
)
"""The gRPC port. Headers are metadata, a body is a message: section 8 of the wire contract."""


class BoundRow(NamedTuple):
    """One bound of every port, as text."""

    name: str
    grpc: str
    http: str
    metrics: str
    console: str


def described() -> list[BoundRow]:
    """Return the bounds that no setting changes; for help texts and documents."""

    def row(
        name: str, shown: Callable[[Bounds], str], *, of_grpc: Callable[[Bounds], str] | None = None
    ) -> BoundRow:
        return BoundRow(name, (of_grpc or shown)(GRPC), shown(HTTP), shown(METRICS), shown(CONSOLE))

    return [
        row(
            "connections, those of one address",
            lambda one: f"{one.connections}, {one.connections_of_one_peer}",
            of_grpc=lambda one: f"{one.connections}, no bound",
        ),
        row(
            "TLS handshakes at once",
            lambda one: str(one.handshakes),
            of_grpc=lambda _: "no bound",
        ),
        row("TLS handshake", lambda one: f"{one.handshake_s:.0f} s"),
        row(
            "headers or metadata",
            lambda one: f"{one.header_s:.0f} s, {one.header_bytes // 1024} KiB",
            of_grpc=lambda one: f"{one.header_bytes // 1024} KiB",
        ),
        row(
            "body or message",
            lambda one: f"{one.body_s:.0f} s, {one.body_bytes // 1024} KiB",
        ),
        row(
            "response",
            lambda one: f"{one.answer_s:.0f} s",
            of_grpc=lambda _: "until the deadline",
        ),
        row("idle connection", lambda one: f"{one.idle_s:.0f} s"),
    ]


@dataclass(frozen=True, slots=True)
class CallBounds:
    """The bounds of one kind of calls over gRPC."""

    threads: int
    """Calls that are worked on at once."""
    queued: int
    """Calls that wait for a thread; beyond, they are refused at once. No more than are worked on
    in some two seconds, so that a call is not answered when its caller has given up."""


# Two is enough: the GIL serialises the work, and every extra thread adds hand-overs inside SQLite
# reads. Those that wait for slow senders are made up for.
VALIDATION_CALLS = CallBounds(threads=2, queued=2000)
REMOTE_VALIDATION_CALLS = CallBounds(threads=16, queued=2000)
"""The same over a database on a server of its own: a thread that waits for it holds no GIL."""
AUTHORITY_CALLS = CallBounds(threads=4, queued=200)
"""What takes authority away. Writes come one after another anyway."""
MANAGEMENT_CALLS = CallBounds(threads=8, queued=400)
"""Other changes, and reads of one thing."""
LIST_CALLS = CallBounds(threads=12, queued=200)
"""More threads than lists that run at once: the others wait for the share of their account."""
PUBLIC_CALLS = CallBounds(threads=4, queued=200)
"""The public method: callers without a credential must not cost those who have one a thread."""
STREAM_CALLS = CallBounds(threads=16, queued=2000)
"""Watch streams begin and end here, and hold no thread in between. After a restart all come."""
PROBE_CALLS = CallBounds(threads=4, queued=500)
"""Health, which must not wait behind anything."""
REFLECTION_CALLS = CallBounds(threads=2, queued=100)
LIVENESS_CALLS = CallBounds(threads=1, queued=100)
"""The process that asks itself whether it answers."""


@dataclass(frozen=True, slots=True)
class ShareBounds:
    """What one account may have of something that all accounts share."""

    at_once: int
    """Calls of all accounts that run at once."""
    of_one_at_once: int
    """Calls of one account that run at once."""
    of_one: int
    """Calls of one account that run, or hold a thread while they wait for that; beyond, they are
    refused at once."""


LIST_SHARES = ShareBounds(at_once=2, of_one_at_once=1, of_one=6)
"""A list works for up to a tenth of a second, so those of one account leave processors, threads and
places to everybody else."""

_DESCRIPTORS_OF_A_LISTENER = 4
"""One listener takes up to this part of the descriptors; the rest is for the other ports and the
store."""


def within_descriptors(bounds: Bounds, available: int) -> Bounds:
    """Lower the connections to what the file descriptors of the process allow.

    Args:
        bounds: What is wanted.
        available: How many descriptors there are for connections.
    """
    connections = max(1, min(bounds.connections, available // _DESCRIPTORS_OF_A_LISTENER))
    return replace(
        bounds,
        connections=connections,
        connections_of_one_peer=max(1, min(bounds.connections_of_one_peer, connections // 2)),
        handshakes=max(1, min(bounds.handshakes, connections // 2)),
    )


def peer_of(host: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
