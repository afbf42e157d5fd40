"""Every method of the API, once: how its request is built and how its answer is read.

The two clients offer these functions as their methods; only how a call is carried out differs
between them. What each method does stands in the protos.
"""

import enum
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from keybearer import models
from keybearer.access import Role
from keybearer.models import (
    Account,
    ApiKey,
    ApiKeyState,
    AuditAction,
    AuditEvent,
    Caller,
    DeletedUser,
    IssuedAccount,
    IssuedKey,
    RevocationReason,
    User,
    UserType,
    Verdict,
)
from keybearer.v1 import (
    account_service_pb2,
    api_key_pb2,
    api_key_service_pb2,
    audit_service_pb2,
    token_service_pb2,
    user_pb2,
    user_service_pb2,
)

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")
ResponseT = TypeVar("ResponseT", bound=Message)


class Kind(enum.Enum):
    """What repeating a call would do."""

    READ = enum.auto()
    """Nothing: it may be repeated."""
    WRITE = enum.auto()
    """Possibly a second change: it is tried once."""
    MINT = enum.auto()
    """The same change with a fresh token: `request_id` and a greater `attempt` make it safe."""


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """One call that is ready to be made."""

    path: str
    """`/package.Service/Method`."""
    request: Message
    response_type: type[Message]
    read: Callable[[Any], ResultT]
    kind: Kind
    needs_token: bool = True
    """Whether the client's own credential goes along."""


@dataclass(frozen=True, slots=True)
class Pages(Generic[ItemT]):
    """A list that is ready to be fetched, page by page."""

    at: Callable[[str], Call[tuple[list[ItemT], str]]]
    """Answers the call for the page behind a page token; its result ends with the next token."""


class NeverExpires(enum.Enum):
    """The type of NEVER_EXPIRES."""

    NEVER_EXPIRES = "never expires"


NEVER_EXPIRES: Final = NeverExpires.NEVER_EXPIRES
"""The expiration of a key that is to live until it is revoked."""

Expiration = datetime | timedelta | NeverExpires
"""A moment, a time from now, or NEVER_EXPIRES."""


class _Expiring(Protocol):
    """A request with the `expiration` oneof."""

    never_expires: bool

    @property
    def expire_time(self) -> Any: ...
    @property
    def ttl(self) -> Any: ...


def create_account(
    name: str,
    *,
    admin_email: str,
    admin_display_name: str,
    ttl: timedelta | None = None,
    request_id: str = "",
    attempt: int = 1,
) -> Call[IssuedAccount]:
    """Make an account, its first administrator and that user's first key.

    A lost answer is asked for again, so that exactly one account is made.

    Args:
        name: 1 to 100 characters.
        admin_email: The address of the first administrator.
        admin_display_name: The name of the first administrator.
        ttl: The life of the first key; None: it never expires.
        request_id: From an error whose outcome is unknown, to go on with that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = account_service_pb2.CreateAccountRequest(
        name=name,
        admin_email=admin_email,
        admin_display_name=admin_display_name,
        request_id=request_id or _new_request_id(),
        attempt=attempt,
        ttl=None if ttl is None else models.duration_of(ttl),
    )
    return _call(
        "AccountService/CreateAccount",
        request,
        account_service_pb2.CreateAccountResponse,
        models.issued_account_of,
        Kind.MINT,
    )


def get_account(account_id: str) -> Call[Account]:
    """Answer one account."""
    return _call(
        "AccountService/GetAccount",
        account_service_pb2.GetAccountRequest(id=account_id),
        account_service_pb2.GetAccountResponse,
        lambda response: models.account_of(response.account),
    )


def list_accounts(*, name_contains: str = "", page_size: int = 0) -> Pages[Account]:
    """Iterate over accounts, newest first; pages are fetched as they are needed."""
    return Pages(
        lambda page_token: _call(
            "AccountService/ListAccounts",
            account_service_pb2.ListAccountsRequest(
                name_contains=name_contains, page_size=page_size, page_token=page_token
            ),
            account_service_pb2.ListAccountsResponse,
            lambda page: (
                [models.account_of(account) for account in page.accounts],
                page.next_page_token,
            ),
        )
    )


def disable_account(account_id: str) -> Call[Account]:
    """Make every key of an account validate as DISABLED, at once and reversibly."""
    return _call(
        "AccountService/DisableAccount",
        account_service_pb2.DisableAccountRequest(id=account_id),
        account_service_pb2.DisableAccountResponse,
        lambda response: models.account_of(response.account),
        Kind.WRITE,
    )


def enable_account(account_id: str) -> Call[Account]:
    """Undo `disable_account`."""
    return _call(
        "AccountService/EnableAccount",
        account_service_pb2.EnableAccountRequest(id=account_id),
        account_service_pb2.EnableAccountResponse,
        lambda response: models.account_of(response.account),
        Kind.WRITE,
    )


def create_user(
    email: str,
    *,
    display_name: str,
    role: Role,
    type: UserType,  # noqa: A002 - named as in the proto
    account_id: str = "",
) -> Call[User]:
    """Make a user.

    Args:
        email: Unique among the live users of the account.
        display_name: 1 to 100 characters.
        role: Bounds every key the user will own.
        type: Person or service account.
        account_id: Another account than the caller's; operators only.
    """
    return _call(
        "UserService/CreateUser",
        user_service_pb2.CreateUserRequest(
            email=email,
            display_name=display_name,
            role=_number(role),
            type=_number(type),
            account_id=account_id,
        ),
        user_service_pb2.CreateUserResponse,
        lambda response: models.user_of(response.user),
        Kind.WRITE,
    )


def get_user(user_id: str) -> Call[User]:
    """Answer one user, also a deleted one."""
    return _call(
        "UserService/GetUser",
        user_service_pb2.GetUserRequest(id=user_id),
        user_service_pb2.GetUserResponse,
        lambda response: models.user_of(response.user),
    )


def list_users(
    *,
    roles: Iterable[Role] = (),
    types: Iterable[UserType] = (),
    email_contains: str = "",
    show_deleted: bool = False,
    page_size: int = 0,
    account_id: str = "",
) -> Pages[User]:
    """Iterate over users, newest first; pages are fetched as they are needed."""
    role_numbers, type_numbers = _numbers(roles), _numbers(types)
    return Pages(
        lambda page_token: _call(
            "UserService/ListUsers",
            user_service_pb2.ListUsersRequest(
                roles=role_numbers,
                types=type_numbers,
                email_contains=email_contains,
                show_deleted=show_deleted,
                page_size=page_size,
                page_token=page_token,
                account_id=account_id,
            ),
            user_service_pb2.ListUsersResponse,
            lambda page: ([models.user_of(user) for user in page.users], page.next_page_token),
        )
    )


def update_user(
    user_id: str, *, display_name: str | None = None, role: Role | None = None, etag: str = ""
) -> Call[User]:
    """Change what is given. A role counts from the next validation of the user's keys on.

    Args:
        user_id: Whom.
        display_name: None leaves it.
        role: None leaves it.
        etag: Refuse the change when the user has changed since.
    """
    user = user_pb2.User(id=user_id)
    mask = FieldMask()
    if display_name is not None:
        user.display_name = display_name
        mask.paths.append("display_name")
    if role is not None:
        user.role = _number(role)
        mask.paths.append("role")
    return _call(
        "UserService/UpdateUser",
        user_service_pb2.UpdateUserRequest(user=user, update_mask=mask, etag=etag),
        user_service_pb2.UpdateUserResponse,
        lambda response: models.user_of(response.user),
        Kind.WRITE,
    )


def delete_user(
    user_id: str, *, validate_only: bool = False, revoke_created: bool = False
) -> Call[DeletedUser]:
    """Delete a user and revoke every key the user owns, in one transaction.

    Args:
        user_id: Whom.
        validate_only: Answer what would happen and do nothing.
        revoke_created: Also revoke the live keys this user made for other owners.
    """
    return _call(
        "UserService/DeleteUser",
        user_service_pb2.DeleteUserRequest(
            id=user_id, validate_only=validate_only, revoke_created=revoke_created
        ),
        user_service_pb2.DeleteUserResponse,
        models.deleted_user_of,
        Kind.READ if validate_only else Kind.WRITE,
    )


def create_api_key(
    name: str,
    *,
    role: Role,
    expiration: Expiration,
    description: str = "",
    owner_id: str = "",
    scopes: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    account_id: str = "",
    request_id: str = "",
    attempt: int = 1,
) -> Call[IssuedKey]:
    """Make a key. Its token is in the answer and nowhere else.

    A lost or late answer is asked for again, so that exactly one key is made and the token
    answered is the one that works.

    Args:
        name: 1 to 100 characters; need not be unique.
        role: The granted role; never more than the caller's own.
        expiration: Always a choice: a moment, a time from now, or NEVER_EXPIRES.
        description: At most 1000 characters.
        owner_id: The user it belongs to; empty means the caller.
        scopes: What a VALIDATOR or DEVELOPER key may do.
        labels: At most 16.
        account_id: Another account than the caller's; operators only.
        request_id: From an error whose outcome is unknown, to go on with that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = api_key_service_pb2.CreateApiKeyRequest(
        name=name,
        description=description,
        owner_id=owner_id,
        role=_number(role),
        scopes=tuple(scopes),
        labels=labels or {},
        request_id=request_id or _new_request_id(),
        attempt=attempt,
        account_id=account_id,
    )
    _set_expiration(request, expiration)
    return _call(
        "ApiKeyService/CreateApiKey",
        request,
        api_key_service_pb2.CreateApiKeyResponse,
        models.issued_key_of,
        Kind.MINT,
    )


def get_api_key(key_id: str) -> Call[ApiKey]:
    """Answer one key, without its secret."""
    return _call(
        "ApiKeyService/GetApiKey",
        api_key_service_pb2.GetApiKeyRequest(id=key_id),
        api_key_service_pb2.GetApiKeyResponse,
        lambda response: models.api_key_of(response.api_key),
    )


def list_api_keys(
    *,
    states: Iterable[ApiKeyState] = (),
    owner_id: str = "",
    name_contains: str = "",
    expires_before: datetime | None = None,
    unused_since: datetime | None = None,
    order_by: str = "",
    page_size: int = 0,
    account_id: str = "",
) -> Pages[ApiKey]:
    """Iterate over keys, revoked and expired ones too; pages are fetched as they are needed.

    Args:
        states: Only keys in one of these.
        owner_id: Only keys of this owner.
        name_contains: Only keys whose name has this in it.
        expires_before: Only keys that expire before this moment.
        unused_since: Only keys not used since this moment.
        order_by: `create_time`, `expire_time`, `name` or `last_used_time`, with ` desc` for
            falling order; empty means `create_time desc`.
        page_size: How many are fetched at a time; 0 leaves it to the service.
        account_id: Another account than the caller's; operators only.
    """
    state_numbers = _numbers(states)
    return Pages(
        lambda page_token: _call(
            "ApiKeyService/ListApiKeys",
            api_key_service_pb2.ListApiKeysRequest(
                states=state_numbers,
                owner_id=owner_id,
                name_contains=name_contains,
                expires_before=None if expires_before is None else models.stamp_of(expires_before),
                unused_since=None if unused_since is None else models.stamp_of(unused_since),
                order_by=order_by,
                page_size=page_size,
                page_token=page_token,
                account_id=account_id,
            ),
            api_key_service_pb2.ListApiKeysResponse,
            lambda page: (
                [models.api_key_of(api_key) for api_key in page.api_keys],
                page.next_page_token,
            ),
        )
    )


def update_api_key(
    key_id: str,
    *,
    name: str | None = None,
    description: str | None = None,
    labels: Mapping[str, str] | None = None,
    scopes: Iterable[str] | None = None,
    role: Role | None = None,
    expiration: Expiration | None = None,
    overlap_end_time: datetime | None = None,
    etag: str = "",
) -> Call[ApiKey]:
    """Change what is given; None leaves a field as it is.

    Args:
        key_id: Which key.
        name: 1 to 100 characters.
        description: At most 1000 characters.
        labels: All of them; the ones not named go.
        scopes: All of them; the ones not named go.
        role: The granted role; never more than the caller's own.
        expiration: A moment, a time from now, or NEVER_EXPIRES.
        overlap_end_time: When the old secret of a rotation dies; earlier than now planned.
        etag: Refuse the change when the key has changed since.
    """
    api_key = api_key_pb2.ApiKey(id=key_id)
    request = api_key_service_pb2.UpdateApiKeyRequest(etag=etag)
    mask = request.update_mask.paths
    if name is not None:
        api_key.name = name
        mask.append("name")
    if description is not None:
        api_key.description = description
        mask.append("description")
    if labels is not None:
        api_key.labels.update(labels)
        mask.append("labels")
    if scopes is not None:
        api_key.scopes.extend(scopes)
        mask.append("scopes")
    if role is not None:
        api_key.role = _number(role)
        mask.append("role")
    if expiration is not None:
        _set_expiration(request, expiration)
        mask.append("expiration")
    if overlap_end_time is not None:
        api_key.overlap_end_time.CopyFrom(models.stamp_of(overlap_end_time))
        mask.append("overlap_end_time")
    request.api_key.CopyFrom(api_key)
    return _call(
        "ApiKeyService/UpdateApiKey",
        request,
        api_key_service_pb2.UpdateApiKeyResponse,
        lambda response: models.api_key_of(response.api_key),
        Kind.WRITE,
    )


def disable_api_key(key_id: str) -> Call[ApiKey]:
    """Switch a key off, reversibly."""
    return _call(
        "ApiKeyService/DisableApiKey",
        api_key_service_pb2.DisableApiKeyRequest(id=key_id),
        api_key_service_pb2.DisableApiKeyResponse,
        lambda response: models.api_key_of(response.api_key),
        Kind.WRITE,
    )


def enable_api_key(key_id: str) -> Call[ApiKey]:
    """Switch a key on again."""
    return _call(
        "ApiKeyService/EnableApiKey",
        api_key_service_pb2.EnableApiKeyRequest(id=key_id),
        api_key_service_pb2.EnableApiKeyResponse,
        lambda response: models.api_key_of(response.api_key),
        Kind.WRITE,
    )


def rotate_api_key(
    key_id: str,
    *,
    overlap: timedelta = timedelta(),
    request_id: str = "",
    attempt: int = 1,
) -> Call[IssuedKey]:
    """Give a key a new secret; the id stays. The token is in the answer and nowhere else.

    A lost or late answer is asked for again, so that the token answered is the one that works.

    Args:
        key_id: Which key.
        overlap: How long the old secret lives on, at most 30 days; zero: it dies now.
        request_id: From an error whose outcome is unknown, to go on with that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = api_key_service_pb2.RotateApiKeyRequest(
        id=key_id,
        overlap=models.duration_of(overlap),
        request_id=request_id or _new_request_id(),
        attempt=attempt,
    )
    return _call(
        "ApiKeyService/RotateApiKey",
        request,
        api_key_service_pb2.RotateApiKeyResponse,
        models.issued_key_of,
        Kind.MINT,
    )


def revoke_api_key(key_id: str, *, reason: RevocationReason, note: str = "") -> Call[ApiKey]:
    """Kill a key for good; repeated, it answers the first revocation's facts.

    Args:
        key_id: Which key.
        reason: LOST, COMPROMISED, SUPERSEDED or NO_LONGER_USED.
        note: At most 1000 characters.
    """
    return _call(
        "ApiKeyService/RevokeApiKey",
        api_key_service_pb2.RevokeApiKeyRequest(id=key_id, reason=_number(reason), note=note),
        api_key_service_pb2.RevokeApiKeyResponse,
        lambda response: models.api_key_of(response.api_key),
        Kind.WRITE,
    )


def validate_token(
    token: str,
    *,
    account_id: str = "",
    required_role: Role = Role.UNSPECIFIED,
    required_scopes: Iterable[str] = (),
) -> Call[Verdict]:
    """Ask for the verdict about a token; every verdict is an answer, none is an error.

    Args:
        token: The whole token, without "Bearer ".
        account_id: Empty: only keys of the caller's own account; `-`: of any, and an id: of that
            one; both for callers of the operator account.
        required_role: The least effective role.
        required_scopes: Scopes that must all be met.
    """
    return _call(
        "TokenService/ValidateToken",
        _question(token, account_id, required_role, required_scopes),
        token_service_pb2.ValidateTokenResponse,
        models.verdict_of,
    )


def batch_validate_tokens(
    tokens: Iterable[str],
    *,
    account_id: str = "",
    required_role: Role = Role.UNSPECIFIED,
    required_scopes: Iterable[str] = (),
) -> Call[list[Verdict]]:
    """Ask for the verdicts about up to 100 tokens, read from one snapshot, in order.

    The other arguments are those of `validate_token`, for each of the tokens.
    """
    scopes = tuple(required_scopes)
    request = token_service_pb2.BatchValidateTokensRequest(
        requests=[_question(token, account_id, required_role, scopes) for token in tokens]
    )
    return _call(
        "TokenService/BatchValidateTokens",
        request,
        token_service_pb2.BatchValidateTokensResponse,
        lambda response: models.verdicts_of(response.responses),
    )


def who_am_i() -> Call[Caller]:
    """Answer who the caller is."""
    return _call(
        "TokenService/WhoAmI",
        token_service_pb2.WhoAmIRequest(),
        token_service_pb2.WhoAmIResponse,
        models.caller_of,
    )


def rotate_self(
    *, overlap: timedelta = timedelta(minutes=10), request_id: str = "", attempt: int = 1
) -> Call[IssuedKey]:
    """Give the calling key a new secret; role, scopes and expiry stay.

    Args:
        overlap: How long the old secret lives on. Not zero by default: the old secret is the
            credential of this call, and asking again for a lost answer needs it alive.
        request_id: From an error whose outcome is unknown, to go on with that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = token_service_pb2.RotateSelfRequest(
        overlap=models.duration_of(overlap),
        request_id=request_id or _new_request_id(),
        attempt=attempt,
    )
    return _call(
        "TokenService/RotateSelf",
        request,
        token_service_pb2.RotateSelfResponse,
        models.issued_key_of,
        Kind.MINT,
    )


def revoke_token(token: str) -> Call[None]:
    """Revoke whatever a token opens; to hold it is the proof, no other credential is sent."""
    return Call(
        "/keybearer.v1.TokenService/RevokeToken",
        token_service_pb2.RevokeTokenRequest(token=token),
        token_service_pb2.RevokeTokenResponse,
        lambda _: None,
        Kind.WRITE,
        needs_token=False,
    )


def list_audit_events(
    *,
    actor_id: str = "",
    target_id: str = "",
    actions: Iterable[AuditAction] = (),
    after: datetime | None = None,
    before: datetime | None = None,
    page_size: int = 0,
    account_id: str = "",
) -> Pages[AuditEvent]:
    """Iterate over audit events, newest first; pages are fetched as they are needed.

    Args:
        actor_id: Only events of this key or user.
        target_id: Only events about this thing.
        actions: Only these.
        after: Only events after this moment.
        before: Only events before this moment.
        page_size: How many are fetched at a time; 0 leaves it to the service.
        account_id: Another account than the caller's; operators only.
    """
    action_numbers = _numbers(actions)
    return Pages(
        lambda page_token: _call(
            "AuditService/ListAuditEvents",
            audit_service_pb2.ListAuditEventsRequest(
                actor_id=actor_id,
                target_id=target_id,
                actions=action_numbers,
                after=None if after is None else models.stamp_of(after),
                before=None if before is None else models.stamp_of(before),
                page_size=page_size,
                page_token=page_token,
                account_id=account_id,
            ),
            audit_service_pb2.ListAuditEventsResponse,
            lambda page: (
                [models.audit_event_of(event) for event in page.audit_events],
                page.next_page_token,
            ),
        )
    )


def _call(
    method: str,
    request: Message,
    response_type: type[ResponseT],
    read: Callable[[ResponseT], ResultT],
    kind: Kind = Kind.READ,
) -> Call[ResultT]:
    return Call(f"/keybearer.v1.{method}", request, response_type, read, kind)


def _question(
    token: str, account_id: str, required_role: Role, required_scopes: Iterable[str]
) -> token_service_pb2.ValidateTokenRequest:
    return token_service_pb2.ValidateTokenRequest(
        token=token,
        account_id=account_id,
        required_role=_number(required_role),
        required_scopes=tuple(required_scopes),
    )


def _set_expiration(request: _Expiring, expiration: Expiration) -> None:
    if isinstance(expiration, datetime):
        request.expire_time.CopyFrom(models.stamp_of(expiration))
    elif isinstance(expiration, timedelta):
        request.ttl.CopyFrom(models.duration_of(expiration))
    else:
        request.never_expires = True


def _number(member: enum.IntEnum) -> Any:
    """Answer an enum member as the generated code wants it: its number, of a type of its own."""
    return int(member)


def _numbers(members: Iterable[enum.IntEnum]) -> Any:
    return [int(member) for member in members]


def _new_request_id() -> str:
    return str(uuid.uuid4())
