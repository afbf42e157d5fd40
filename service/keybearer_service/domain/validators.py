"""What the fields of requests may hold. Errors name the field and say what would be right."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from keybearer._wire.limits import (
    MAX_EMAIL,
    MAX_FILTER,
    MAX_LABEL_KEY,
    MAX_LABEL_VALUE,
    MAX_LABELS,
    MAX_NAME,
    MAX_OVERLAP_DAYS,
    MAX_SCOPE_LENGTH,
    MAX_SCOPES,
    MAX_TEXT,
)
from keybearer.access import AccessRule, Role, is_held_scope, is_required_scope
from keybearer_service.domain.clock import DAY, Micros
from keybearer_service.domain.errors import FieldInvalid

MAX_OVERLAP = MAX_OVERLAP_DAYS * DAY

MAX_TIME = Micros(253_402_300_799_999_999)
"""The last microsecond of the year 9999, the greatest a Timestamp may hold."""

_EMAIL = re.compile(r"[!-?A-~]+@[!-?A-~]+", re.ASCII)
_LABEL_KEY = re.compile(r"([a-z0-9][a-z0-9_.-]*/)?[a-z0-9][a-z0-9_.-]*", re.ASCII)
_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def required_id(field: str, value: str) -> str:
    """Return an id that must be there. An ill-formed one is simply not found later."""
    if not value:
        raise FieldInvalid(field, "required")
    return value


def text(field: str, value: str, *, least: int, most: int) -> str:
    """Return a text for people, trimmed; every character of it must be visible.

    Raises:
        FieldInvalid: Too short, too long (in code points), or with control or bidi characters.
    """
    trimmed = value.strip()
    if len(trimmed) < least:
        raise FieldInvalid(field, f"required; {least} to {most} characters")
    if len(trimmed) > most:
        raise FieldInvalid(field, f"at most {most} characters; this has {len(trimmed)}")
    _assert_visible(field, trimmed)
    return trimmed


def name(field: str, value: str) -> str:
    """Return a name of 1 to 100 characters, trimmed."""
    return text(field, value, least=1, most=MAX_NAME)


def long_text(field: str, value: str) -> str:
    """Return a text of up to 1000 characters, trimmed; it may be empty."""
    return text(field, value, least=0, most=MAX_TEXT)


def contained(field: str, value: str) -> str:
    """Return a text to search for. Names hold no control characters, so a search may not either."""
    if len(value) > MAX_FILTER:
        raise FieldInvalid(field, f"at most {MAX_FILTER} characters")
    _assert_visible(field, value)
    return value


def email(field: str, value: str) -> str:
    """Return an e-mail address in lower case.

    Raises:
        FieldInvalid: Not ASCII, with blanks or controls, without an @, or too long.
    """
    if not value:
        raise FieldInvalid(field, "required")
    if len(value) > MAX_EMAIL:
        raise FieldInvalid(field, f"at most {MAX_EMAIL} characters")
    if _EMAIL.fullmatch(value) is None:
        raise FieldInvalid(field, "an address like name@example.com, in ASCII and without blanks")
    return value.lower()


def role(field: str, value: Role) -> Role:
    """Return a role that must be chosen."""
    if value is Role.UNSPECIFIED:
        raise FieldInvalid(field, "required: ROLE_VALIDATOR, ROLE_DEVELOPER or ROLE_ADMIN")
    return value


def scopes(field: str, values: Iterable[str], granted: Role) -> tuple[str, ...]:
    """Return the scopes of a key, each once, in the order given.

    Raises:
        FieldInvalid: Too many, ill-formed, or for a key that meets every scope anyway.
    """
    unique = tuple(dict.fromkeys(values))
    if unique and granted is Role.ADMIN:
        raise FieldInvalid(field, "an ADMIN key meets every scope and carries none")
    if len(unique) > MAX_SCOPES:
        raise FieldInvalid(field, f"at most {MAX_SCOPES}")
    for index, scope in enumerate(unique):
        if not is_held_scope(scope):
            raise FieldInvalid(
                f"{field}[{index}]",
                f"[a-z0-9][a-z0-9_.:-]* of at most {MAX_SCOPE_LENGTH} characters, "
                "or one that ends in `.*`, or `*`",
            )
    return unique


def requirement(prefix: str, required_role: Role, required_scopes: Sequence[str]) -> AccessRule:
    """Return the rule that a caller of ValidateToken judges the key by.

    Raises:
        FieldInvalid: A scope is ill-formed or has a wildcard, or there are too many.
    """
    if not required_scopes:
        return _RULES[required_role]
    unique = tuple(dict.fromkeys(required_scopes))
    field = f"{prefix}required_scopes"
    if len(unique) > MAX_SCOPES:
        raise FieldInvalid(field, f"at most {MAX_SCOPES}")
    for index, scope in enumerate(unique):
        if not is_required_scope(scope):
            raise FieldInvalid(
                f"{field}[{index}]",
                f"[a-z0-9][a-z0-9_.:-]* of at most {MAX_SCOPE_LENGTH} characters, no wildcard",
            )
    return AccessRule(role=required_role, scopes=unique)


def labels(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a key.

    Raises:
        FieldInvalid: Too many, or an ill-formed key or value.
    """
    if len(values) > MAX_LABELS:
        raise FieldInvalid(field, f"at most {MAX_LABELS}")
    for key, value in values.items():
        if len(key) > MAX_LABEL_KEY or _LABEL_KEY.fullmatch(key) is None:
            raise FieldInvalid(
                field,
                "keys are name or prefix/name of [a-z0-9][a-z0-9_.-]* and of at most "
                f"{MAX_LABEL_KEY} characters",
            )
        if len(value) > MAX_LABEL_VALUE:
            raise FieldInvalid(f"{field}[{key}]", f"at most {MAX_LABEL_VALUE} characters")
        _assert_visible(f"{field}[{key}]", value)
    return dict(values)


KEY_SETTINGS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": name,
    "description": long_text,
    "labels": labels,
}
"""How each plain field of a key is read, given its name in the request and its value."""


def future(field: str, value: Micros, now: Micros) -> Micros:
    """Return a moment that lies in the future and fits into a Timestamp."""
    if value <= now:
        raise FieldInvalid(field, "must be in the future")
    if value > MAX_TIME:
        raise FieldInvalid(field, "at most 9999-12-31T23:59:59Z; for ever is `never_expires`")
    return value


def overlap(field: str, value: int) -> int:
    """Return for how long an old secret stays valid, in microseconds."""
    if not 0 <= value <= MAX_OVERLAP:
        raise FieldInvalid(field, "0 to 30 days")
    return value


def request_id(field: str, value: str) -> str:
    """Return a UUID of the usual form in lower case."""
    lowered = value.lower()
    if _REQUEST_ID.fullmatch(lowered) is None:
        raise FieldInvalid(field, "a UUID like 123e4567-e89b-42d3-a456-426614174000")
    return lowered


def _assert_visible(field: str, value: str) -> None:
    if value.isascii() and value.isprintable():
        return
    for character in value:
        if character in _BIDI or unicodedata.category(character) in _UNSEEN_CATEGORIES:
            raise FieldInvalid(
                field, f"U+{ord(character):04X} is a control or bidi character; leave it out"
            )


_RULES = {one: AccessRule(role=one) for one in Role}
