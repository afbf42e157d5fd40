"""Looking for secrets where none may be."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path


def spellings(secret: str) -> Iterator[tuple[str, bytes]]:
    """Return the ways in which a secret may have been written down."""
    raw = secret.encode()
    yield "raw", raw
    yield "reversed", raw[::-1]
    yield "hex", raw.hex().encode()
    yield "HEX", raw.hex().upper().encode()
    for before in range(3):
        # Inside a longer text the letters depend on where it begins; those at the edges, on others.
        encoded = base64.b64encode(b"\0" * before + raw)
        yield f"base64 at {before}", encoded[(8 * before + 5) // 6 : len(raw) * 4 // 3 - 4]


def secret_of(token: str) -> str:
    """Return the part of a token that nobody may know."""
    return token.rpartition("_")[2][:43]


def files_below(*paths: Path) -> dict[str, bytes]:
    """Read every file below some directories."""
    return {
        str(file): file.read_bytes()
        for path in paths
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def hunt(tokens: Iterable[str], places: dict[str, bytes]) -> list[str]:
    """Return where which token was found, in which spelling."""
    return [
        f"{token[:23]} {how} in {place}"
        for token in tokens
        for how, needle in spellings(secret_of(token))
        for place, content in places.items()
        if needle in content
    ]
