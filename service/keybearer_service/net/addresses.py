"""Where a server listens: `host:port`, `[v6]:port` or `unix:/path`, parsed once."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Self

from keybearer._wire.peer import is_loopback
from keybearer_service.net.tls import TlsFiles

MAX_PORT = 65535
MAX_UNIX_PATH_BYTES = 107
"""`sun_path` of Linux has 108 bytes, and the last one is a zero."""

_UNIX = "unix:"
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?", re.ASCII)
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class AddressError(ValueError):
    """The text is no address. The message quotes it and names the right form."""


class ListenError(Exception):
    """The address cannot be listened on. The text names it and the reason."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP port of one host, or a Unix socket: exactly one of `host` and `path` is set."""

    host: str = ""
    """A name, an IPv4 address, or an IPv6 address without brackets."""
    port: int = 0
    """0 stands for any free port."""
    path: str = ""
    """The file of the Unix socket; relative to the working directory unless it begins with /."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address.

        Raises:
            AddressError: The text is not `host:port`, `[v6]:port` or `unix:/path`.
        """
        if text.startswith(_UNIX):
            return cls(path=_unix_path(text))
        if text.startswith("unix-abstract:"):
            raise AddressError(f"{text!r} would be open to everybody here; give unix:/path")
        host, colon, port = text.rpartition(":")
        if "//" in text:
            raise AddressError(f"{text!r} is a URL; give host:port alone")
        if _is_ipv6(text) or _is_ipv6(host):
            raise AddressError(f"{text!r} has an IPv6 address without brackets; give [::1]:port")
        if not colon:
            raise AddressError(f"{text!r} is not host:port")
        if not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
            raise AddressError(f"{text!r} has no port from 0 to {MAX_PORT} behind the last colon")
        if not host:
            raise AddressError(f"{text!r} names no host; 0.0.0.0:{port} means every interface")
        return cls(host=_host(host, text), port=int(port))

    def __str__(self) -> str:
        """Return the text that `parse` reads and that gRPC takes as a target."""
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_unix(self) -> bool:
        """Whether this is a Unix socket."""
        return bool(self.path)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside this machine can reach it or listen to what is said there."""
        return bool(self.path) or is_loopback(self.host)

    @property
    def connectable(self) -> Self:
        """The address for a client on this machine: loopback where the server has every one."""
        return type(self)(_EVERY_INTERFACE.get(self.host, self.host), self.port, self.path)

    def web_origin(self, *, is_tls: bool) -> str:
        """Return the URL for a browser on this machine, such as http://127.0.0.1:8090."""
        host = f"[{self.host}]" if ":" in self.host else "127.0.0.1"
        return f"{'https' if is_tls else 'http'}://{host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """The family of the socket."""
        if self.path:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def with_port(self, port: int) -> Self:
        """Return the same address with the port that was taken; a Unix socket has none."""
        return self if self.path else type(self)(self.host, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where and how to listen."""

    address: Address
    tls: TlsFiles | None = None
    share_port: bool = False
    """Several processes of one supervisor listen on the same port."""


def _unix_path(text: str) -> str:
    path = text.removeprefix(_UNIX)
    # gRPC writes absolute paths this way too.
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or "\0" in path or path.startswith("//"):
        raise AddressError(f"{text!r} names no file; give unix:/path")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_UNIX_PATH_BYTES:
        raise AddressError(
            f"{text!r} is longer than the {MAX_UNIX_PATH_BYTES} bytes that a socket's path may have"
        )
    return path


def _host(host: str, text: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed and _is_ipv6(host[1:-1]):
        return host[1:-1]
    if bracketed or not _NAME.fullmatch(host):
        raise AddressError(f"{text!r} is not host:port; {host!r} is no host")
    return host


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
