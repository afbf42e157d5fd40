"""Every method of the API: how its request is built and how its response is read.

The two clients offer these functions as their methods and differ only in how they make a call. The
protos describe what each method does. An argument of a wrong type or form is a TypeError or a
ValueError that names it, and nothing is sent.
"""

import enum
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keybearer._client import convert
from keybearer._wire.arguments import (
    count,
    duration,
    flag,
    kind_of,
    member,
    members,
    moment,
    strings,
    text,
)
from keybearer._wire.arguments import labels as check_labels
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
    RevokedKeys,
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
    """What happens when a call is repeated."""

    READ = enum.auto()
    """Nothing changes, so the call may be repeated."""
    WRITE = enum.auto()
    """The change may be made twice, so the call is attempted once."""
    ISSUE = enum.auto()
    """The same key gets another token: `request_id` and a greater `attempt` make that safe."""


@dataclass(frozen=True, slots=True)
class Request(Generic[ResultT]):
    """One call that is ready to be made."""

    path: str
    """`/package.Service/Method`."""
    message: Message = field(repr=False)
    """What is sent; it may hold a token."""
    response_type: type[Message]
    read: Callable[[Any], ResultT]
    """Turns the response into the result."""
    kind: Kind
    needs_token: bool = True
    """Whether the client presents its own credential."""


@dataclass(frozen=True, slots=True)
class Pages(Generic[ItemT]):
    """A list that is ready to be fetched page by page."""

    at: Callable[[str], Request[tuple[list[ItemT], str]]]
    """Returns the request for the page of a page token. Its result is the items and the token of
    the next page, which is empty on the last page."""


class NeverExpires(enum.Enum):
    """The type of NEVER_EXPIRES."""

    NEVER_EXPIRES = "never expires"


NEVER_EXPIRES: Final = NeverExpires.NEVER_EXPIRES
"""The expiration of a key that is accepted until it is revoked."""

Expiration = datetime | timedelta | NeverExpires
"""A moment, a duration from now, or NEVER_EXPIRES."""


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
    ttl: timedelta | NeverExpires = NEVER_EXPIRES,
    request_id: str = "",
    attempt: int = 1,
) -> Request[IssuedAccount]:
    """Create an account, its first administrator and that user's first key.

    When the response is lost, the request is repeated in a way that creates exactly one account.

    Args:
        name: 1 to 100 characters.
        admin_email: The address of the first administrator.
        admin_display_name: The name of the first administrator.
        ttl: How long the first key is accepted; a duration or NEVER_EXPIRES.
        request_id: From an error whose outcome is unknown, to continue that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = account_service_pb2.CreateAccountRequest(
        name=text("name", name),
        admin_email=text("admin_email", admin_email),
        admin_display_name=text("admin_display_name", admin_display_name),
        request_id=text("request_id", request_id) or _new_request_id(),
        attempt=count("attempt", attempt),
        ttl=_ttl_of(ttl),
    )
    return _request(
        "AccountService/CreateAccount",
        request,
        account_service_pb2.CreateAccountResponse,
        convert.issued_account_of,
        Kind.ISSUE,
    )


def get_account(account_id: str) -> Request[Account]:
    """Return one account."""
    return _request(
        "AccountService/GetAccount",
        account_service_pb2.GetAccountRequest(id=text("account_id", account_id)),
        account_service_pb2.GetAccountResponse,
        lambda response: convert.account_of(response.account),
    )


def list_accounts(*, name_contains: str = "", page_size: int = 0) -> Pages[Account]:
    """Iterate over accounts, the newest first."""
    return _pages(
        "AccountService/ListAccounts",
        account_service_pb2.ListAccountsRequest(
            name_contains=text("name_contains", name_contains),
            page_size=count("page_size", page_size),
        ),
        account_service_pb2.ListAccountsResponse,
        lambda page: [convert.account_of(account) for account in page.accounts],
    )


def disable_account(account_id: str) -> Request[Account]:
    """Disable an account: its keys validate as DISABLED from now on. This can be undone."""
    return _request(
        "AccountService/DisableAccount",
        account_service_pb2.DisableAccountRequest(id=text("account_id", account_id)),
        account_service_pb2.DisableAccountResponse,
        lambda response: convert.account_of(response.account),
        Kind.WRITE,
    )


def enable_account(account_id: str) -> Request[Account]:
    """Enable an account that was disabled."""
    return _request(
        "AccountService/EnableAccount",
        account_service_pb2.EnableAccountRequest(id=text("account_id", account_id)),
        account_service_pb2.EnableAccountResponse,
        lambda response: convert.account_of(response.account),
        Kind.WRITE,
    )


def create_user(
    email: str,
    *,
    display_name: str,
    role: Role,
    type: UserType,  # noqa: A002 - named as in the proto
    account_id: str = "",
) -> Request[User]:
    """Create a user.

    Args:
        email: Unique among the live users of the account.
        display_name: 1 to 100 characters.
        role: No key of the user holds more.
        type: Person or service account.
        account_id: Another account than the caller's; operators only.
    """
    return _request(
        "UserService/CreateUser",
        user_service_pb2.CreateUserRequest(
            email=text("email", email),
            display_name=text("display_name", display_name),
            role=member("role", Role, role),
            type=member("type", UserType, type),
            account_id=text("account_id", account_id),
        ),
        user_service_pb2.CreateUserResponse,
        lambda response: convert.user_of(response.user),
        Kind.WRITE,
    )


def get_user(user_id: str) -> Request[User]:
    """Return one user, also a deleted one."""
    return _request(
        "UserService/GetUser",
        user_service_pb2.GetUserRequest(id=text("user_id", user_id)),
        user_service_pb2.GetUserResponse,
        lambda response: convert.user_of(response.user),
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
    """Iterate over users, the newest first."""
    return _pages(
        "UserService/ListUsers",
        user_service_pb2.ListUsersRequest(
            roles=members("roles", Role, roles),
            types=members("types", UserType, types),
            email_contains=text("email_contains", email_contains),
            show_deleted=flag("show_deleted", show_deleted),
            page_size=count("page_size", page_size),
            account_id=text("account_id", account_id),
        ),
        user_service_pb2.ListUsersResponse,
        lambda page: [convert.user_of(user) for user in page.users],
    )


def update_user(
    user_id: str, *, display_name: str | None = None, role: Role | None = None, etag: str = ""
) -> Request[User]:
    """Change a user. A new role counts from the next validation of the user's keys on.

    Args:
        user_id: Which user.
        display_name: None leaves it as it is.
        role: None leaves it as it is.
        etag: When given, the change is rejected if the user has changed since.
    """
    user = user_pb2.User(id=text("user_id", user_id))
    mask = FieldMask()
    if display_name is not None:
        user.display_name = text("display_name", display_name)
        mask.paths.append("display_name")
    if role is not None:
        user.role = member("role", Role, role)
        mask.paths.append("role")
    return _request(
        "UserService/UpdateUser",
        user_service_pb2.UpdateUserRequest(user=user, update_mask=mask, etag=text("etag", etag)),
        user_service_pb2.UpdateUserResponse,
        lambda response: convert.user_of(response.user),
        Kind.WRITE,
    )


def delete_user(
    user_id: str, *, validate_only: bool = False, revoke_created: bool = False
) -> Request[DeletedUser]:
    """Delete a user and revoke every key the user owns, in one transaction.

    Args:
        user_id: Which user.
        validate_only: Return what would happen and change nothing.
        revoke_created: Also revoke the live keys that this user created for other owners.
    """
    return _request(
        "UserService/DeleteUser",
        user_service_pb2.DeleteUserRequest(
            id=text("user_id", user_id),
            validate_only=flag("validate_only", validate_only),
            revoke_created=flag("revoke_created", revoke_created),
        ),
        user_service_pb2.DeleteUserResponse,
        convert.deleted_user_of,
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
) -> Request[IssuedKey]:
    """Create a key. Its token is in the result and nowhere else.

    When the response is lost or late, the request is repeated in a way that creates exactly one
    key, and the token in the result is the one that works.

    Args:
        name: 1 to 100 characters; need not be unique.
        role: The granted role; never more than the caller's own.
        expiration: A moment, a duration from now, or NEVER_EXPIRES. There is no default.
        description: At most 1000 characters.
        owner_id: The user who owns the key; empty means the caller.
        scopes: What a VALIDATOR or DEVELOPER key may do.
        labels: At most 16.
        account_id: Another account than the caller's; operators only.
        request_id: From an error whose outcome is unknown, to continue that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = api_key_service_pb2.CreateApiKeyRequest(
        name=text("name", name),
        description=text("description", description),
        owner_id=text("owner_id", owner_id),
        role=member("role", Role, role),
        scopes=strings("scopes", scopes),
        labels={} if labels is None else check_labels("labels", labels),
        request_id=text("request_id", request_id) or _new_request_id(),
        attempt=count("attempt", attempt),
        account_id=text("account_id", account_id),
    )
    _set_expiration(request, expiration)
    return _request(
        "ApiKeyService/CreateApiKey",
        request,
        api_key_service_pb2.CreateApiKeyResponse,
        convert.issued_key_of,
        Kind.ISSUE,
    )


def get_api_key(key_id: str) -> Request[ApiKey]:
    """Return one key, without its secret."""
    return _request(
        "ApiKeyService/GetApiKey",
        api_key_service_pb2.GetApiKeyRequest(id=text("key_id", key_id)),
        api_key_service_pb2.GetApiKeyResponse,
        lambda response: convert.api_key_of(response.api_key),
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
    """Iterate over keys, also revoked and expired ones.

    Args:
        states: Only keys in one of these.
        owner_id: Only keys of this owner.
        name_contains: Only keys whose name contains this.
        expires_before: Only keys that expire before this moment.
        unused_since: Only keys that were not used since this moment.
        order_by: `create_time`, `expire_time`, `name` or `last_used_time`, with ` desc` for
            descending order; empty means `create_time desc`.
        page_size: How many are fetched at a time; 0 leaves the choice to the service.
        account_id: Another account than the caller's; operators only.
    """
    return _pages(
        "ApiKeyService/ListApiKeys",
        api_key_service_pb2.ListApiKeysRequest(
            states=members("states", ApiKeyState, states),
            owner_id=text("owner_id", owner_id),
            name_contains=text("name_contains", name_contains),
            expires_before=_optional_timestamp("expires_before", expires_before),
            unused_since=_optional_timestamp("unused_since", unused_since),
            order_by=text("order_by", order_by),
            page_size=count("page_size", page_size),
            account_id=text("account_id", account_id),
        ),
        api_key_service_pb2.ListApiKeysResponse,
        lambda page: [convert.api_key_of(api_key) for api_key in page.api_keys],
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
) -> Request[ApiKey]:
    """Change a key. None leaves a field as it is.

    Args:
        key_id: Which key.
        name: 1 to 100 characters.
        description: At most 1000 characters.
        labels: Replace all labels.
        scopes: Replace all scopes.
        role: The granted role; never more than the caller's own.
        expiration: A moment, a duration from now, or NEVER_EXPIRES.
        overlap_end_time: When the old secret of a rotation stops working; earlier than planned now.
        etag: When given, the change is rejected if the key has changed since.
    """
    api_key = api_key_pb2.ApiKey(id=text("key_id", key_id))
    request = api_key_service_pb2.UpdateApiKeyRequest(etag=text("etag", etag))
    mask = request.update_mask.paths
    if name is not None:
        api_key.name = text("name", name)
        mask.append("name")
    if description is not None:
        api_key.description = text("description", description)
        mask.append("description")
    if labels is not None:
        api_key.labels.update(check_labels("labels", labels))
        mask.append("labels")
    if scopes is not None:
        api_key.scopes.extend(strings("scopes", scopes))
        mask.append("scopes")
    if role is not None:
        api_key.role = member("role", Role, role)
        mask.append("role")
    if expiration is not None:
        _set_expiration(request, expiration)
        mask.append("expiration")
    if overlap_end_time is not None:
        api_key.overlap_end_time.CopyFrom(
            convert.timestamp_of(moment("overlap_end_time", overlap_end_time))
        )
        mask.append("overlap_end_time")
    request.api_key.CopyFrom(api_key)
    return _request(
        "ApiKeyService/UpdateApiKey",
        request,
        api_key_service_pb2.UpdateApiKeyResponse,
        lambda response: convert.api_key_of(response.api_key),
        Kind.WRITE,
    )


def disable_api_key(key_id: str) -> Request[ApiKey]:
    """Disable a key. This can be undone."""
    return _request(
        "ApiKeyService/DisableApiKey",
        api_key_service_pb2.DisableApiKeyRequest(id=text("key_id", key_id)),
        api_key_service_pb2.DisableApiKeyResponse,
        lambda response: convert.api_key_of(response.api_key),
        Kind.WRITE,
    )


def enable_api_key(key_id: str) -> Request[ApiKey]:
    """Enable a key that was disabled."""
    return _request(
        "ApiKeyService/EnableApiKey",
        api_key_service_pb2.EnableApiKeyRequest(id=text("key_id", key_id)),
        api_key_service_pb2.EnableApiKeyResponse,
        lambda response: convert.api_key_of(response.api_key),
        Kind.WRITE,
    )


def rotate_api_key(
    key_id: str,
    *,
    overlap: timedelta = timedelta(),
    request_id: str = "",
    attempt: int = 1,
) -> Request[IssuedKey]:
    """Give a key a new secret under the same id. The token is in the result and nowhere else.

    When the response is lost or late, the request is repeated, and the token in the result is the
    one that works.

    Args:
        key_id: Which key.
        overlap: How long the old secret is still accepted, at most 30 days; zero means not at all.
        request_id: From an error whose outcome is unknown, to continue that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = api_key_service_pb2.RotateApiKeyRequest(
        id=text("key_id", key_id),
        overlap=convert.duration_of(duration("overlap", overlap)),
        request_id=text("request_id", request_id) or _new_request_id(),
        attempt=count("attempt", attempt),
    )
    return _request(
        "ApiKeyService/RotateApiKey",
        request,
        api_key_service_pb2.RotateApiKeyResponse,
        convert.issued_key_of,
        Kind.ISSUE,
    )


def revoke_api_key(key_id: str, *, reason: RevocationReason, note: str = "") -> Request[ApiKey]:
    """Revoke a key, which is final. A repeated call returns the facts of the first revocation.

    Args:
        key_id: Which key.
        reason: LOST, COMPROMISED, SUPERSEDED or NO_LONGER_USED.
        note: At most 1000 characters.
    """
    return _request(
        "ApiKeyService/RevokeApiKey",
        api_key_service_pb2.RevokeApiKeyRequest(
            id=text("key_id", key_id),
            reason=member("reason", RevocationReason, reason),
            note=text("note", note),
        ),
        api_key_service_pb2.RevokeApiKeyResponse,
        lambda response: convert.api_key_of(response.api_key),
        Kind.WRITE,
    )


def revoke_api_keys(
    key_ids: Iterable[str] = (),
    *,
    reason: RevocationReason,
    note: str = "",
    validate_only: bool = False,
    states: Iterable[ApiKeyState] = (),
    owner_id: str = "",
    name_contains: str = "",
    expires_before: datetime | None = None,
    unused_since: datetime | None = None,
    account_id: str = "",
    page_token: str = "",
) -> Request[RevokedKeys]:
    """Revoke several keys, which is final, in one transaction.

    The keys are either named or those that all the filters match, from `states` to `unused_since`.
    At most 1000 are revoked by one call: with filters, go on with `next_page_token` until it is
    empty. An id of nothing does not stop the others.

    Args:
        key_ids: Which keys; at most 1000.
        reason: LOST, COMPROMISED, SUPERSEDED or NO_LONGER_USED.
        note: At most 1000 characters; every key gets it.
        validate_only: Return what would be revoked and revoke nothing.
        states: Only keys in one of these; without any, all that are not revoked.
        owner_id: Only keys of this owner.
        name_contains: Only keys whose name contains this.
        expires_before: Only keys that expire before this moment.
        unused_since: Only keys that were not used since this moment.
        account_id: With filters: another account than the caller's; operators only.
        page_token: With filters: `next_page_token` of the call before.
    """
    request = api_key_service_pb2.RevokeApiKeysRequest(
        ids=strings("key_ids", key_ids),
        reason=member("reason", RevocationReason, reason),
        note=text("note", note),
        validate_only=flag("validate_only", validate_only),
        page_token=text("page_token", page_token),
    )
    wanted = api_key_service_pb2.ApiKeyFilter(
        states=members("states", ApiKeyState, states),
        owner_id=text("owner_id", owner_id),
        name_contains=text("name_contains", name_contains),
        expires_before=_optional_timestamp("expires_before", expires_before),
        unused_since=_optional_timestamp("unused_since", unused_since),
        account_id=text("account_id", account_id),
    )
    if wanted.ByteSize():
        request.filter.CopyFrom(wanted)
    return _request(
        "ApiKeyService/RevokeApiKeys",
        request,
        api_key_service_pb2.RevokeApiKeysResponse,
        convert.revoked_keys_of,
        Kind.READ if validate_only else Kind.WRITE,
    )


def validate_token(
    token: str,
    *,
    account_id: str = "",
    required_role: Role = Role.UNSPECIFIED,
    required_scopes: Iterable[str] = (),
) -> Request[Verdict]:
    """Validate a token. Every verdict is a result, also a negative one.

    Args:
        token: The whole token, without "Bearer ".
        account_id: Empty means only keys of the caller's own account. Callers of the operator
            account may give the id of another account, or `-` for keys of any account.
        required_role: The lowest effective role that is accepted.
        required_scopes: Scopes that must all be met.
    """
    return _request(
        "TokenService/ValidateToken",
        _validate_request(token, account_id, required_role, required_scopes),
        token_service_pb2.ValidateTokenResponse,
        convert.verdict_of,
    )


def batch_validate_tokens(
    tokens: Iterable[str],
    *,
    account_id: str = "",
    required_role: Role = Role.UNSPECIFIED,
    required_scopes: Iterable[str] = (),
) -> Request[list[Verdict]]:
    """Validate up to 100 tokens in one snapshot of the store; the verdicts are in their order.

    The other arguments are those of `validate_token`, for each of the tokens.
    """
    scopes = strings("required_scopes", required_scopes)
    request = token_service_pb2.BatchValidateTokensRequest(
        requests=[
            _validate_request(token, account_id, required_role, scopes)
            for token in strings("tokens", tokens)
        ]
    )
    return _request(
        "TokenService/BatchValidateTokens",
        request,
        token_service_pb2.BatchValidateTokensResponse,
        convert.verdicts_of,
    )


def who_am_i() -> Request[Caller]:
    """Return who the caller is."""
    return _request(
        "TokenService/WhoAmI",
        token_service_pb2.WhoAmIRequest(),
        token_service_pb2.WhoAmIResponse,
        convert.caller_of,
    )


def rotate_self(
    *, overlap: timedelta = timedelta(minutes=10), request_id: str = "", attempt: int = 1
) -> Request[IssuedKey]:
    """Give the calling key a new secret; role, scopes and expiry stay.

    Args:
        overlap: How long the old secret is still accepted. The default is not zero, because the old
            secret is the credential of this call, and repeating the call needs it.
        request_id: From an error whose outcome is unknown, to continue that request.
        attempt: With `request_id`: greater than the `attempt` of the error.
    """
    request = token_service_pb2.RotateSelfRequest(
        overlap=convert.duration_of(duration("overlap", overlap)),
        request_id=text("request_id", request_id) or _new_request_id(),
        attempt=count("attempt", attempt),
    )
    return _request(
        "TokenService/RotateSelf",
        request,
        token_service_pb2.RotateSelfResponse,
        convert.issued_key_of,
        Kind.ISSUE,
    )


def revoke_token(token: str) -> Request[None]:
    """Revoke the key of a token. Holding the token is the proof; no other credential is sent."""
    return Request(
        "/keybearer.v1.TokenService/RevokeToken",
        token_service_pb2.RevokeTokenRequest(token=text("token", token)),
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
    """Iterate over audit events, the newest first.

    Args:
        actor_id: Only events of this key or user.
        target_id: Only events about this resource.
        actions: Only these actions.
        after: Only events after this moment.
        before: Only events before this moment.
        page_size: How many are fetched at a time; 0 leaves the choice to the service.
        account_id: Another account than the caller's; operators only.
    """
    return _pages(
        "AuditService/ListAuditEvents",
        audit_service_pb2.ListAuditEventsRequest(
            actor_id=text("actor_id", actor_id),
            target_id=text("target_id", target_id),
            actions=members("actions", AuditAction, actions),
            after=_optional_timestamp("after", after),
            before=_optional_timestamp("before", before),
            page_size=count("page_size", page_size),
            account_id=text("account_id", account_id),
        ),
        audit_service_pb2.ListAuditEventsResponse,
        lambda page: [convert.audit_event_of(event) for event in page.audit_events],
    )


def _request(
    method: str,
    message: Message,
    response_type: type[ResponseT],
    read: Callable[[ResponseT], ResultT],
    kind: Kind = Kind.READ,
) -> Request[ResultT]:
    return Request(f"/keybearer.v1.{method}", message, response_type, read, kind)


def _pages(
    method: str,
    message: Message,
    response_type: type[ResponseT],
    read: Callable[[ResponseT], list[ItemT]],
) -> Pages[ItemT]:
    def at(page_token: str) -> Request[tuple[list[ItemT], str]]:
        page = type(message)()
        page.CopyFrom(message)
        page.page_token = page_token  # type: ignore[attr-defined]  # every list has one
        return _request(
            method,
            page,
            response_type,
            lambda response: (read(response), response.next_page_token),  # type: ignore[attr-defined]
        )

    return Pages(at)


def _validate_request(
    token: str, account_id: str, required_role: Role, required_scopes: Iterable[str]
) -> token_service_pb2.ValidateTokenRequest:
    return token_service_pb2.ValidateTokenRequest(
        token=text("token", token),
        account_id=text("account_id", account_id),
        required_role=member("required_role", Role, required_role),
        required_scopes=strings("required_scopes", required_scopes),
    )


def _set_expiration(request: _Expiring, expiration: Expiration) -> None:
    if expiration is NEVER_EXPIRES:
        request.never_expires = True
    elif isinstance(expiration, timedelta):
        request.ttl.CopyFrom(convert.duration_of(expiration))
    elif isinstance(expiration, datetime):
        request.expire_time.CopyFrom(convert.timestamp_of(moment("expiration", expiration)))
    else:
        raise TypeError(
            "expiration must be a datetime with a timezone, a timedelta or NEVER_EXPIRES, "
            f"not {kind_of(expiration)}"
        )


def _ttl_of(ttl: timedelta | NeverExpires) -> Duration | None:
    if ttl is NEVER_EXPIRES:
        return None
    if not isinstance(ttl, timedelta):
        raise TypeError(f"ttl must be a timedelta or NEVER_EXPIRES, not {kind_of(ttl)}")
    return convert.duration_of(ttl)


def _optional_timestamp(name: str, value: datetime | None) -> Timestamp | None:
    return None if value is None else convert.timestamp_of(moment(name, value))


def _new_request_id() -> str:
    return str(uuid.uuid4())
