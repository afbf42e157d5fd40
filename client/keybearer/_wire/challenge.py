"""The challenge of RFC 6750 section 3: the value of `www-authenticate`.

An HTTP response carries it in a header, a gRPC response in trailing metadata of the same name.
"""

from collections.abc import Mapping
from typing import Final

import grpc

WWW_AUTHENTICATE: Final = "www-authenticate"
REALM: Final = 'Bearer realm="keybearer"'
"""The whole challenge for a request without a credential: RFC 6750 gives it no error code."""

_ERRORS: Final = {
    grpc.StatusCode.UNAUTHENTICATED: "invalid_token",
    grpc.StatusCode.PERMISSION_DENIED: "insufficient_scope",
}
_FORBIDDEN_IN_DESCRIPTION: Final = '"\\'


def challenge_of(
    code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str]
) -> str:
    """Return the challenge that belongs to a denial.

    Args:
        code: The status of the denial.
        reason: Its name in `keybearer.v1.ErrorReason`, without the prefix.
        message: Its text for people.
        metadata: Its metadata; `required_scopes`, separated by commas, become the `scope`.

    Returns:
        The challenge; empty for what is no denial, such as an outage.
    """
    error = _ERRORS.get(code)
    if error is None:
        return ""
    if reason == "CREDENTIALS_MISSING":
        return REALM
    challenge = f'{REALM}, error="{error}", error_description="{_description(message)}"'
    scopes = metadata.get("required_scopes", "")
    if reason == "SCOPE_INSUFFICIENT" and scopes:
        challenge += f', scope="{scopes.replace(",", "")}"'
    return challenge


def _description(message: str) -> str:
    """Replace what RFC 6750 does not allow in `error_description`."""
    return "".join(
        one if " " <= one <= "~" and one not in _FORBIDDEN_IN_DESCRIPTION else "?"
        for one in message
    )
