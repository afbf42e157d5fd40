"""Reads the credential of a call."""

from collections.abc import Sequence

from keybearer_service.domain.errors import (
    CredentialsMissing,
)


def bearer_token(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Answer the token of the one `authorization: Bearer <token>`.

    Raises:
        CredentialsMissing: None, more than one, or in another form. Taking the first or the last
            of two would let a proxy and us believe in different callers.
    """
    found: str | bytes | None = None
    for key, value in metadata:
        if key == "authorization":
            if found is not None:
                raise CredentialsMissing
            found = value
    if not isinstance(found, str):
        raise CredentialsMissing
    scheme, _, token = found.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise CredentialsMissing
    return token
