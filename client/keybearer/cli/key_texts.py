"""What commands say about keys."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from keybearer.access import Role
from keybearer.cli import output
from keybearer.cli.inputs import word
from keybearer.cli.output import moment_text
from keybearer.models import ApiKey, ApiKeyState

MAX_NAMED = 20
"""How many keys a warning names; further ones are counted."""


def facts_of(key: ApiKey) -> list[tuple[str, str]]:
    """Return everything about a key, for people."""
    role = word(key.role)
    if key.effective_role < key.role:
        role += f", effective {word(key.effective_role)}: the owner's role is lower"
    revocation = ""
    if key.revoke_time is not None:
        by = key.revoked_by or "its holder"
        revocation = f"{moment_text(key.revoke_time)}, {word(key.revocation_reason)}, by {by}"
    return [
        ("name", key.name),
        ("id", key.id),
        ("state", word(key.state)),
        ("description", key.description),
        ("owner", output.person_text(key.owner_email, key.owner_id)),
        ("creator", output.person_text(key.created_by_email, key.created_by)),
        ("role", role),
        ("scopes", ", ".join(key.scopes) or ("all" if key.role is Role.ADMIN else "none")),
        ("labels", output.pairs_text(key.labels)),
        ("created", moment_text(key.create_time)),
        ("updated", moment_text(key.update_time)),
        ("last used", moment_text(key.last_used_time)),
        ("uses", f"about {key.use_count:,}" if key.use_count else "none"),
        ("expires", moment_text(key.expire_time)),
        ("secret", f"the {_ordinal(key.secret_version)}"),
        ("old secret", _old_secret_text(key)),
        ("disabled", moment_text(key.disable_time, "")),
        ("revoked", revocation),
        ("note", key.revocation_note),
        ("account", key.account_id),
        ("etag", key.etag),
    ]


def count_text(count: int) -> str:
    """Return a number of keys, for people."""
    return "1 key" if count == 1 else f"{count:,} keys"


def lines_of(keys: Iterable[ApiKey], count: int) -> Iterator[str]:
    """Yield what matters before keys are revoked.

    Args:
        keys: The first of them, MAX_NAMED at most.
        count: How many there are.
    """
    for key in keys:
        yield f"  {line_of(key)}"
    if count > MAX_NAMED:
        yield f"  and {count - MAX_NAMED:,} more"


def line_of(key: ApiKey) -> str:
    """Return what matters before a key is revoked, on one line."""
    used = "never used"
    if key.last_used_time is not None:
        ago = output.distance(key.last_used_time, datetime.now(UTC))
        used = f"last used {key.last_used_time:%Y-%m-%d %H:%M} UTC ({ago}), "
        used += f"about {key.use_count:,} uses"
    owner = key.owner_email or key.owner_id
    state = "" if key.state is ApiKeyState.ACTIVE else f"{word(key.state)}, "
    return f"{key.name} ({key.id}): {state}owner {owner}, {used}"


def summary(key: ApiKey) -> str:
    """Return what matters about a key that has a new secret."""
    wanted = {"name", "id", "state", "owner", "role", "scopes", "labels", "expires", "old secret"}
    return output.facts_text([fact for fact in facts_of(key) if fact[0] in wanted])


def named(key: ApiKey) -> str:
    """Return the name of a key, and its id."""
    return output.visible(f"{key.name} ({key.id})")


def revoked_text(before: ApiKey, after: ApiKey) -> str:
    """Return what became of a key that was to be revoked."""
    if before.state is ApiKeyState.REVOKED:
        reason = word(after.revocation_reason)
        return f"{named(after)} was revoked already, {moment_text(after.revoke_time)}, {reason}."
    return f"Revoked {named(after)}."


def _old_secret_text(key: ApiKey) -> str:
    if key.overlap_end_time is None:
        return ""
    used = "not used since the rotation"
    if key.old_secret_last_used_time is not None:
        used = f"last used {moment_text(key.old_secret_last_used_time)}"
    return f"accepted until {moment_text(key.overlap_end_time)}, {used}"


def _ordinal(number: int) -> str:
    if number % 100 in {11, 12, 13}:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
