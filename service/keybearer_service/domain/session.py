"""Sessions of people who signed in: their secret, and the rules of time by which they end.

A session is not a key. Its token has a prefix of its own, which no installation may use for keys,
so that nothing that judges tokens of keys ever finds a session.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final

from keybearer._wire.token_format import ID_LENGTH, Parsed, parse_token, write_token
from keybearer_service.domain.clock import HOUR, MINUTE, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.token_format import draw_secret

SESSION_PREFIX: Final = "kbses1"
"""What the token of a session begins with; `init` refuses it as the prefix of keys."""
IDLE_FOR: Final = 30 * MINUTE
"""How long a session lives on without a request."""
TOKEN_LIVES_FOR: Final = HOUR
"""How long a session lives in all that was opened with the token of a key."""
PERSON_LIVES_FOR: Final = 8 * HOUR
"""How long a session lives in all that was opened at a provider."""
SIGN_IN_COUNTS_FOR: Final = 60 * MINUTE
"""How long after a sign-in a session may hand out a secret or authority."""
SEEN_EVERY: Final = MINUTE
"""How often it is recorded that a session is in use, at most."""
MAX_USER_AGENT: Final = 200
"""Characters of the User-Agent header that are kept."""

_PREFIXES: Final = frozenset({SESSION_PREFIX})


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One person signed in at one browser, at a provider or with the token of a key."""

    id: str
    account_id: str
    user_id: str
    key_id: str = ""
    """The key whose token was given; empty for a sign-in at a provider. The session holds no more
    authority than that token does."""
    secret_version: int = 0
    """Which secret of the key that was."""
    issuer: str = ""
    """The provider; empty for a sign-in with a token."""
    subject: str = ""
    """What the provider calls the person."""
    provider_session: str = ""
    """What the provider calls its own session; empty when it did not say."""
    auth_time: Micros
    """When the person last proved who they are."""
    create_time: Micros
    last_seen_time: Micros
    """Up to SEEN_EVERY before the last request."""
    end_time: Micros | None = None
    """When it was ended; None for one that was not, or that ends by itself."""
    peer: str
    user_agent: str
    digest: bytes = field(repr=False)
    """All that is stored of the secret: see `session_digest`."""

    def lives_at(self, now: Micros) -> bool:
        """Return whether the session was neither ended nor left alone for too long."""
        return (
            self.end_time is None
            and now < self.create_time + (TOKEN_LIVES_FOR if self.key_id else PERSON_LIVES_FOR)
            and now < self.last_seen_time + IDLE_FOR
        )


def new_session_token(entropy: Entropy) -> tuple[str, Parsed]:
    """Draw the token of a new session; return it whole, and as its id and its secret."""
    parts = Parsed(entropy.base62(ID_LENGTH), draw_secret(entropy))
    return write_token(SESSION_PREFIX, parts.key_id, parts.secret), parts


def parse_session_token(text: str) -> Parsed | None:
    """Return the id and the secret of a token of a session; None for any other text."""
    return parse_token(text, _PREFIXES)


def session_digest(key: bytes, epoch: str, session: Session, secret: str) -> bytes:
    """Reduce the secret of a session to what is stored: HMAC-SHA-256 over length-prefixed fields.

    Whose session it is, how it was opened and when it began are in it, so that a row that was
    altered opens nothing. So is the epoch: a backup that is restored brings no session back.

    Args:
        key: The key of the installation for sessions.
        epoch: The epoch of the database.
        session: The session; its own digest is not read.
        secret: The secret.
    """
    texts = (
        epoch,
        session.id,
        session.account_id,
        session.user_id,
        session.key_id,
        str(session.secret_version),
        session.issuer,
        session.subject,
        str(session.auth_time),
        str(session.create_time),
        secret,
    )
    message = b"".join(len(text.encode()).to_bytes(2) + text.encode() for text in texts)
    return hmac.digest(key, b"session v2" + message, "sha256")
