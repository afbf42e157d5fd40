"""The entries of the audit log."""

import enum
from dataclasses import dataclass

from keybearer_service.domain.clock import Micros


class ActorType(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditActorType`."""

    KEY = 1
    HOLDER = 2
    LOCAL_COMMAND = 3
    ANONYMOUS = 4


class TargetType(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditTargetType`."""

    INSTALLATION = 1
    ACCOUNT = 2
    USER = 3
    API_KEY = 4
    METHOD = 5


class Action(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditAction`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who did it."""

    type: ActorType
    key_id: str = ""
    user_id: str = ""
    user_email: str = ""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, as text, before and after."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log."""

    id: str
    seq: int
    time: Micros
    account_id: str
    actor: Actor
    action: Action
    target_type: TargetType
    target_id: str
    changes: tuple[FieldChange, ...]
    request_id: str
    peer: str
    hash: bytes
