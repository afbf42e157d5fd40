"""The other end of a connection: its address as gRPC names it, and whether it is this machine."""

import ipaddress
from urllib.parse import unquote


def host_of(peer: str) -> str:
    """Return the address in a gRPC peer name, without its port.

    `ipv4:192.0.2.1:1234` becomes `192.0.2.1`, `ipv6:%5B2001:db8::1%5D:1234` becomes `2001:db8::1`,
    and for every other transport the name of the transport remains, such as `unix`.
    """
    family, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if family.startswith("ip") else family


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine alone.

    Args:
        host: A name, or an address without brackets and without its port.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
