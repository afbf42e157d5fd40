"""What every backend does alike beside its transactions: care for rows, bounds of uses."""

from collections.abc import Iterator, Sequence
from typing import Final

from keybearer_service.domain.clock import Micros
from keybearer_service.domain.identity import INVITATION_LIVES_FOR
from keybearer_service.domain.model import Use
from keybearer_service.storage import (
    CHANGES_KEPT,
    CHANGES_KEPT_FOR,
    MAX_USES,
    REQUESTS_KEPT_FOR,
    SESSIONS_KEPT_FOR,
    rows,
)
from keybearer_service.storage.transactions import Session

_TIMES: Final = range(253_402_300_800_000_000)
"""The moments a use can be of, 1970 to 9999; a time outside them would fail the whole batch."""
_SECRET_VERSIONS: Final = range(2**31)

_KEYS_OF_DELETED_USERS: Final = (
    "SELECT k.id, u.id FROM users u JOIN api_keys k ON k.owner_id = u.id"
    " WHERE u.delete_time IS NOT NULL AND k.revoke_time IS NULL"
)
_WRONG_COUNTS: Final = (
    "SELECT id, counted, found FROM (SELECT a.id, coalesce(c.unrevoked, 0) AS counted,"
    " (SELECT count(*) FROM api_keys k WHERE k.account_id = a.id AND k.revoke_time IS NULL)"
    " AS found FROM accounts a LEFT JOIN key_counts c ON c.account_id = a.id) AS counts"
    " WHERE counted <> found"
)


def storable_uses(uses: Sequence[Use]) -> list[Use]:
    """Return the uses that can be stored, with counts from 1 to MAX_USES."""
    return [
        use._replace(uses=min(max(use.uses, 1), MAX_USES))
        for use in uses
        if use.last_used_time in _TIMES and use.secret_version in _SECRET_VERSIONS
    ]


def pruned(session: Session, now: Micros, limit: int) -> int:
    """Delete what nobody may ask for any more, as `Store.prune`; return how many rows that were."""
    requests = session.run(
        "DELETE FROM request_records WHERE (user_id, request_id) IN"
        " (SELECT user_id, request_id FROM request_records WHERE create_time < ?"
        " ORDER BY create_time LIMIT ?)",
        now - REQUESTS_KEPT_FOR,
        limit,
    )
    sessions = session.run(
        "DELETE FROM sessions WHERE id IN"
        " (SELECT id FROM sessions WHERE create_time < ? ORDER BY create_time LIMIT ?)",
        now - SESSIONS_KEPT_FOR,
        limit,
    )
    invitations = session.run(
        "DELETE FROM invitations WHERE id IN"
        " (SELECT id FROM invitations WHERE create_time < ? ORDER BY create_time LIMIT ?)",
        now - INVITATION_LIVES_FOR,
        limit,
    )
    used = session.run(
        "DELETE FROM used_values WHERE (kind, value) IN"
        " (SELECT kind, value FROM used_values WHERE until <= ? ORDER BY until LIMIT ?)",
        now,
        limit,
    )
    sign_ins = sessions + invitations + used
    return requests + sign_ins + _pruned_changes(session, now, limit)


def _pruned_changes(session: Session, now: Micros, limit: int) -> int:
    head, oldest = _row(
        session, "SELECT (SELECT revision FROM installation), (SELECT min(revision) FROM changes)"
    )
    if head is None or oldest is None:
        return 0
    last = min(head - CHANGES_KEPT, oldest + limit - 1)
    # Whatever a clock that stepped back has written: the changes that stay are without gaps.
    (kept,) = _row(
        session,
        "SELECT min(revision) FROM changes WHERE revision <= ? AND time >= ?",
        last,
        now - CHANGES_KEPT_FOR,
    )
    return session.run(
        "DELETE FROM changes WHERE revision <= ?", last if kept is None else kept - 1
    )


def dangling_row(*, table: str, target: str) -> str:
    """Return the finding of a row that points to a missing one."""
    return f"a row of {table} points to a missing row of {target}"


def planted_object(kind: str, name: str) -> str:
    """Return the finding of a trigger or a view that is not of the schema."""
    return f"the {kind} {name} is not of keybearer"


def contradictions(session: Session) -> Iterator[str]:
    """Yield a sentence for each contradiction between rows that a backend does not find itself."""
    installation = session.one("SELECT revision FROM installation")
    count, oldest, newest = _row(
        session, "SELECT count(*), min(revision), max(revision) FROM changes"
    )
    if count and count != newest - oldest + 1:
        yield f"changes are missing between the revisions {oldest} and {newest}"
    elif count and oldest > 1 and count < CHANGES_KEPT:
        yield f"changes before the revision {oldest} are missing"
    if installation is not None and installation[0] != (newest or 0):
        yield f"the revision is {installation[0]} and the newest change is {newest or 0}"
    count, first, last = _row(session, "SELECT count(*), min(seq), max(seq) FROM audit_events")
    if count and count != last - first + 1:
        yield f"audit events are missing between {first} and {last}"
    for account_id, counted, found in session.all(_WRONG_COUNTS):
        yield f"the account {account_id} has {found} unrevoked keys and a count of {counted}"
    for key_id, user_id in session.all(_KEYS_OF_DELETED_USERS):
        yield f"key {key_id} is not revoked, and its owner {user_id} is deleted"


def _row(session: Session, sql: str, *values: object) -> rows.Row:
    """Return the row of a statement that has exactly one."""
    return session.all(sql, *values)[0]
