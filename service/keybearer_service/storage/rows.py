"""Rows to models and back. Columns are named here alone, and read by position."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from keybearer._wire.enums import RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.domain.audit_digests import AuditBase, BaseRow, CoveredRow, Head
from keybearer_service.domain.audit_event import AuditRecord, PersonalText
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.identity import Identity, Invitation
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Installation,
    Invalidation,
    Pepper,
    RequestRecord,
    StoredSecret,
    SubjectKind,
    User,
)
from keybearer_service.domain.session import Session
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import StoreDamagedError

Row = Sequence[Any]
Columns = dict[str, Any]
Model = TypeVar("Model")


def _of_what_was_written(read: Callable[[Row], Model]) -> Callable[[Row], Model]:
    """Have a function that reads a row raise StoreDamagedError for one that was never written."""

    @wraps(read)
    def checked(row: Row) -> Model:
        try:
            return read(row)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = read.__name__.removesuffix("_from_row").replace("_", " ")
            raise StoreDamagedError(f"a row ({what}) cannot be read") from error

    return checked


INSTALLATION = "epoch, revision, prefix, retired_prefixes, operator_account_id, create_time"
ACCOUNT = "id, name, create_time, disable_time, is_operator, row_version"
USER = (
    "id, account_id, email, display_name, role, type, create_time, update_time, delete_time,"
    " row_version"
)
_JOINED_FIELDS = {"owner_email": "o.email", "owner_role": "o.role", "created_by_email": "c.email"}
"""Fields of a key that are read from other tables."""
_KEY_FIELDS = tuple(one.name for one in fields(ApiKey))
_FIXED_FIELDS = frozenset({"id", "account_id", "owner_id", "create_time", "created_by"})
_SECRET_FIELDS = frozenset({"secret_version", "secret_create_time", "secret_used"})
_USAGE_FIELDS = frozenset({"last_used_time", "use_count", "old_secret_last_used_time"})
_ADMINISTRATIVE_FIELDS = tuple(
    name
    for name in _KEY_FIELDS
    if name not in _FIXED_FIELDS | _SECRET_FIELDS | _USAGE_FIELDS | _JOINED_FIELDS.keys()
)
API_KEY = ", ".join(_JOINED_FIELDS.get(name, f"k.{name}") for name in _KEY_FIELDS)
"""In the order of the fields of ApiKey."""
TOKEN_RECORD = (
    "k.id, k.account_id, k.owner_id, k.name, k.role, k.scopes, k.labels, k.expire_time,"
    " k.disable_time, k.revoke_time, k.secret_version, k.secret_used, k.secret_create_time,"
    " k.digest, k.pepper_id, k.old_digest, k.old_pepper_id, k.old_secret_version,"
    " k.overlap_end_time, u.role, u.email, u.type, u.delete_time, a.disable_time, a.is_operator"
)
"""In the order of the fields of TokenRecord."""
TOKEN_RECORD_SOURCE = (
    "api_keys k JOIN users u ON u.id = k.owner_id JOIN accounts a ON a.id = k.account_id"
)
PERSON = "u.account_id, u.id, u.role, u.email, u.type, u.delete_time, a.disable_time, a.is_operator"
"""In the order in which `person_record` reads them."""
OLD_SECRET = ("old_digest", "old_pepper_id", "old_secret_version", "overlap_end_time")
"""What is erased once an old secret is dead."""
PEPPER = "id, check_value, create_time, retire_time, is_announced"
INVALIDATION = "c.revision, c.time, c.account_id, c.kind, c.subject_id"
AUDIT_EVENT = ", ".join(AuditRecord._fields)
"""In the order of the fields of AuditRecord."""
HEAD = ", ".join(Head._fields)
"""In the order of the fields of Head."""
BASE = ", ".join(AuditBase._fields)
"""In the order of the fields of AuditBase."""
BASE_ROW = ", ".join(BaseRow._fields)
"""In the order of the fields of BaseRow."""
PERSONAL_TEXT = ", ".join(PersonalText._fields)
"""In the order of the fields of PersonalText."""
_SESSION_FIELDS = tuple(one.name for one in fields(Session))
SESSION = ", ".join(_SESSION_FIELDS)
"""In the order of the fields of Session."""
_IDENTITY_FIELDS = tuple(one.name for one in fields(Identity))
IDENTITY = ", ".join(_IDENTITY_FIELDS)
"""In the order of the fields of Identity."""
_INVITATION_FIELDS = tuple(one.name for one in fields(Invitation))
INVITATION = ", ".join(_INVITATION_FIELDS)
"""In the order of the fields of Invitation."""
COVERED: Mapping[str, tuple[str, ...]] = {
    "installation": (
        "epoch",
        "prefix",
        "retired_prefixes",
        "operator_account_id",
        "create_time",
    ),
    "peppers": ("id", "check_value", "create_time", "retire_time"),
    "accounts": tuple(ACCOUNT.split(", ")),
    "users": tuple(USER.split(", ")),
    "api_keys": (
        *(
            name
            for name in _KEY_FIELDS
            if name not in _USAGE_FIELDS | _JOINED_FIELDS.keys() | {"secret_used"}
        ),
        "digest",
        "pepper_id",
        "old_digest",
        "old_pepper_id",
        "old_secret_version",
    ),
}
"""The columns of each table that the digest of a row covers: all but what counts uses, but the
revision, which the head holds, and but whether a pepper is announced, which grants nothing."""


OWNER_AND_CREATOR = "JOIN users o ON o.id = k.owner_id JOIN users c ON c.id = k.created_by"


def api_key_source(keys: str) -> str:
    """Return what the columns API_KEY are read from.

    Args:
        keys: What stands for the keys in FROM, as `k`.
    """
    return f"{keys} {OWNER_AND_CREATOR}"


@_of_what_was_written
def installation_from_row(row: Row) -> Installation:
    """Read the columns INSTALLATION."""
    return Installation(
        epoch=row[0],
        revision=row[1],
        prefix=row[2],
        retired_prefixes=tuple(row[3].split()),
        operator_account_id=row[4],
        create_time=row[5],
    )


def row_from_installation(installation: Installation) -> Columns:
    """Return the installation's row."""
    return {
        "id": 1,
        "epoch": installation.epoch,
        "revision": installation.revision,
        "prefix": installation.prefix,
        "retired_prefixes": " ".join(installation.retired_prefixes),
        "operator_account_id": installation.operator_account_id,
        "create_time": installation.create_time,
    }


@_of_what_was_written
def account_from_row(row: Row) -> Account:
    """Read the columns ACCOUNT."""
    return Account(
        id=row[0],
        name=row[1],
        create_time=row[2],
        disable_time=row[3],
        is_operator=bool(row[4]),
        row_version=row[5],
    )


def changeable_account_columns(account: Account) -> Columns:
    """Return what may change of an account."""
    return {
        "name": account.name,
        "disable_time": account.disable_time,
        "row_version": account.row_version,
    }


def row_from_account(account: Account) -> Columns:
    """Return an account's row."""
    return {
        "id": account.id,
        "create_time": account.create_time,
        "is_operator": int(account.is_operator),
        **changeable_account_columns(account),
    }


@_of_what_was_written
def user_from_row(row: Row) -> User:
    """Read the columns USER."""
    return User(
        id=row[0],
        account_id=row[1],
        email=row[2],
        display_name=row[3],
        role=Role(row[4]),
        type=UserType(row[5]),
        create_time=row[6],
        update_time=row[7],
        delete_time=row[8],
        row_version=row[9],
    )


def changeable_user_columns(user: User) -> Columns:
    """Return what may change of a user."""
    return {
        "display_name": user.display_name,
        "role": int(user.role),
        "update_time": user.update_time,
        "delete_time": user.delete_time,
        "row_version": user.row_version,
    }


def row_from_user(user: User) -> Columns:
    """Return a user's row."""
    return {
        "id": user.id,
        "account_id": user.account_id,
        "email": user.email,
        "type": int(user.type),
        "create_time": user.create_time,
        **changeable_user_columns(user),
    }


def labels_from_text(text: str) -> dict[str, str]:
    """Read the labels column: a JSON object, or nothing."""
    return json.loads(text) if text else {}


def text_from_labels(labels: Mapping[str, str]) -> str:
    """Return the labels column; its keys are in order, so that equal labels are equal text."""
    return json.dumps(labels, sort_keys=True, separators=(",", ":")) if labels else ""


_READ_FIELD: Mapping[str, Callable[[Any], Any]] = {
    "role": Role,
    "scopes": lambda text: tuple(text.split()),
    "labels": labels_from_text,
    "revocation_reason": lambda number: None if number is None else RevocationReason(number),
    "secret_used": bool,
    "owner_role": Role,
}
_WRITE_FIELD: Mapping[str, Callable[[Any], Any]] = {
    "role": int,
    "scopes": " ".join,
    "labels": text_from_labels,
}
"""Fields of a key that are not stored as they are."""


@_of_what_was_written
def api_key_from_row(row: Row) -> ApiKey:
    """Read the columns API_KEY."""
    values = dict(zip(_KEY_FIELDS, row, strict=True))
    for name, read in _READ_FIELD.items():
        values[name] = read(values[name])
    return ApiKey(**values)


def administrative_columns(key: ApiKey) -> Columns:
    """Return what an administrator may change of a key: no usage and no secret."""
    columns = {name: getattr(key, name) for name in _ADMINISTRATIVE_FIELDS}
    return {**columns, **{name: write(columns[name]) for name, write in _WRITE_FIELD.items()}}


def secret_columns(key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> Columns:
    """Return the secrets of a key and what goes with them."""
    return {
        "secret_version": key.secret_version,
        "secret_create_time": key.secret_create_time,
        "secret_used": int(key.secret_used),
        "digest": current.digest,
        "pepper_id": current.pepper_id,
        "old_digest": None if old is None else old.digest,
        "old_pepper_id": None if old is None else old.pepper_id,
        "old_secret_version": None if old is None else old.version,
        "overlap_end_time": key.overlap_end_time,
        "old_secret_last_used_time": key.old_secret_last_used_time,
        "update_time": key.update_time,
        "row_version": key.row_version,
    }


def row_from_new_api_key(key: ApiKey, secret: StoredSecret) -> Columns:
    """Return the row of a key that was just created."""
    return {
        **{name: getattr(key, name) for name in _FIXED_FIELDS},
        **administrative_columns(key),
        **secret_columns(key, secret, None),
    }


@_of_what_was_written
def pepper_from_row(row: Row) -> Pepper:
    """Read the columns PEPPER."""
    return Pepper(
        id=row[0], check=row[1], create_time=row[2], retire_time=row[3], is_announced=bool(row[4])
    )


def row_from_pepper(pepper: Pepper) -> Columns:
    """Return a pepper's row."""
    return {
        "id": pepper.id,
        "check_value": pepper.check,
        "create_time": pepper.create_time,
        "retire_time": pepper.retire_time,
        "is_announced": int(pepper.is_announced),
    }


@_of_what_was_written
def request_record_from_row(row: Row) -> RequestRecord:
    """Read all columns of request_records."""
    return RequestRecord(
        user_id=row[0],
        request_id=row[1],
        body_hash=row[2],
        attempt=row[3],
        key_id=row[4],
        secret_version=row[5],
        create_time=row[6],
    )


def row_from_request_record(record: RequestRecord) -> Columns:
    """Return a request's row."""
    return {
        "user_id": record.user_id,
        "request_id": record.request_id,
        "body_hash": record.body_hash,
        "attempt": record.attempt,
        "key_id": record.key_id,
        "secret_version": record.secret_version,
        "create_time": record.create_time,
    }


@_of_what_was_written
def invalidation_from_row(row: Row) -> Invalidation:
    """Read the columns INVALIDATION."""
    return Invalidation(row[0], row[1], row[2], SubjectKind(row[3]), row[4])


def row_from_invalidation(change: Invalidation) -> Columns:
    """Return a row of changes."""
    return {
        "revision": change.revision,
        "time": change.time,
        "account_id": change.account_id,
        "kind": int(change.kind),
        "subject_id": change.subject_id,
    }


@_of_what_was_written
def audit_record_from_row(row: Row) -> AuditRecord:
    """Read the columns AUDIT_EVENT."""
    return AuditRecord._make(row)


def row_from_audit_record(record: AuditRecord) -> Columns:
    """Return an event's row."""
    return record._asdict()


@_of_what_was_written
def head_from_row(row: Row) -> Head:
    """Read the columns HEAD."""
    return Head._make(row)


def row_from_head(head: Head) -> Columns:
    """Return the row of the head."""
    return {"id": 1, **head._asdict()}


def row_from_base(base: AuditBase) -> Columns:
    """Return the row of the base."""
    return {"id": 1, **base._asdict()}


@_of_what_was_written
def personal_text_from_row(row: Row) -> PersonalText:
    """Read the columns PERSONAL_TEXT."""
    return PersonalText._make(row)


def row_from_personal_text(text: PersonalText) -> Columns:
    """Return the row of a personal text."""
    return text._asdict()


def covered_row(table: str, row: Row) -> CoveredRow:
    """Read the columns COVERED of a table."""
    return CoveredRow(table, dict(zip(COVERED[table], row, strict=True)))


@_of_what_was_written
def session_from_row(row: Row) -> Session:
    """Read the columns SESSION."""
    return Session(**dict(zip(_SESSION_FIELDS, row, strict=True)))


def row_from_session(session: Session) -> Columns:
    """Return a session's row."""
    return {name: getattr(session, name) for name in _SESSION_FIELDS}


@_of_what_was_written
def identity_from_row(row: Row) -> Identity:
    """Read the columns IDENTITY."""
    return Identity(**dict(zip(_IDENTITY_FIELDS, row, strict=True)))


def row_from_identity(identity: Identity) -> Columns:
    """Return an identity's row."""
    return {name: getattr(identity, name) for name in _IDENTITY_FIELDS}


@_of_what_was_written
def invitation_from_row(row: Row) -> Invitation:
    """Read the columns INVITATION."""
    return Invitation(**dict(zip(_INVITATION_FIELDS, row, strict=True)))


def row_from_invitation(invitation: Invitation) -> Columns:
    """Return an invitation's row."""
    return {name: getattr(invitation, name) for name in _INVITATION_FIELDS}


def person_record(row: Row) -> TokenRecord:
    """Return the record of a user who acts without a key, from the columns PERSON."""
    account_id, owner_id, role, email, kind, delete_time, disable_time, is_operator = row
    return TokenRecord(
        key_id="",
        account_id=account_id,
        owner_id=owner_id,
        key_name="",
        role=Role.ADMIN.value,
        scopes="",
        labels="",
        expire_time=None,
        disable_time=None,
        revoke_time=None,
        secret_version=0,
        secret_used=1,
        secret_create_time=Micros(0),
        digest=b"",
        pepper_id="",
        old_digest=None,
        old_pepper_id=None,
        old_secret_version=None,
        overlap_end_time=None,
        owner_role=role,
        owner_email=email,
        owner_type=kind,
        owner_delete_time=delete_time,
        account_disable_time=disable_time,
        account_is_operator=is_operator,
    )
