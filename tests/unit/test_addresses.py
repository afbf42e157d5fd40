"""Addresses: one parser for every setting that names one."""

import socket

import pytest

from keybearer_service.net.addresses import Address, AddressError

V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX

READ: dict[str, tuple[Address, bool, str, socket.AddressFamily]] = {
    "127.0.0.1:50051": (Address("127.0.0.1", 50051), True, "127.0.0.1:50051", V4),
    "127.0.0.2:1": (Address("127.0.0.2", 1), True, "127.0.0.2:1", V4),
    "127.0.0.1:0": (Address("127.0.0.1", 0), True, "127.0.0.1:0", V4),
    "127.0.0.1:65535": (Address("127.0.0.1", 65535), True, "127.0.0.1:65535", V4),
    "192.0.2.1:80": (Address("192.0.2.1", 80), False, "192.0.2.1:80", V4),
    "0.0.0.0:80": (Address("0.0.0.0", 80), False, "127.0.0.1:80", V4),  # noqa: S104 - not bound
    "[::]:80": (Address("::", 80), False, "[::1]:80", V6),
    "[::1]:80": (Address("::1", 80), True, "[::1]:80", V6),
    "[::ffff:127.0.0.1]:80": (Address("::ffff:127.0.0.1", 80), True, "[::ffff:127.0.0.1]:80", V6),
    "[::ffff:192.0.2.1]:80": (Address("::ffff:192.0.2.1", 80), False, "[::ffff:192.0.2.1]:80", V6),
    "[2001:db8::1]:80": (Address("2001:db8::1", 80), False, "[2001:db8::1]:80", V6),
    "[fe80::1%eth0]:80": (Address("fe80::1%eth0", 80), False, "[fe80::1%eth0]:80", V6),
    "localhost:80": (Address("localhost", 80), True, "localhost:80", V4),
    "LOCALHOST:80": (Address("LOCALHOST", 80), True, "LOCALHOST:80", V4),
    "localhost.example.com:80": (
        Address("localhost.example.com", 80),
        False,
        "localhost.example.com:80",
        V4,
    ),
    "keybearer:80": (Address("keybearer", 80), False, "keybearer:80", V4),
    "127.0.0.1.example.com:80": (
        Address("127.0.0.1.example.com", 80),
        False,
        "127.0.0.1.example.com:80",
        V4,
    ),
    "unix:/run/kb.sock": (Address(path="/run/kb.sock"), True, "unix:/run/kb.sock", UNIX),
    "unix:run/kb.sock": (Address(path="run/kb.sock"), True, "unix:run/kb.sock", UNIX),
    "unix:a:b": (Address(path="a:b"), True, "unix:a:b", UNIX),
}
"""Text: what it is, whether it is loopback, what a client here connects to, and its family."""


@pytest.mark.parametrize("text", READ)
def test_an_address_is_read(text: str) -> None:
    """Host and port or path, loopback or not, and how a client on the machine reaches it."""
    address, is_loopback, connectable, family = READ[text]
    assert Address.parse(text) == address
    assert address.is_loopback is is_loopback
    assert str(address.connectable) == connectable
    assert address.family == family


@pytest.mark.parametrize("text", READ)
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    """The text form parses to the same address."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [("unix:///run/kb.sock", "unix:/run/kb.sock"), ("127.0.0.1:00080", "127.0.0.1:80")],
)
def test_another_spelling_is_written_in_the_usual_one(text: str, written: str) -> None:
    """The three slashes of gRPC, and leading zeros."""
    assert str(Address.parse(text)) == written


REFUSED = {
    "": "is not host:port",
    "nowhere": "is not host:port",
    "127.0.0.1": "is not host:port",
    "127.0.0.1:": "no port from 0 to 65535",
    "127.0.0.1:65536": "no port from 0 to 65535",
    "127.0.0.1:-1": "no port from 0 to 65535",
    "127.0.0.1:+1": "no port from 0 to 65535",
    "127.0.0.1:http": "no port from 0 to 65535",
    "127.0.0.1:80 ": "no port from 0 to 65535",
    "127.0.0.1:80/": "no port from 0 to 65535",
    "127.0.0.1:80x": "no port from 0 to 65535",
    "127.0.0.1:1_0": "no port from 0 to 65535",
    "127.0.0.1:\u0661\u0662": "no port from 0 to 65535",
    "127.0.0.1:\u00b2": "no port from 0 to 65535",
    ":80": "names no host; 0.0.0.0:80 means every interface",
    "::1": r"IPv6 address without brackets; give \[::1\]:port",
    "::": r"IPv6 address without brackets; give \[::1\]:port",
    "::1:80": r"IPv6 address without brackets; give \[::1\]:port",
    ":::80": r"IPv6 address without brackets; give \[::1\]:port",
    "2001:db8::1:80": r"IPv6 address without brackets; give \[::1\]:port",
    "fe80::1%eth0:80": r"IPv6 address without brackets; give \[::1\]:port",
    "[::1]": "no port from 0 to 65535",
    "[::1:80": "is no host",
    "::1]:80": "is no host",
    "[[::1]]:80": "is no host",
    "[127.0.0.1]:80": "is no host",
    "[]:80": "is no host",
    "[localhost]:80": "is no host",
    " 127.0.0.1:80": "is no host",
    "a b:80": "is no host",
    "user@127.0.0.1:80": "is no host",
    "a:b:80": "is no host",
    "caf\u00e9:80": "is no host",
    "-x:80": "is no host",
    "http://127.0.0.1:80": "is a URL; give host:port alone",
    "https://127.0.0.1:80": "is a URL; give host:port alone",
    "dns:///127.0.0.1:80": "is a URL; give host:port alone",
    "unix:": "names no file; give unix:/path",
    "unix://run/kb.sock": "names no file; give unix:/path",
    "unix:/run/\0kb": "names no file; give unix:/path",
    "unix:/" + "x" * 107: "longer than the 107 bytes",
    "unix-abstract:kb": "open to everybody here; give unix:/path",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_address_is_refused_with_what_would_be_right(text: str) -> None:
    """Bare IPv6, other digits, junk at either end, URLs, and sockets without a usable file."""
    with pytest.raises(AddressError, match=REFUSED[text]):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "taken"),
    [("127.0.0.1:0", "127.0.0.1:7"), ("[::]:0", "[::]:7"), ("unix:/run/kb", "unix:/run/kb")],
)
def test_the_port_that_was_taken_replaces_the_one_asked_for(text: str, taken: str) -> None:
    """A Unix socket has none."""
    assert str(Address.parse(text).with_port(7)) == taken
