"""What the transport's words for a failed connection mean."""

import enum

from keybearer.errors import KeybearerError


class Hint(enum.Enum):
    """Why there is no connection; the value is what the transport says then."""

    PLAINTEXT_PORT = "WRONG_VERSION_NUMBER"
    """TLS, to a port that speaks plaintext."""
    UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
    """No trusted authority has signed the certificate."""
    OTHER_NAME = "Hostname Verification Check failed"
    """The certificate names another server."""
    NOT_GRPC = "Failed parsing HTTP/2"
    """Plaintext, to a port that speaks another protocol."""
    TLS_PORT = "Socket closed"
    """Plaintext, to a port that speaks TLS; or TLS without a certificate that the port demands."""
    NO_SUCH_NAME = "errors resolving"
    """Nobody knows the name."""


def hint_of(error: Exception) -> Hint | None:
    """Return the hint that belongs to an error, or None when its words say it all."""
    if not isinstance(error, KeybearerError) or error.reason:
        return None
    if not error.message.startswith(("failed to connect", "errors resolving", "DNS resolution")):
        return None
    return next((hint for hint in Hint if hint.value in error.message), None)
