"""The token: how it is written, read, and reduced to what is stored.

`<prefix>_<id16>_<secret43><crc6>`: section 2 of the wire contract. Pure functions; nothing here
knows a store or a call.
"""

import hmac
import re
import zlib
from typing import NamedTuple

from keybearer_service.domain.entropy import BASE62, Entropy

DEFAULT_PREFIX = "kbear1"
ID_LENGTH = 16
"""95 bits: enough that ids never collide and cannot be walked."""
SECRET_LENGTH = 43
"""256 bits in base62. A fast keyed hash is right for such a secret; slow ones are for guesses."""
MAX_TOKEN_BYTES = 512
"""Nothing longer is looked at."""

_TOKEN = re.compile(
    r"([a-z][a-z0-9]{1,15})_([0-9A-Za-z]{16})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII
)
_PREFIX = re.compile(r"[a-z][a-z0-9]{1,15}", re.ASCII)
_ID = re.compile(r"[0-9A-Za-z]{16}", re.ASCII)
_DIGIT_PAIRS = [high + low for high in BASE62 for low in BASE62]


class Parsed(NamedTuple):
    """A well-formed token, taken apart. It proves nothing yet."""

    key_id: str
    secret: str


def is_prefix(text: str) -> bool:
    """Tell whether `text` may stand before the first underscore of a token."""
    return _PREFIX.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Tell whether `text` has the form of an id: 16 base62 characters."""
    return _ID.fullmatch(text) is not None


def checksum(text: str) -> str:
    """Answer the CRC-32 of `text` in six base62 digits, zero-padded.

    It lets scanners and the parser refuse garbage cheaply. It never proves anything.
    """
    rest, last = divmod(zlib.crc32(text.encode("ascii")), 3844)
    first, middle = divmod(rest, 3844)
    return _DIGIT_PAIRS[first] + _DIGIT_PAIRS[middle] + _DIGIT_PAIRS[last]


def write(prefix: str, key_id: str, secret: str) -> str:
    """Put a token together."""
    body = f"{prefix}_{key_id}_{secret}"
    return body + checksum(body)


def draw_secret(entropy: Entropy) -> str:
    """Draw a fresh secret of 256 bits."""
    return entropy.base62(SECRET_LENGTH)


def parse(token: str, prefixes: frozenset[str]) -> Parsed | None:
    """Take a token apart; None when it is not well formed.

    Args:
        token: What was presented, at any length, in any characters.
        prefixes: The current prefix and the retired ones, all of which stay valid.
    """
    if len(token) > MAX_TOKEN_BYTES:
        return None
    match = _TOKEN.fullmatch(token)
    if match is None or match[1] not in prefixes or checksum(token[:-6]) != match[4]:
        return None
    return Parsed(match[2], match[3])


def mac_of(pepper: bytes) -> hmac.HMAC:
    """Prepare the HMAC-SHA-256 under a pepper, for `digest_by`."""
    return hmac.new(pepper, digestmod="sha256")


def digest(pepper: bytes, account_id: str, key_id: str, secret: str) -> bytes:
    """Reduce a secret to what is stored, as `digest_by` does."""
    return digest_by(mac_of(pepper), account_id, key_id, secret)


def digest_by(mac: hmac.HMAC, account_id: str, key_id: str, secret: str) -> bytes:
    """Reduce a secret to what is stored: HMAC-SHA-256 over "v1" and length-prefixed fields.

    The account and the id are in it, so that a digest copied to another row opens nothing.

    Args:
        mac: The prepared HMAC; it is left as it is.
        account_id: The account of the key.
        key_id: The key.
        secret: The secret.
    """
    account, key, opened = account_id.encode(), key_id.encode(), secret.encode()
    message = b"v1%b%b%b%b%b%b" % (
        len(account).to_bytes(2),
        account,
        len(key).to_bytes(2),
        key,
        len(opened).to_bytes(2),
        opened,
    )
    copy = mac.copy()  # unlike hmac.digest, it never lets go of the interpreter
    copy.update(message)
    return copy.digest()
