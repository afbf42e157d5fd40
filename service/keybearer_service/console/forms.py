"""Forms: from what was typed to what a use case takes. What was typed is kept as it is."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeVar

from keybearer._wire.enums import REASONS_OF_CALLERS, RevocationReason
from keybearer.access import Role
from keybearer_service.console import times
from keybearer_service.domain import validators
from keybearer_service.domain.clock import DAY
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import NEVER_EXPIRES, Expiration, NewKey

PERIODS: Final = {"30": 30, "90": 90, "365": 365}
"""Days that a key may live, by the value of the choice."""
MAX_ATTEMPT: Final = 1000
_FIELDS: Final = {
    "expire_time": "expires",
    "ttl": "expires",
    "expiration": "expires",
    "owner_id": "owner",
}
"""The fields of a form that are called otherwise than those of the use case."""
_ASK: Final = {
    "name": "Give the key a name of 1 to 100 characters.",
    "role": "Choose a role.",
    "expires": "Choose when the key expires.",
    "reason": "Choose a reason. It stands in the audit log.",
}
"""What is said of a field that was left empty."""


T = TypeVar("T")


class FormErrors(Exception):
    """What is wrong with a form, by its fields."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(", ".join(errors))
        self.errors = errors


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateForm:
    """The form for a new key, as it was typed."""

    name: str = ""
    description: str = ""
    role: str = ""
    scopes: str = ""
    expires: str = "90"
    expire_date: str = ""
    owner: str = ""
    """An e-mail address; empty for oneself."""
    labels: str = ""
    request_id: str
    attempt: str = "0"

    @classmethod
    def fresh(cls, entropy: Entropy) -> "CreateForm":
        """Return an empty form; whatever it is sent for is done once."""
        digits = bytearray(entropy.key_bytes(16))
        digits[6] = digits[6] & 0x0F | 0x40
        digits[8] = digits[8] & 0x3F | 0x80
        text = digits.hex()
        uuid = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        return cls(request_id=uuid)

    @classmethod
    def read(cls, form: Mapping[str, str]) -> "CreateForm":
        """Return what was typed."""
        typed = {one.name: form.get(one.name, "") for one in fields(cls)}
        # Browsers end the lines of a text with both characters.
        return cls(**{name: value.replace("\r\n", "\n") for name, value in typed.items()})

    @property
    def opens_more(self) -> bool:
        """Whether something was typed into the part that is closed at first."""
        return bool(self.owner or self.labels)

    @property
    def typed(self) -> Mapping[str, str]:
        """Every field but the attempt, to be sent once more."""
        return {name: value for name, value in asdict(self).items() if name != "attempt"}

    def new_key(self, owner_id: str) -> NewKey:
        """Return what the new key is to be.

        Args:
            owner_id: The user that `owner` names; empty for oneself.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        role = reading.take("role", lambda: _role(self.role)) or Role.UNSPECIFIED
        new: dict[str, Any] = {
            "name": reading.take("name", lambda: validators.name("name", self.name)),
            "description": reading.take(
                "description",
                lambda: validators.long_text("description", _one_line(self.description)),
            ),
            "labels": reading.take("labels", lambda: _labels(self.labels)),
            "scopes": reading.take(
                "scopes", lambda: validators.scopes("scopes", self.scopes.split(), role)
            ),
            "expiration": reading.take("expires", self._expiration),
        }
        if reading.errors:
            raise FormErrors(reading.errors)
        return NewKey(role=role, owner_id=owner_id, **new)

    def idempotency_key(self, account_id: str, owner_id: str) -> IdempotencyKey:
        """Return what identifies this form when it is sent again.

        Raises:
            FormErrors: The hidden fields are not as they were.
        """
        body = {**self.typed, "owner": owner_id, "account": account_id}
        del body["request_id"]
        digest = hashlib.sha256(b"console create\0" + json.dumps(body, sort_keys=True).encode())
        try:
            request_id = validators.request_id("request_id", self.request_id)
            attempt = int(self.attempt) if self.attempt.isascii() else -1
        except (FieldInvalid, ValueError):
            attempt = -1
        if not 0 <= attempt <= MAX_ATTEMPT:
            raise FormErrors({"": "This form cannot be sent again. Open a new one."})
        return IdempotencyKey(request_id, attempt, digest.digest())

    def _expiration(self) -> Expiration:
        if self.expires == "never":
            return NEVER_EXPIRES
        if self.expires == "date":
            end = times.end_of_day(self.expire_date)
            if end is None:
                raise FieldInvalid("expires", "a day is needed, such as 2030-12-31")
            return Expiration(at=end)
        if self.expires not in PERIODS:
            raise FieldInvalid("expires", "required")
        return Expiration(ttl=PERIODS[self.expires] * DAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeForm:
    """The form that revokes a key, as it was typed."""

    reason: str = ""
    note: str = ""

    @classmethod
    def read(cls, form: Mapping[str, str]) -> "RevokeForm":
        """Return what was typed."""
        return cls(reason=form.get("reason", ""), note=form.get("note", ""))

    def revocation(self) -> tuple[RevocationReason, str]:
        """Return the reason and the note.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        reason = reading.take("reason", lambda: _reason(self.reason))
        note = reading.take("note", lambda: validators.long_text("note", _one_line(self.note)))
        if reading.errors or reason is None or note is None:
            raise FormErrors(reading.errors)
        return reason, note


@dataclass(slots=True)
class _Reading:
    """Reads field by field, and goes on after one that is wrong."""

    errors: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, read: Callable[[], T]) -> T | None:
        """Return what a field holds; note its error, and return None, when it is wrong."""
        try:
            return read()
        except FieldInvalid as error:
            self.errors[name] = _sentence(name, error)
            return None


def errors_of(error: FieldInvalid) -> dict[str, str]:
    """Return the error of a use case, by the field of the form."""
    field_name = error.field.partition("[")[0]
    name = _FIELDS.get(field_name, field_name)
    return {name: _sentence(name, error)}


def _sentence(name: str, error: FieldInvalid) -> str:
    if error.description.startswith("required") and name in _ASK:
        return _ASK[name]
    text = error.description
    return f"{text[:1].upper()}{text[1:]}."


def _one_line(text: str) -> str:
    # The fields are as high as the text needs, and the text itself has no lines.
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _role(text: str) -> Role:
    return validators.role("role", Role.__members__.get(text, Role.UNSPECIFIED))


def _reason(text: str) -> RevocationReason:
    reason = RevocationReason.__members__.get(text)
    if reason not in REASONS_OF_CALLERS or reason is None:
        raise FieldInvalid("reason", "required")
    return reason


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = line.partition("=")
        if not equals:
            raise FieldInvalid("labels", "one label a line, such as team=platform")
        if name.strip() in labels:
            raise FieldInvalid("labels", f"{name.strip()!r} is there twice")
        labels[name.strip()] = value.strip()
    checked: dict[str, str] = validators.KEY_SETTINGS["labels"]("labels", labels)
    return checked
