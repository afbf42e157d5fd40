"""Proto <-> model: the only bridge. Reading refuses what the model cannot hold."""

import hashlib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Protocol, TypedDict, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keybearer.access import Role
from keybearer.v1 import (
    account_pb2,
    account_service_pb2,
    api_key_pb2,
    api_key_service_pb2,
    audit_event_pb2,
    audit_service_pb2,
    token_service_pb2,
    user_pb2,
    user_service_pb2,
)
from keybearer_service.domain import validators
from keybearer_service.domain.audit_event import Action, AuditEvent
from keybearer_service.domain.clock import DAY, SECOND, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import (
    ANY_ACCOUNT,
    Account,
    ApiKey,
    Invalidation,
    KeyState,
    RevocationReason,
    SubjectKind,
    User,
    UserType,
)
from keybearer_service.domain.verdict import Caller, Outcome, TokenRecord, Verdict
from keybearer_service.storage import AccountQuery, AuditQuery, KeyQuery, UserQuery
from keybearer_service.storage.rows import labels_from_text
from keybearer_service.usecases import keys, users
from keybearer_service.usecases.accounts import NewAccount
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import NEVER_EXPIRES, Expiration, IssuedKey, NewKey
from keybearer_service.usecases.keys import KeyUpdate
from keybearer_service.usecases.users import Deletion, NewUser, UserUpdate
from keybearer_service.validation.validator import Question
from keybearer_service.watch.messages import Hello, Incoming, Outgoing, Ping, Pong, Reset, Subscribe
from keybearer_service.watch.usage_reports import UsageItem, UsageReport

MAX_BATCH = 100
EXPIRES_SOON = 30 * DAY
NANOS = 10**9
MIN_SECONDS = -62_135_596_800
MAX_SECONDS = 253_402_300_799
"""0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the range of a Timestamp, by its definition."""
MAX_SPAN = 315_576_000_000
"""10,000 years: the range of a Duration, by its definition."""

E = TypeVar("E", bound=IntEnum)


class _Repeatable(Protocol):
    """A request that may carry a request_id."""

    request_id: str
    attempt: int

    def SerializeToString(self, *, deterministic: bool) -> bytes:  # noqa: N802 - protobuf's name
        """Answer the wire form."""
        ...


# --- reading: times, enums, masks -----------------------------------------------------------------


def micros_from_timestamp(field: str, value: Timestamp) -> Micros:
    """Read a Timestamp.

    Raises:
        FieldInvalid: Outside the years 1 to 9999, or nanoseconds that are none.
    """
    if not (MIN_SECONDS <= value.seconds <= MAX_SECONDS and 0 <= value.nanos < NANOS):
        raise FieldInvalid(field, "a moment from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z")
    return Micros(value.seconds * SECOND + value.nanos // 1000)


def micros_from_duration(field: str, value: Duration) -> int:
    """Read a Duration.

    Raises:
        FieldInvalid: Out of range, or with seconds and nanoseconds of different signs.
    """
    same_sign = value.seconds * value.nanos >= 0
    if abs(value.seconds) > MAX_SPAN or abs(value.nanos) >= NANOS or not same_sign:
        raise FieldInvalid(field, "a duration of at most 10,000 years, like 3600s")
    return value.seconds * SECOND + int(value.nanos / 1000)


def _member(field: str, enum: type[E], value: int) -> E:
    try:
        return enum(value)
    except ValueError:
        names = ", ".join(one.name for one in enum if one.value)
        raise FieldInvalid(field, f"one of {names}; {value} is unknown") from None


def _members(field: str, enum: type[E], values: Iterable[int]) -> tuple[E, ...]:
    found = {_member(f"{field}[{index}]", enum, value) for index, value in enumerate(values)}
    return tuple(sorted(found))


def _paths(mask: FieldMask, updatable: frozenset[str]) -> frozenset[str]:
    if not mask.paths:
        raise FieldInvalid("update_mask", f"required: out of {', '.join(sorted(updatable))}")
    for path in mask.paths:
        if path not in updatable:
            raise FieldInvalid("update_mask", f"{path[:64]!r} is not out of {_listed(updatable)}")
    return frozenset(mask.paths)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _optional_time(request: Message, field: str) -> Micros | None:
    return (
        micros_from_timestamp(field, getattr(request, field)) if request.HasField(field) else None
    )


def _expiration(
    request: api_key_service_pb2.CreateApiKeyRequest | api_key_service_pb2.UpdateApiKeyRequest,
) -> Expiration:
    choice = request.WhichOneof("expiration")
    if choice == "expire_time":
        return Expiration(at=micros_from_timestamp("expire_time", request.expire_time))
    if choice == "ttl":
        return Expiration(ttl=micros_from_duration("ttl", request.ttl))
    if choice == "never_expires" and request.never_expires:
        return NEVER_EXPIRES
    raise FieldInvalid("expiration", "one of expire_time, ttl, never_expires: true is required")


def idempotency_key(method: str, request: _Repeatable) -> IdempotencyKey | None:
    """Read what makes a request recognisable when it comes again; None without a request_id.

    Raises:
        FieldInvalid: No UUID, a negative attempt, or an attempt without a request_id.
    """
    if request.attempt < 0:
        raise FieldInvalid("attempt", "0 or more")
    if not request.request_id:
        if request.attempt:
            raise FieldInvalid("attempt", "counts the tries of a request_id, which is missing")
        return None
    body = type(request)()
    body.CopyFrom(request)  # type: ignore[attr-defined]  # every request is a Message
    body.attempt = 0
    body.request_id = ""  # the same UUID in either case
    digest = hashlib.sha256(method.encode() + b"\0" + body.SerializeToString(deterministic=True))
    return IdempotencyKey(
        validators.request_id("request_id", request.request_id), request.attempt, digest.digest()
    )


# --- reading: requests ----------------------------------------------------------------------------


def new_key(request: api_key_service_pb2.CreateApiKeyRequest) -> NewKey:
    """Read what a key is to be."""
    role = validators.role("role", _member("role", Role, request.role))
    return NewKey(
        name=validators.name("name", request.name),
        description=validators.text(
            "description", request.description, least=0, most=validators.MAX_TEXT
        ),
        owner_id=request.owner_id,
        role=role,
        scopes=validators.scopes("scopes", request.scopes, role),
        labels=validators.labels("labels", request.labels),
        expiration=_expiration(request),
    )


def key_update(request: api_key_service_pb2.UpdateApiKeyRequest) -> KeyUpdate:
    """Read what of a key is to become what."""
    paths = _paths(request.update_mask, keys.UPDATABLE)
    key = request.api_key
    validators.required_id("api_key.id", key.id)
    if "expiration" not in paths and request.WhichOneof("expiration") is not None:
        raise FieldInvalid("update_mask", "must name `expiration` when one is chosen")
    if request.etag and key.etag and request.etag != key.etag:
        raise FieldInvalid("etag", "differs from api_key.etag; give one of them")
    return KeyUpdate(
        paths=paths,
        name=validators.name("api_key.name", key.name) if "name" in paths else "",
        description=validators.text(
            "api_key.description", key.description, least=0, most=validators.MAX_TEXT
        )
        if "description" in paths
        else "",
        labels=validators.labels("api_key.labels", key.labels) if "labels" in paths else {},
        # Judged against the role that the key will have, which only the store knows.
        scopes=tuple(key.scopes),
        role=_member("api_key.role", Role, key.role) if "role" in paths else Role.UNSPECIFIED,
        expiration=_expiration(request) if "expiration" in paths else None,
        overlap_end_time=micros_from_timestamp("api_key.overlap_end_time", key.overlap_end_time)
        if "overlap_end_time" in paths and key.HasField("overlap_end_time")
        else None,
        etag=request.etag or key.etag,
    )


def revocation(
    request: api_key_service_pb2.RevokeApiKeyRequest,
) -> tuple[RevocationReason, str]:
    """Read why a key is to be revoked."""
    if not request.reason:
        raise FieldInvalid(
            "reason", "one of LOST, COMPROMISED, SUPERSEDED, NO_LONGER_USED is required"
        )
    reason = _member("reason", RevocationReason, request.reason)
    return reason, validators.text("note", request.note, least=0, most=validators.MAX_TEXT)


def overlap(
    request: api_key_service_pb2.RotateApiKeyRequest | token_service_pb2.RotateSelfRequest,
) -> int:
    """Read the life left to an old secret; absent is none."""
    return validators.overlap("overlap", micros_from_duration("overlap", request.overlap))


def key_query(
    account_id: str, request: api_key_service_pb2.ListApiKeysRequest, now: Micros
) -> KeyQuery:
    """Read which keys are wanted, in which order."""
    order_by, _, direction = request.order_by.strip().partition(" ")
    if request.order_by.strip() and (order_by not in keys.ORDERS or direction not in ("", "desc")):
        raise FieldInvalid(
            "order_by", f"one of {', '.join(keys.ORDERS)}, each optionally with ` desc`"
        )
    return KeyQuery(
        account_id=account_id,
        now=now,
        states=_members("states", KeyState, request.states),
        owner_id=request.owner_id,
        name_contains=validators.contained("name_contains", request.name_contains),
        expires_before=_optional_time(request, "expires_before"),
        unused_since=_optional_time(request, "unused_since"),
        order_by=order_by or "create_time",
        descending=direction == "desc" if order_by else True,
    )


def new_user(request: user_service_pb2.CreateUserRequest) -> NewUser:
    """Read what a user is to be."""
    if not request.type:
        raise FieldInvalid("type", "required: USER_TYPE_PERSON or USER_TYPE_SERVICE_ACCOUNT")
    return NewUser(
        email=validators.email("email", request.email),
        display_name=validators.name("display_name", request.display_name),
        role=validators.role("role", _member("role", Role, request.role)),
        type=_member("type", UserType, request.type),
    )


def user_update(request: user_service_pb2.UpdateUserRequest) -> UserUpdate:
    """Read what of a user is to become what."""
    paths = _paths(request.update_mask, users.UPDATABLE)
    user = request.user
    validators.required_id("user.id", user.id)
    if request.etag and user.etag and request.etag != user.etag:
        raise FieldInvalid("etag", "differs from user.etag; give one of them")
    return UserUpdate(
        paths=paths,
        display_name=validators.name("user.display_name", user.display_name)
        if "display_name" in paths
        else "",
        role=validators.role("user.role", _member("user.role", Role, user.role))
        if "role" in paths
        else Role.UNSPECIFIED,
        etag=request.etag or user.etag,
    )


def user_query(account_id: str, request: user_service_pb2.ListUsersRequest) -> UserQuery:
    """Read which users are wanted."""
    return UserQuery(
        account_id=account_id,
        roles=tuple(
            validators.role("roles", one) for one in _members("roles", Role, request.roles)
        ),
        types=_members("types", UserType, request.types),
        email_contains=validators.contained("email_contains", request.email_contains),
        show_deleted=request.show_deleted,
    )


def new_account(request: account_service_pb2.CreateAccountRequest) -> NewAccount:
    """Read what an account is to be."""
    expiration = NEVER_EXPIRES
    if request.HasField("ttl"):
        expiration = Expiration(ttl=micros_from_duration("ttl", request.ttl))
    return NewAccount(
        name=validators.name("name", request.name),
        admin_email=validators.email("admin_email", request.admin_email),
        admin_display_name=validators.name("admin_display_name", request.admin_display_name),
        expiration=expiration,
    )


def account_query(request: account_service_pb2.ListAccountsRequest) -> AccountQuery:
    """Read which accounts are wanted."""
    return AccountQuery(name_contains=validators.contained("name_contains", request.name_contains))


def audit_query(
    account_id: str | None, request: audit_service_pb2.ListAuditEventsRequest
) -> AuditQuery:
    """Read which events are wanted."""
    return AuditQuery(
        account_id=account_id,
        actor_id=request.actor_id,
        target_id=request.target_id,
        actions=_members("actions", Action, request.actions),
        after=_optional_time(request, "after"),
        before=_optional_time(request, "before"),
    )


def question(
    call: CallContext, request: token_service_pb2.ValidateTokenRequest, prefix: str = ""
) -> Question:
    """Read what is asked about one token. Authority over the account comes before the rest.

    Raises:
        OperatorOnly: Another account, and the caller is not of the operator account.
        FieldInvalid: An unknown role, or a scope that nobody can require.
    """
    caller = call.identity
    account_id = request.account_id or caller.account_id
    if account_id != caller.account_id:
        call.assert_operator(f"{prefix}account_id")
    role = request.required_role
    if not 0 <= role <= Role.ADMIN:
        _member(f"{prefix}required_role", Role, role)
    return Question(
        request.token,
        account_id,
        validators.requirement(prefix, Role(role), request.required_scopes),
    )


def questions(
    call: CallContext, request: token_service_pb2.BatchValidateTokensRequest
) -> list[Question]:
    """Read what is asked about many tokens."""
    if not 1 <= len(request.requests) <= MAX_BATCH:
        raise FieldInvalid("requests", f"1 to {MAX_BATCH}")
    return [
        question(call, one, f"requests[{index}].") for index, one in enumerate(request.requests)
    ]


def audited_account(call: CallContext, requested: str) -> str | None:
    """Read whose audit log is wanted; None for the whole installation's."""
    if requested == ANY_ACCOUNT and call.is_operator_admin:
        return None
    return call.account(requested)


def watch_message(request: token_service_pb2.WatchInvalidationsRequest) -> Incoming:
    """Read a message of a watcher. A bad usage item is left out and harms no other."""
    match request.WhichOneof("message"):
        case "subscribe":
            return Subscribe(request.subscribe.epoch, request.subscribe.from_revision)
        case "ping":
            return Ping(request.ping.sent_at)
        case "usage":
            items = request.usage.items
            return UsageReport(len(items), map(_usage_item, items))
    raise FieldInvalid("message", "one of subscribe, ping, usage is required")


def _usage_item(item: token_service_pb2.WatchInvalidationsRequest.UsageItem) -> UsageItem:
    time = item.last_used_time
    # Any number will do: the time is clamped to what is possible.
    micros = min(max(time.seconds, MIN_SECONDS), MAX_SECONDS) * SECOND
    return UsageItem(
        item.key_id, item.secret_version, Micros(micros + time.nanos // 1000), item.count
    )


# --- writing --------------------------------------------------------------------------------------


def timestamp(micros: int | None) -> Timestamp | None:
    """Write a moment; None stays absent."""
    if micros is None:
        return None
    seconds, rest = divmod(micros, SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def _fill(part: Timestamp | Duration, micros: int) -> None:
    """Write a moment, or a span that is not negative, into the part of a message that holds it."""
    part.seconds, rest = divmod(micros, SECOND)
    part.nanos = rest * 1000


def _wire(number: int) -> Any:
    """Write an enum's number; the stubs want a type of their own that the model does not know."""
    return number


def account_to_proto(account: Account) -> account_pb2.Account:
    """Write an account."""
    return account_pb2.Account(
        id=account.id,
        name=account.name,
        create_time=timestamp(account.create_time),
        disable_time=timestamp(account.disable_time),
        is_operator=account.is_operator,
        etag=f'"{account.row_version}"',
    )


def user_to_proto(user: User) -> user_pb2.User:
    """Write a user."""
    return user_pb2.User(
        id=user.id,
        account_id=user.account_id,
        email=user.email,
        display_name=user.display_name,
        role=_wire(user.role),
        type=_wire(user.type),
        create_time=timestamp(user.create_time),
        update_time=timestamp(user.update_time),
        delete_time=timestamp(user.delete_time),
        etag=keys.etag_of(user),
    )


def key_to_proto(key: ApiKey, now: Micros) -> api_key_pb2.ApiKey:
    """Write a key with the state it has at `now`."""
    return api_key_pb2.ApiKey(
        id=key.id,
        account_id=key.account_id,
        name=key.name,
        description=key.description,
        owner_id=key.owner_id,
        owner_email=key.owner_email,
        role=_wire(key.role),
        effective_role=_wire(key.effective_role),
        scopes=key.scopes,
        labels=key.labels,
        state=_wire(key.state_at(now)),
        create_time=timestamp(key.create_time),
        created_by=key.created_by,
        created_by_email=key.created_by_email,
        update_time=timestamp(key.update_time),
        expire_time=timestamp(key.expire_time),
        last_used_time=timestamp(key.last_used_time),
        use_count=key.use_count,
        secret_version=key.secret_version,
        overlap_end_time=timestamp(key.overlap_end_time if key.overlaps_at(now) else None),
        old_secret_last_used_time=timestamp(key.old_secret_last_used_time),
        disable_time=timestamp(key.disable_time),
        revoke_time=timestamp(key.revoke_time),
        revoked_by=key.revoked_by,
        revocation_reason=_wire(key.revocation_reason or 0),
        revocation_note=key.revocation_note,
        etag=keys.etag_of(key),
    )


class IssuedFields(TypedDict):
    """The fields that every answer with a new token has."""

    api_key: api_key_pb2.ApiKey
    token: str
    replayed: bool


def issued_fields(issued: IssuedKey, now: Micros) -> IssuedFields:
    """Write a key with its new token: into an answer, and nowhere else."""
    return IssuedFields(
        api_key=key_to_proto(issued.key, now), token=issued.token, replayed=issued.replayed
    )


def event_to_proto(event: AuditEvent) -> audit_event_pb2.AuditEvent:
    """Write an audit event."""
    return audit_event_pb2.AuditEvent(
        id=event.id,
        seq=event.seq,
        time=timestamp(event.time),
        account_id=event.account_id,
        actor=audit_event_pb2.AuditActor(
            type=_wire(event.actor.type),
            key_id=event.actor.key_id,
            user_id=event.actor.user_id,
            user_email=event.actor.user_email,
        ),
        action=_wire(event.action),
        target=audit_event_pb2.AuditTarget(type=_wire(event.target_type), id=event.target_id),
        changes=[
            audit_event_pb2.AuditChange(field=one.field, before=one.before, after=one.after)
            for one in event.changes
        ],
        request_id=event.request_id,
        peer=event.peer,
        hash=event.hash,
    )


def deletion_to_proto(deletion: Deletion) -> user_service_pb2.DeleteUserResponse:
    """Write what a deletion did."""
    return user_service_pb2.DeleteUserResponse(
        user=user_to_proto(deletion.user),
        revoked_key_ids=deletion.revoked.ids,
        created_for_others_key_ids=deletion.created_for_others.ids,
        revoked_key_count=deletion.revoked.count,
        created_for_others_key_count=deletion.created_for_others.count,
    )


def verdict_to_proto(verdict: Verdict) -> token_service_pb2.ValidateTokenResponse:
    """Write a verdict.

    Runs on every validation: nothing is written that most keys do not have, and what is a message
    of its own is filled in its place, because one that is handed over is copied.
    """
    if verdict.match is None:
        response = token_service_pb2.ValidateTokenResponse(
            outcome=_wire(verdict.outcome), revision=verdict.revision
        )
        _fill(response.cache_for, verdict.cache_for)
        return response
    record = verdict.match.record
    response = token_service_pb2.ValidateTokenResponse(
        valid=verdict.outcome is Outcome.VALID,
        outcome=_wire(verdict.outcome),
        key_id=record.key_id,
        key_name=record.key_name,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        owner_type=_wire(record.owner_type),
        granted_role=_wire(record.role),
        effective_role=_wire(record.effective_role),
        revision=verdict.revision,
        secret_version=verdict.match.secret_version,
    )
    _fill(response.cache_for, verdict.cache_for)
    if record.scopes:
        response.scopes.extend(record.scopes.split())
    if record.labels:
        response.labels.update(labels_from_text(record.labels))
    if record.expire_time is not None:
        _fill(response.expire_time, record.expire_time)
    return response


def watch_response_to_proto(told: Outgoing) -> token_service_pb2.WatchInvalidationsResponse:
    """Write what a watcher is told."""
    response = token_service_pb2.WatchInvalidationsResponse()
    match told:
        case Hello():
            response.hello.epoch, response.hello.head_revision = told
        case Reset():
            response.reset.epoch, response.reset.head_revision = told
        case Pong():
            response.pong.sent_at, response.pong.head_revision = told
        case Invalidation():
            _write_invalidation(told, response.invalidation)
    return response


def _write_invalidation(
    change: Invalidation, told: token_service_pb2.WatchInvalidationsResponse.Invalidation
) -> None:
    told.revision = change.revision
    match change.kind:
        case SubjectKind.KEY:
            told.key_id = change.subject_id
        case SubjectKind.OWNER:
            told.owner_id = change.subject_id
        case SubjectKind.ACCOUNT:
            told.account_id = change.subject_id
        case SubjectKind.EVERYTHING:
            told.everything = True


def identity_to_proto(
    caller: Caller, revision: int, now: Micros
) -> token_service_pb2.WhoAmIResponse:
    """Write who calls."""
    match = caller.match
    record: TokenRecord = match.record
    return token_service_pb2.WhoAmIResponse(
        key_id=record.key_id,
        key_name=record.key_name,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        owner_type=_wire(record.owner_type),
        granted_role=_wire(record.role),
        effective_role=_wire(record.effective_role),
        scopes=record.scopes.split(),
        labels=labels_from_text(record.labels),
        expire_time=timestamp(record.expire_time),
        expires_soon=match.valid_until is not None and match.valid_until - now <= EXPIRES_SOON,
        revision=revision,
        secret_version=match.secret_version,
        valid=True,
        outcome=_wire(Outcome.VALID),
        overlap_end_time=timestamp(None if match.is_current else match.valid_until),
        is_operator=caller.is_operator,
    )
