"""What the pages say of a key, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from keybearer._wire.enums import ApiKeyState, RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.console.times import relative, span
from keybearer_service.domain.clock import DAY, MINUTE, Micros
from keybearer_service.domain.model import ApiKey

EXPIRING_SOON: Final = 30 * DAY
USED_LATELY: Final = 7 * DAY
REASONS: Final = {
    RevocationReason.LOST: "Its secret was lost",
    RevocationReason.COMPROMISED: "Its secret may be known to somebody else",
    RevocationReason.SUPERSEDED: "Another key has taken its place",
    RevocationReason.NO_LONGER_USED: "It is no longer used",
}
"""The reasons that one can choose."""
_REASON_WORDS: Final = {
    **REASONS,
    RevocationReason.OWNER_DELETED: "Its owner was deleted",
    RevocationReason.CREATOR_DELETED: "Who created it was deleted",
    RevocationReason.REPORTED_BY_HOLDER: "Somebody who held its secret reported it",
}
STATE_WORDS: Final = {
    ApiKeyState.ACTIVE: "Active",
    ApiKeyState.DISABLED: "Disabled",
    ApiKeyState.EXPIRED: "Expired",
    ApiKeyState.REVOKED: "Revoked",
}
TYPE_WORDS: Final = {
    UserType.PERSON: "Person",
    UserType.SERVICE_ACCOUNT: "Service account",
}
ROLE_WORDS: Final = {Role.VALIDATOR: "Validator", Role.DEVELOPER: "Developer", Role.ADMIN: "Admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key, as the list shows it."""

    key: ApiKey
    status: str
    role: str
    is_over: bool
    """Whether nothing brings it back."""
    expires_soon: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something about a key that somebody should know."""

    strong: str
    text: str = ""
    kind: str = "warn"
    until: Micros | None = None
    """A moment behind the strong words."""
    change: str = ""
    """The change that mends it, as `change_key_link` names it; empty for none."""
    change_words: str = ""
    """What its link says."""


def row_of(key: ApiKey, now: Micros) -> Row:
    """Return a key as the list shows it."""
    state = key.state_at(now)
    role = ROLE_WORDS[key.effective_role]
    granted = ROLE_WORDS[key.role]
    is_over = state in (ApiKeyState.REVOKED, ApiKeyState.EXPIRED)
    is_soon = key.expire_time is not None and key.expire_time - now <= EXPIRING_SOON
    return Row(
        key=key,
        status=STATE_WORDS[state],
        role=role if role == granted else f"{role} (granted {granted})",
        is_over=is_over,
        expires_soon=is_soon and not is_over,
    )


def notices_of(key: ApiKey, now: Micros) -> Iterator[Notice]:
    """Yield what somebody who looks at a key should know; of a revoked one there is nothing."""
    state = key.state_at(now)
    if state is ApiKeyState.REVOKED:
        return
    if key.effective_role is not key.role:
        role, granted = ROLE_WORDS[key.effective_role], ROLE_WORDS[key.role]
        yield Notice(
            strong=f"Granted {granted}, counts as {role}.",
            text=f"Its owner is a {role} now, and a key never does more than its owner may.",
        )
    if key.overlaps_at(now):
        used = key.old_secret_last_used_time
        yield Notice(
            strong="The old secret works until",
            until=key.overlap_end_time,
            text="It was not used since the rotation."
            if used is None
            else f"It was last used {relative(used, now)}: something still has it.",
            change="end-old-secret",
            change_words="End it now",
        )
    if state is not ApiKeyState.ACTIVE:
        return
    if key.expire_time is not None and key.expire_time - now <= EXPIRING_SOON:
        yield Notice(
            strong=f"Expires in {span(key.expire_time - now)}.",
            text="A new secret does not extend it.",
            change="edit",
            change_words="Change when it expires",
        )
    if key.last_used_time is None and now - key.create_time >= DAY:
        age = span(now - key.create_time)
        yield Notice(strong=f"Never used since it was created {age} ago.", kind="plain")


def reason_words(key: ApiKey) -> str:
    """Return why a key was revoked; empty for one that was not."""
    return _REASON_WORDS.get(key.revocation_reason or RevocationReason.UNSPECIFIED, "")


def done_words(done: str, key: ApiKey, now: Micros) -> str:
    """Return what was just done to a key; empty when the key does not look like it."""
    state = key.state_at(now)
    is_true = {
        "disabled": state is ApiKeyState.DISABLED,
        "enabled": state is ApiKeyState.ACTIVE,
        "ended": not key.overlaps_at(now),
        "edited": now - key.update_time <= MINUTE,
    }
    return _DONE[done] if is_true.get(done) else ""


_DONE: Final = {
    "disabled": "It is disabled. Every program that uses it is refused.",
    "enabled": "It is enabled, and accepted again.",
    "ended": "The old secret is refused.",
    "edited": "The change is saved.",
}


def is_used_lately(key: ApiKey, now: Micros) -> bool:
    """Return whether something seems to depend on a key."""
    return key.last_used_time is not None and now - key.last_used_time <= USED_LATELY
