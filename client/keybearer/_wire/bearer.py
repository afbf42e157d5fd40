"""The header `authorization: Bearer <token>`, read and written in one place.

A credential is accepted in one form only, that of RFC 6750 section 2.1: exactly one header, the
scheme in any case, one or more spaces, and one token. Anything else is no credential at all
(CREDENTIALS_MISSING). Choosing the first or the last of two would let a proxy and a server believe
in different callers.
"""

import re
from collections.abc import Iterable
from typing import Final

AUTHORIZATION: Final = "authorization"
"""The name of the header, in lower case, as in gRPC metadata."""

# A `b64token` of RFC 6750. It has no blank and no comma, so two headers joined into one, as a proxy
# may do, are never one token.
_CREDENTIALS: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)", re.ASCII)


def token_of(values: Iterable[str | bytes]) -> str | None:
    """Return the token in the `authorization` headers of one request.

    Args:
        values: The value of every `authorization` header, in any order.

    Returns:
        The token, or None unless there is exactly one well-formed header.
    """
    found: str | bytes | None = None
    for value in values:
        if found is not None:
            return None
        found = value
    return None if found is None else parse_credentials(found)


def token_in_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the token in gRPC metadata, or in headers whose names are in lower case.

    Returns:
        The token, or None unless there is exactly one well-formed `authorization`.
    """
    # A loop of its own instead of a call of `token_of`: every guarded call passes here.
    found: str | bytes | None = None
    for name, value in metadata:
        if name == AUTHORIZATION:
            if found is not None:
                return None
            found = value
    return None if found is None else parse_credentials(found)


def parse_credentials(value: str | bytes) -> str | None:
    """Return the token of one header value, or None when the value is malformed."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    token = text[7:]
    # The usual form of our own tokens, decided in a fifth of the time that the pattern takes.
    if text[:7] == "Bearer " and token.isascii() and token.replace("_", "").isalnum():
        return token
    match = _CREDENTIALS.fullmatch(text)
    return None if match is None else match[1]


def authorization_of(token: str) -> tuple[str, str]:
    """Return the metadata pair that presents a token.

    Surrounding whitespace is dropped, because files that hold a token end with a newline.

    Raises:
        ValueError: The token is empty or contains a character that no header can carry. The message
            does not repeat the token.
    """
    stripped = token.strip()
    if not stripped:
        raise ValueError("the token is empty")
    if not (stripped.isascii() and stripped.isprintable()) or " " in stripped:
        raise ValueError("the token has characters that no token has")
    return AUTHORIZATION, f"Bearer {stripped}"
