"""The enums of the API, with the numbers of the protos.

`UNSPECIFIED` is what protobuf reads when a field is absent, and what the client reads for a number
that it does not know. Code that needs a real value uses `members_of`, or rejects the falsy member.
"""

import enum
from typing import TypeVar

EnumT = TypeVar("EnumT", bound=enum.IntEnum)


class UserType(enum.IntEnum):
    """The kind of a user."""

    UNSPECIFIED = 0
    PERSON = 1
    SERVICE_ACCOUNT = 2


class ApiKeyState(enum.IntEnum):
    """The state of a key. REVOKED wins over EXPIRED, EXPIRED over DISABLED."""

    UNSPECIFIED = 0
    ACTIVE = 1
    DISABLED = 2
    EXPIRED = 3
    REVOKED = 4


class RevocationReason(enum.IntEnum):
    """Why a key was revoked. Callers give one of the first four; the service sets the others."""

    UNSPECIFIED = 0
    LOST = 1
    COMPROMISED = 2
    SUPERSEDED = 3
    NO_LONGER_USED = 4
    OWNER_DELETED = 5
    CREATOR_DELETED = 6
    REPORTED_BY_HOLDER = 7


class RevocationResult(enum.IntEnum):
    """What became of one key of a RevokeApiKeys."""

    UNSPECIFIED = 0
    REVOKED = 1
    ALREADY_REVOKED = 2
    NOT_FOUND = 3


class Outcome(enum.IntEnum):
    """The verdict about a token. Every outcome but VALID is a denial."""

    UNSPECIFIED = 0
    VALID = 1
    NOT_FOUND = 2
    REVOKED = 3
    EXPIRED = 4
    DISABLED = 5
    ROLE_INSUFFICIENT = 6
    SCOPE_INSUFFICIENT = 7


class AuditAction(enum.IntEnum):
    """What happened."""

    UNSPECIFIED = 0
    INSTALLATION_CREATED = 1
    INSTALLATION_RESTORED = 2
    PEPPER_ADDED = 3
    PEPPER_RETIRED = 4
    ADMIN_TOKEN_ISSUED = 5
    ACCOUNT_CREATED = 6
    ACCOUNT_DISABLED = 7
    ACCOUNT_ENABLED = 8
    USER_CREATED = 9
    USER_UPDATED = 10
    USER_DELETED = 11
    API_KEY_CREATED = 12
    API_KEY_UPDATED = 13
    API_KEY_DISABLED = 14
    API_KEY_ENABLED = 15
    API_KEY_ROTATED = 16
    API_KEY_REMINTED = 17
    API_KEY_REVOKED = 18
    API_KEY_OVERLAP_ENDED = 19
    CALL_REFUSED = 20
    USER_ERASED = 21
    API_KEYS_REVOKED = 22
    AUDIT_PRUNED = 23
    API_KEYS_PRUNED = 24
    INSTALLATION_MOVED = 25
    SIGNED_IN = 26
    SIGN_IN_REFUSED = 27
    SIGNED_OUT = 28
    PEPPER_ACTIVATED = 29
    SESSION_ENDED = 30
    IDENTITY_BOUND = 31
    IDENTITY_REMOVED = 32
    USER_INVITED = 33


class AuditActorType(enum.IntEnum):
    """The kind of an actor."""

    UNSPECIFIED = 0
    KEY = 1
    HOLDER = 2
    LOCAL_COMMAND = 3
    ANONYMOUS = 4
    SESSION = 5
    PROVIDER = 6


class AuditTargetType(enum.IntEnum):
    """The kind of thing that was changed."""

    UNSPECIFIED = 0
    INSTALLATION = 1
    ACCOUNT = 2
    USER = 3
    API_KEY = 4
    METHOD = 5
    SESSION = 6


def members_of(enum_class: type[EnumT]) -> tuple[EnumT, ...]:
    """Return the members of an enum without UNSPECIFIED, in the order of their numbers."""
    return tuple(member for member in enum_class if member)


REASONS_OF_CALLERS = frozenset(
    {
        RevocationReason.LOST,
        RevocationReason.COMPROMISED,
        RevocationReason.SUPERSEDED,
        RevocationReason.NO_LONGER_USED,
    }
)
"""The reasons that RevokeApiKey accepts."""
