"""The other end of a connection, as gRPC names it."""

from urllib.parse import unquote


def host_of(peer: str) -> str:
    """Return the address in a gRPC peer name, without its port.

    `ipv4:192.0.2.1:1234` becomes `192.0.2.1`, `ipv6:%5B2001:db8::1%5D:1234` becomes `2001:db8::1`,
    and for every other transport the name of the transport remains, such as `unix`.
    """
    family, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if family.startswith("ip") else family
