"""Where a server listens."""

from dataclasses import dataclass

from keybearer_service.net.tls import TlsFiles


class ListenError(Exception):
    """The address cannot be listened on. The text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where and how to listen."""

    address: str
    """`host:port`, or `unix:/path`; port 0 takes a free one."""
    tls: TlsFiles | None = None
    share_port: bool = False
    """Several processes of one supervisor listen on the same port."""
