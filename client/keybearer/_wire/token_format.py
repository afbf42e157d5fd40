"""The token: `<prefix>_<id16>_<secret43><crc6>`, section 2 of the wire contract.

Pure functions. A well-formed token proves nothing.
"""

import re
import zlib
from typing import Final, NamedTuple

BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The alphabet of ids, secrets and checksums, in the order of its digit values."""
DEFAULT_PREFIX: Final = "kbear1"
ID_LENGTH: Final = 16
"""95 bits: enough that ids never collide and cannot be enumerated."""
SECRET_LENGTH: Final = 43
"""256 bits in base62."""
CHECKSUM_LENGTH: Final = 6
MAX_TOKEN_LENGTH: Final = 512
"""Characters. Nothing longer is a token."""

PREFIX_PATTERN: Final = "[a-z][a-z0-9]{1,15}"
_ID_PATTERN: Final = f"[0-9A-Za-z]{{{ID_LENGTH}}}"
_TOKEN: Final = re.compile(
    f"({PREFIX_PATTERN})_({_ID_PATTERN})"
    f"_([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})",
    re.ASCII,
)
_PREFIX: Final = re.compile(PREFIX_PATTERN, re.ASCII)
_ID: Final = re.compile(_ID_PATTERN, re.ASCII)
_DIGIT_PAIRS: Final = [high + low for high in BASE62 for low in BASE62]


class Parsed(NamedTuple):
    """The parts of a well-formed token."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"Parsed(key_id={self.key_id!r})"


def is_prefix(text: str) -> bool:
    """Return whether `text` may stand before the first underscore of a token."""
    return _PREFIX.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Return whether `text` has the form of an id: 16 base62 characters."""
    return _ID.fullmatch(text) is not None


def checksum(text: str) -> str:
    """Return the CRC-32 of `text` in six base62 digits, zero-padded.

    Scanners and the parser reject garbage by it cheaply. It proves nothing.
    """
    rest, last = divmod(zlib.crc32(text.encode("ascii")), len(_DIGIT_PAIRS))
    first, middle = divmod(rest, len(_DIGIT_PAIRS))
    return _DIGIT_PAIRS[first] + _DIGIT_PAIRS[middle] + _DIGIT_PAIRS[last]


def write_token(prefix: str, key_id: str, secret: str) -> str:
    """Return the token made of these parts."""
    body = f"{prefix}_{key_id}_{secret}"
    return body + checksum(body)


def parse_token(token: str, prefixes: frozenset[str]) -> Parsed | None:
    """Return the parts of a token, or None when it is not well formed.

    Args:
        token: What was presented, of any length and in any characters.
        prefixes: The current prefix and the retired ones; all of them stay valid.
    """
    if len(token) > MAX_TOKEN_LENGTH:
        return None
    match = _TOKEN.fullmatch(token)
    if match is None or match[1] not in prefixes:
        return None
    if checksum(token[:-CHECKSUM_LENGTH]) != match[4]:
        return None
    return Parsed(match[2], match[3])


def may_be_token(text: str) -> bool:
    """Return whether it makes sense to ask the service about `text`.

    Only what is certainly no token is rejected: the service may issue tokens of another form.
    """
    if not text or len(text) > MAX_TOKEN_LENGTH or " " in text or "," in text:
        return False
    return text.isascii() and text.isprintable()
