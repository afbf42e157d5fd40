"""The verdict about a token, and the rules of time and role that lead to it."""

from dataclasses import dataclass
from typing import NamedTuple

from keybearer._wire.enums import ApiKeyState, Outcome
from keybearer._wire.limits import MAX_CACHE_SECONDS, MAX_NEGATIVE_CACHE_SECONDS
from keybearer.access import NO_CONTEXT, AccessRule, Context, Decision, Role, decide
from keybearer_service.domain.clock import SECOND, Micros
from keybearer_service.domain.model import Moment, key_state

_ROLES = {role.value: role for role in Role}  # calling the enum costs three times as much
# Constants of their own, since a verdict needs them all: to look up a member takes 0.1 us.
_VALID = Outcome.VALID
_ACTIVE = ApiKeyState.ACTIVE
_ALLOWED = Decision.ALLOWED


class TokenRecord(NamedTuple):
    """Everything a verdict needs, in the order of the one statement that reads it.

    A named tuple, not a dataclass: it is created from a row on every validation, in a quarter of
    the time.
    """

    key_id: str
    account_id: str
    owner_id: str
    key_name: str
    role: int
    scopes: str
    """Separated by blanks."""
    labels: str
    """A JSON object; empty for none."""
    expire_time: Micros | None
    disable_time: Micros | None
    revoke_time: Micros | None
    secret_version: int
    secret_used: int
    secret_create_time: Micros
    digest: bytes
    pepper_id: str
    old_digest: bytes | None
    old_pepper_id: str | None
    old_secret_version: int | None
    overlap_end_time: Micros | None
    owner_role: int
    owner_email: str
    owner_type: int
    owner_delete_time: Micros | None
    account_disable_time: Micros | None
    account_is_operator: int

    @property
    def effective_role(self) -> Role:
        """The lower of the granted role and the owner's current role."""
        return _ROLES[min(self.role, self.owner_role)]

    def secret_of(self, version: int, now: Micros) -> "Match | None":
        """Return the secret of this version: the current one, or the old one while it overlaps.

        The one place that decides which secrets of a key work at a moment, whatever the key's own
        state: None for every other version, and for the old one from the end of its overlap on.
        """
        if version == self.secret_version:
            return Match(self, version, self.expire_time, is_current=True)
        end = self.overlap_end_time
        if version == self.old_secret_version and end is not None and now < end:
            return Match(self, version, end, is_current=False)
        return None


class Match(NamedTuple):
    """A record together with the secret of it that was presented."""

    record: TokenRecord
    secret_version: int
    valid_until: Micros | None
    """When this secret stops working by itself: its key's expiry, or the end of its overlap."""
    is_current: bool
    """False for the old secret of a rotation."""

    def lives_at(self, now: Micros) -> bool:
        """Return whether neither the key nor this secret of it has expired."""
        return self.valid_until is None or now < self.valid_until


class Verdict(NamedTuple):
    """The answer about a token."""

    outcome: Outcome
    moment: Moment
    """What the store was read at."""
    cache_for: int
    """Microseconds; 0 means not at all."""
    match: Match | None
    """None for NOT_FOUND, which says nothing about any key."""


MAX_CACHE_FOR = MAX_CACHE_SECONDS * SECOND
"""A positive verdict may be reused for 60 s, under a lease: section 3 of the wire contract."""
MAX_NEGATIVE_CACHE_FOR = MAX_NEGATIVE_CACHE_SECONDS * SECOND
"""A negative one for 1 s: a new key must not be refused for long because it was probed before."""


_STATE_OUTCOMES = {
    ApiKeyState.REVOKED: Outcome.REVOKED,
    ApiKeyState.EXPIRED: Outcome.EXPIRED,
    ApiKeyState.DISABLED: Outcome.DISABLED,
}
_REFUSALS = {
    Decision.ROLE_INSUFFICIENT: Outcome.ROLE_INSUFFICIENT,
    Decision.SCOPE_INSUFFICIENT: Outcome.SCOPE_INSUFFICIENT,
}

_OF_LIVE_KEYS = (Outcome.VALID, Outcome.ROLE_INSUFFICIENT, Outcome.SCOPE_INSUFFICIENT)


def outcome_at(
    record: TokenRecord, rule: AccessRule, now: Micros, context: Context = NO_CONTEXT
) -> Outcome:
    """Judge a key whose whole secret matched: state first, then role, then scopes.

    A deleted owner's keys are revoked in the transaction of the deletion; a row that is not is a
    denial all the same.
    """
    if record.owner_delete_time is not None:
        return Outcome.REVOKED
    state = key_state(record.revoke_time, record.expire_time, record.disable_time, now)
    if state is not _ACTIVE:
        return _STATE_OUTCOMES[state]
    if record.account_disable_time is not None:
        return Outcome.DISABLED
    scopes = record.scopes.split() if rule.scopes else ()
    decision = decide(rule, record.effective_role, scopes, context)
    return _VALID if decision is _ALLOWED else _REFUSALS[decision]


def cache_for_at(outcome: Outcome, valid_until: Micros | None, now: Micros) -> int:
    """Return for how long a verdict may be reused, in microseconds: never past its own end."""
    if outcome in _OF_LIVE_KEYS:
        # The outcomes other than VALID are about the question, and clients keep only the identity.
        limit = MAX_CACHE_FOR if outcome is _VALID else MAX_NEGATIVE_CACHE_FOR
        return limit if valid_until is None else max(0, min(limit, valid_until - now))
    return MAX_NEGATIVE_CACHE_FOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a proven identity, judged at one moment."""

    key_id: str
    """Empty for a person who signed in at a provider."""
    account_id: str
    owner_id: str
    owner_email: str
    role: Role
    """The effective role."""
    is_operator: bool
    """Whether the account is the operator account."""
    match: Match
    """The secret that was proven; of a session, the one that was signed in with."""
    session_id: str = ""
    """The session that calls; empty for a caller who proved a key."""
    auth_time: Micros | None = None
    """When the person behind the session last proved who they are; None without a session."""
