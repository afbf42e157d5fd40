"""Who somebody is at a provider, whose user that is here, and the invitations that bind the two."""

import hmac
from dataclasses import dataclass, field
from typing import Final

from keybearer._wire.token_format import ID_LENGTH, Parsed, parse_token, write_token
from keybearer_service.domain.clock import HOUR, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.token_format import draw_secret

INVITATION_PREFIX: Final = "kbinv1"
"""What the secret of an invitation begins with; `init` refuses it as the prefix of keys."""
INVITATION_LIVES_FOR: Final = 72 * HOUR
"""How long an invitation can be accepted."""

_PREFIXES: Final = frozenset({INVITATION_PREFIX})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenPerson:
    """Whom a provider has named, in an answer that was checked."""

    issuer: str
    subject: str
    auth_time: Micros
    """When the person last signed in there."""
    provider_session: str = ""
    """What the provider calls its session; empty when it did not say."""
    email: str = ""
    """The address that the provider gives the person; it may be anybody's."""
    is_email_verified: bool = False
    """Whether the provider says that the address is the person's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The user who somebody at a provider is."""

    issuer: str
    subject: str
    account_id: str
    user_id: str
    bind_time: Micros
    mac: bytes = field(repr=False)
    """See `identity_mac`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Lets one person connect a sign-in at the provider with a user, once."""

    id: str
    account_id: str
    user_id: str
    created_by: str
    """The user who invited."""
    create_time: Micros
    digest: bytes = field(repr=False)
    """All that is stored of the secret: see `invitation_digest`."""

    @property
    def expire_time(self) -> Micros:
        """When it can no longer be accepted."""
        return Micros(self.create_time + INVITATION_LIVES_FOR)


def new_invitation_token(entropy: Entropy) -> tuple[str, Parsed]:
    """Draw the secret of a new invitation; return it whole, and as its id and its secret part."""
    parts = Parsed(entropy.base62(ID_LENGTH), draw_secret(entropy))
    return write_token(INVITATION_PREFIX, parts.key_id, parts.secret), parts


def parse_invitation_token(text: str) -> Parsed | None:
    """Return the id and the secret part of an invitation's secret; None for any other text."""
    return parse_token(text, _PREFIXES)


def invitation_digest(key: bytes, epoch: str, invitation: Invitation, secret: str) -> bytes:
    """Reduce the secret of an invitation to what is stored.

    Whom it is for and when it was made are in it, so that a row that was altered invites nobody. So
    is the epoch: a backup that is restored brings no invitation back.

    Args:
        key: The key of the installation for invitations.
        epoch: The epoch of the database.
        invitation: The invitation; its own digest is not read.
        secret: The secret.
    """
    texts = (
        epoch,
        invitation.id,
        invitation.account_id,
        invitation.user_id,
        str(invitation.create_time),
        secret,
    )
    return _mac(key, b"invitation v1", texts)


def identity_mac(key: bytes, identity: Identity) -> bytes:
    """Return what shows that this program wrote the row of an identity.

    Args:
        key: The key of the installation for identities.
        identity: The identity; its own MAC is not read.
    """
    texts = (
        identity.issuer,
        identity.subject,
        identity.account_id,
        identity.user_id,
        str(identity.bind_time),
    )
    return _mac(key, b"identity v1", texts)


def _mac(key: bytes, purpose: bytes, texts: tuple[str, ...]) -> bytes:
    message = b"".join(len(text.encode()).to_bytes(2) + text.encode() for text in texts)
    return hmac.digest(key, purpose + message, "sha256")
