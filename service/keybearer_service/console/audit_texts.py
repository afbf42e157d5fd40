"""What the pages say of events of the audit log, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType, members_of
from keybearer_service.domain.audit_event import AuditEvent, FieldChange

_OF_KEYS: Final = {
    AuditAction.API_KEY_CREATED: "Created",
    AuditAction.API_KEY_UPDATED: "Edited",
    AuditAction.API_KEY_DISABLED: "Disabled",
    AuditAction.API_KEY_ENABLED: "Enabled",
    AuditAction.API_KEY_ROTATED: "Rotated",
    AuditAction.API_KEY_REMINTED: "A new secret was shown, for one that was lost",
    AuditAction.API_KEY_REVOKED: "Revoked",
    AuditAction.API_KEY_OVERLAP_ENDED: "The old secret was ended",
    AuditAction.ADMIN_TOKEN_ISSUED: "Issued on the server",
    AuditAction.INSTALLATION_CREATED: "Created with the installation",
    AuditAction.ACCOUNT_CREATED: "Created with the account",
    AuditAction.USER_DELETED: "Revoked: its owner was deleted",
    AuditAction.API_KEYS_REVOKED: "Revoked: who created it was deleted",
}
_OF_USERS: Final = {
    AuditAction.USER_CREATED: "Created",
    AuditAction.USER_UPDATED: "Edited",
    AuditAction.USER_DELETED: "Deleted",
    AuditAction.USER_ERASED: "Name and address were erased",
    AuditAction.SESSION_ENDED: "A session was ended",
    AuditAction.INSTALLATION_CREATED: "Created with the installation",
    AuditAction.ACCOUNT_CREATED: "Created with the account",
    AuditAction.ADMIN_TOKEN_ISSUED: "A token was issued on the server",
}


ACTION_WORDS: Final = {
    one: one.name.replace("_", " ").capitalize().replace("Api key", "API key")
    for one in members_of(AuditAction)
}
"""Every action, as the log calls it."""
_TARGETS: Final = {
    AuditTargetType.INSTALLATION: "Installation",
    AuditTargetType.ACCOUNT: "Account",
    AuditTargetType.USER: "User",
    AuditTargetType.API_KEY: "API key",
    AuditTargetType.METHOD: "",
    AuditTargetType.SESSION: "Session",
}
_SHOWN: Final = 300
"""Characters of a change that the log shows; the export has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event in words."""

    event: AuditEvent
    what: str
    who: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One event, as the log shows it."""

    event: AuditEvent
    what: str
    who: str
    target_kind: str
    target_name: str
    """What people call the target; empty when it is not known."""
    changes: Sequence[str]

    @property
    def leads_to(self) -> str:
        """What the link of the target leads to: `key`, `user`, or empty."""
        kinds = {AuditTargetType.API_KEY: "key", AuditTargetType.USER: "user"}
        return kinds.get(self.event.target_type, "") if self.target_name else ""


def happened_to_key(event: AuditEvent) -> Happened:
    """Return an event as the history of a key tells it."""
    return _happened(event, _OF_KEYS)


def happened_to_user(event: AuditEvent) -> Happened:
    """Return an event as the history of a user tells it."""
    return _happened(event, _OF_USERS)


def log_line(event: AuditEvent, names: Mapping[str, str]) -> LogLine:
    """Return an event as the log shows it.

    Args:
        event: The event.
        names: What people call things, by their ids.
    """
    return LogLine(
        event=event,
        what=ACTION_WORDS.get(event.action, "Something of a newer version"),
        who=who_of(event),
        target_kind=_TARGETS.get(event.target_type, ""),
        target_name=names.get(event.target_id, ""),
        changes=[_change(one) for one in event.changes],
    )


def who_of(event: AuditEvent) -> str:
    """Return who did it."""
    actor = event.actor
    return actor.user_email or actor.type.name.replace("_", " ").lower()


def _happened(event: AuditEvent, words: Mapping[AuditAction, str]) -> Happened:
    who = who_of(event)
    what = words.get(event.action, ACTION_WORDS.get(event.action, ""))
    return Happened(event=event, what=what, who=f"{who} from {event.peer}" if event.peer else who)


def _change(change: FieldChange) -> str:
    before, after = _short(change.before), _short(change.after)
    if not before:
        return f"{change.field}: {after}"
    return f"{change.field}: {before} → {after or 'nothing'}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
