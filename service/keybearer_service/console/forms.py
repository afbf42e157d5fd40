"""Forms: from what was typed to what a use case takes. What was typed is kept as it is."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self, TypeVar

from keybearer._wire.enums import REASONS_OF_CALLERS, RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.console import times
from keybearer_service.console.problems import sentence
from keybearer_service.domain import validators
from keybearer_service.domain.clock import DAY, HOUR
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import ApiKey, User
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import NEVER_EXPIRES, Expiration, NewKey
from keybearer_service.usecases.keys import KeyUpdate
from keybearer_service.usecases.users import NewUser, UserUpdate

PERIODS: Final = {"30": 30, "90": 90, "365": 365}
"""Days that a key may live, by the value of the choice."""
OVERLAPS: Final = {
    "0": ("It stops working now", 0),
    "1h": ("It works for one more hour", HOUR),
    "1d": ("It works for one more day", DAY),
    "7d": ("It works for 7 more days", 7 * DAY),
    "30d": ("It works for 30 more days", 30 * DAY),
}
"""What becomes of the old secret of a rotation: the words, and for how long it lives on."""
KEEP: Final = "keep"
"""The choice that leaves the expiry of a key as it is."""
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
    "email": "Type an e-mail address.",
    "display_name": "Type a name of 1 to 100 characters.",
    "type": "Choose what it is.",
    "overlap": "Choose what becomes of the old secret.",
}
"""What is said of a field that was left empty."""


T = TypeVar("T")


class FormErrors(Exception):
    """What is wrong with a form, by its fields."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(", ".join(errors))
        self.errors = errors


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedForm:
    """A form, as it was typed."""

    @classmethod
    def read(cls, form: Mapping[str, str]) -> Self:
        """Return what was typed."""
        typed = {one.name: form.get(one.name, "") for one in fields(cls)}
        # Browsers end the lines of a text with both characters.
        return cls(**{name: value.replace("\r\n", "\n") for name, value in typed.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceForm(TypedForm):
    """A form that is carried out once, however often it is sent."""

    request_id: str
    attempt: str = "0"

    @classmethod
    def fresh(cls, entropy: Entropy) -> Self:
        """Return an empty form."""
        digits = bytearray(entropy.key_bytes(16))
        digits[6] = digits[6] & 0x0F | 0x40
        digits[8] = digits[8] & 0x3F | 0x80
        text = digits.hex()
        uuid = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        return cls(request_id=uuid)

    @property
    def typed(self) -> Mapping[str, str]:
        """Every field but the attempt, to be sent once more."""
        return {name: value for name, value in asdict(self).items() if name != "attempt"}

    def _idempotency_key(self, kind: str, also: Mapping[str, str]) -> IdempotencyKey:
        """Return what identifies this form when it is sent again.

        Args:
            kind: What the form is for.
            also: What it means beside its fields, or instead of one of them.

        Raises:
            FormErrors: The hidden fields are not as they were.
        """
        body = {**self.typed, **also}
        del body["request_id"]
        text = json.dumps(body, sort_keys=True)
        digest = hashlib.sha256(f"console {kind}\0{text}".encode())
        try:
            request_id = validators.request_id("request_id", self.request_id)
            attempt = int(self.attempt) if self.attempt.isascii() else -1
        except (FieldInvalid, ValueError):
            attempt = -1
        if not 0 <= attempt <= MAX_ATTEMPT:
            raise FormErrors({"": "This form cannot be sent again. Open a new one."})
        return IdempotencyKey(request_id, attempt, digest.digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateForm(OnceForm):
    """The form for a new key."""

    name: str = ""
    description: str = ""
    role: str = ""
    scopes: str = ""
    expires: str = "90"
    expire_date: str = ""
    owner: str = ""
    """An e-mail address; empty for oneself."""
    labels: str = ""

    @property
    def opens_more(self) -> bool:
        """Whether something was typed into the part that is closed at first."""
        return bool(self.owner or self.labels)

    def new_key(self, owner_id: str) -> NewKey:
        """Return what the new key is to be.

        Args:
            owner_id: The user that `owner` names; empty for oneself.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        role = reading.take("role", lambda: _role(self.role)) or Role.UNSPECIFIED
        settings = _settings(reading, self.name, self.description, self.labels)
        scopes = reading.take("scopes", lambda: _scopes(self.scopes, role)) or ()
        expiration = reading.take("expires", lambda: _expiration(self.expires, self.expire_date))
        if reading.errors or expiration is None:
            raise FormErrors(reading.errors)
        return NewKey(
            role=role, owner_id=owner_id, scopes=scopes, expiration=expiration, **settings
        )

    def idempotency_key(self, account_id: str, owner_id: str) -> IdempotencyKey:
        """Return what identifies this form when it is sent again.

        Raises:
            FormErrors: The hidden fields are not as they were.
        """
        return self._idempotency_key("create", {"owner": owner_id, "account": account_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class EditForm(TypedForm):
    """The form that changes a key."""

    name: str = ""
    description: str = ""
    role: str = ""
    scopes: str = ""
    expires: str = KEEP
    expire_date: str = ""
    labels: str = ""
    etag: str = ""
    """Of the key as it was when the form was shown."""

    @classmethod
    def of(cls, key: ApiKey) -> "EditForm":
        """Return the form with a key as it is."""
        return cls(
            name=key.name,
            description=key.description,
            role=key.role.name,
            scopes=" ".join(key.scopes),
            labels=labels_text(key.labels),
            etag=key.etag,
        )

    def update(self) -> KeyUpdate:
        """Return what the key is to be.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        role = reading.take("role", lambda: _role(self.role)) or Role.UNSPECIFIED
        settings = _settings(reading, self.name, self.description, self.labels)
        scopes = reading.take("scopes", lambda: _scopes(self.scopes, role)) or ()
        expiration = None
        if self.expires != KEEP:
            expiration = reading.take(
                "expires", lambda: _expiration(self.expires, self.expire_date)
            )
        if reading.errors:
            raise FormErrors(reading.errors)
        paths = {*settings, "role", "scopes"} | ({"expiration"} if expiration else set())
        return KeyUpdate(
            paths=frozenset(paths),
            settings=settings,
            scopes=scopes,
            role=role,
            expiration=expiration,
            etag=self.etag,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateForm(OnceForm):
    """The form that gives a key a new secret."""

    overlap: str = ""

    def overlap_micros(self) -> int:
        """Return for how long the old secret lives on.

        Raises:
            FormErrors: Nothing was chosen.
        """
        if self.overlap not in OVERLAPS:
            raise FormErrors({"overlap": _ASK["overlap"]})
        return OVERLAPS[self.overlap][1]

    def idempotency_key(self, key_id: str) -> IdempotencyKey:
        """Return what identifies this form when it is sent again.

        Raises:
            FormErrors: The hidden fields are not as they were.
        """
        return self._idempotency_key("rotate", {"key": key_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUserForm(TypedForm):
    """The form for a new user."""

    email: str = ""
    display_name: str = ""
    role: str = ""
    type: str = ""

    def new_user(self) -> NewUser:
        """Return what the new user is to be.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        email = reading.take("email", lambda: validators.email("email", self.email.strip()))
        name = reading.take(
            "display_name", lambda: validators.name("display_name", self.display_name)
        )
        role = reading.take("role", lambda: _role(self.role))
        kind = reading.take("type", lambda: _type(self.type))
        if email is None or name is None or role is None or kind is None:
            raise FormErrors(reading.errors)
        return NewUser(email=email, display_name=name, role=role, type=kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditUserForm(TypedForm):
    """The form that changes a user."""

    display_name: str = ""
    role: str = ""
    etag: str = ""
    """Of the user as they were when the form was shown."""

    @classmethod
    def of(cls, user: User) -> "EditUserForm":
        """Return the form with a user as they are."""
        return cls(display_name=user.display_name, role=user.role.name, etag=user.etag)

    def update(self) -> UserUpdate:
        """Return what the user is to be.

        Raises:
            FormErrors: Fields are wrong; all of them are named.
        """
        reading = _Reading()
        name = reading.take(
            "display_name", lambda: validators.name("display_name", self.display_name)
        )
        role = reading.take("role", lambda: _role(self.role))
        if name is None or role is None:
            raise FormErrors(reading.errors)
        paths = frozenset({"display_name", "role"})
        return UserUpdate(paths=paths, display_name=name, role=role, etag=self.etag)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeForm(TypedForm):
    """The form that revokes a key."""

    reason: str = ""
    note: str = ""

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


def labels_text(labels: Mapping[str, str]) -> str:
    """Return labels as they are typed, in the order of their names."""
    return "\n".join(f"{name}={labels[name]}" for name in sorted(labels))


def errors_of(error: FieldInvalid) -> dict[str, str]:
    """Return the error of a use case, by the field of the form."""
    field_name = error.field.partition("[")[0]
    name = _FIELDS.get(field_name, field_name)
    return {name: _sentence(name, error)}


def _sentence(name: str, error: FieldInvalid) -> str:
    if error.description.startswith("required") and name in _ASK:
        return _ASK[name]
    return sentence(error.description)


def _one_line(text: str) -> str:
    # The fields are as high as the text needs, and the text itself has no lines.
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _role(text: str) -> Role:
    return validators.role("role", Role.__members__.get(text, Role.UNSPECIFIED))


def _type(text: str) -> UserType:
    kind = UserType.__members__.get(text, UserType.UNSPECIFIED)
    if kind is UserType.UNSPECIFIED:
        raise FieldInvalid("type", "required")
    return kind


def _scopes(text: str, role: Role) -> tuple[str, ...]:
    return validators.scopes("scopes", text.split(), role)


def _settings(reading: _Reading, name: str, description: str, labels: str) -> dict[str, Any]:
    return {
        "name": reading.take("name", lambda: validators.name("name", name)),
        "description": reading.take(
            "description", lambda: validators.long_text("description", _one_line(description))
        ),
        "labels": reading.take("labels", lambda: _labels(labels)),
    }


def _expiration(expires: str, date: str) -> Expiration:
    if expires == "never":
        return NEVER_EXPIRES
    if expires == "date":
        end = times.end_of_day(date)
        if end is None:
            raise FieldInvalid("expires", "a day is needed, such as 2030-12-31")
        return Expiration(at=end)
    if expires not in PERIODS:
        raise FieldInvalid("expires", "required")
    return Expiration(ttl=PERIODS[expires] * DAY)


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
