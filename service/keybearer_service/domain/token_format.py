"""The token as the service knows it: its form, and what is stored of its secret.

The form is in `keybearer._wire.token_format`, for the client and the service alike. Section 2 of
the wire contract. Pure functions; nothing here knows a store or a call.
"""

import hmac

from keybearer._wire.token_format import (
    DEFAULT_PREFIX,
    ID_LENGTH,
    SECRET_LENGTH,
    Parsed,
    checksum,
    is_id,
    is_prefix,
)
from keybearer._wire.token_format import parse_token as parse
from keybearer._wire.token_format import write_token as write
from keybearer_service.domain.entropy import Entropy

__all__ = [
    "DEFAULT_PREFIX",
    "ID_LENGTH",
    "Parsed",
    "checksum",
    "digest",
    "digest_by",
    "draw_secret",
    "id_in",
    "is_id",
    "is_prefix",
    "mac_of",
    "parse",
    "write",
]


def id_in(token: str) -> str:
    """Return the id of the key that a token may be of; whether it is a token is not looked at."""
    parts = token.split("_", 3)
    is_like_one = len(parts) == 3 and len(parts[1]) == ID_LENGTH  # noqa: PLR2004 - prefix, id, secret
    return parts[1] if is_like_one else ""


def draw_secret(entropy: Entropy) -> str:
    """Draw a fresh secret of 256 bits."""
    return entropy.base62(SECRET_LENGTH)


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
