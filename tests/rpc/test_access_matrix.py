"""The access matrix: every method that is served, called by everybody there is.

One table says what each caller gets. A method without a row fails, and so does a row without a
method, so that nothing is served that nobody has thought about.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, Tenant, message, refusal_of, running
from keybearer.v1 import (
    account_service_pb2,
    api_key_service_pb2,
    audit_service_pb2,
    token_service_pb2,
    user_service_pb2,
)
from keybearer_service.domain.clock import HOUR
from keybearer_service.endpoints import served_methods

TIMEOUT_S = 10.0
CALLERS = (
    "no token",
    "garbage",
    "revoked",
    "expired",
    "validator",
    "developer",
    "admin",
    "admin of another account",
    "operator validator",
    "operator developer",
    "operator admin",
)
"""Where nothing else is said, of the account that the request is about, which is not the
operator's."""

OK, ROLE, OPERATOR, NOT_FOUND = "OK", "ROLE_INSUFFICIENT", "OPERATOR_ONLY", "RESOURCE_NOT_FOUND"
STRANGERS = (
    "CREDENTIALS_MISSING",
    "CREDENTIALS_INVALID",
    "CREDENTIALS_INVALID",
    "CREDENTIALS_EXPIRED",
)
ANYBODY = (OK,) * len(CALLERS)
ANY_KEY = (*STRANGERS, *(OK,) * 7)
OF_OPERATORS = (*STRANGERS, ROLE, ROLE, OPERATOR, OPERATOR, ROLE, ROLE, OK)
NAMES_AN_ACCOUNT = (*STRANGERS, ROLE, ROLE, OK, OPERATOR, ROLE, ROLE, OK)
NAMES_A_THING = (*STRANGERS, ROLE, ROLE, OK, NOT_FOUND, ROLE, ROLE, OK)
JUDGES_IN_AN_ACCOUNT = (*STRANGERS, OK, ROLE, OK, OPERATOR, OK, ROLE, OK)
JUDGES = (*STRANGERS, OK, ROLE, OK, OK, OK, ROLE, OK)


@dataclass
class Scene:
    """What requests are about, fresh for each call."""

    account_id: str
    user_id: str
    key_id: str
    token: str


V1 = "/keybearer.v1."
ACCOUNTS, USERS, KEYS, TOKENS, AUDIT = (
    f"{V1}{name}Service/" for name in ("Account", "User", "ApiKey", "Token", "Audit")
)
CHECK = "/envoy.service.auth.v3.Authorization/Check"
accounts, users, keys = account_service_pb2, user_service_pb2, api_key_service_pb2
tokens, audit = token_service_pb2, audit_service_pb2

Row = tuple[tuple[str, ...], Callable[[Scene], Message | None]]


def _row(expected: tuple[str, ...], make: Any, **fields: Any) -> Row:
    def request(scene: Scene) -> Message:
        told = {name: value(scene) if callable(value) else value for name, value in fields.items()}
        made: Message = message(make, **told)
        return made

    return expected, request


def _account(scene: Scene) -> str:
    return scene.account_id


def _user(scene: Scene) -> str:
    return scene.user_id


def _key(scene: Scene) -> str:
    return scene.key_id


def _token(scene: Scene) -> str:
    return scene.token


TABLE: dict[str, Row] = {
    ACCOUNTS + "CreateAccount": _row(
        OF_OPERATORS,
        accounts.CreateAccountRequest,
        name="n",
        admin_email="a@example.com",
        admin_display_name="A",
    ),
    ACCOUNTS + "GetAccount": _row(OF_OPERATORS, accounts.GetAccountRequest, id=_account),
    ACCOUNTS + "ListAccounts": _row(OF_OPERATORS, accounts.ListAccountsRequest),
    ACCOUNTS + "DisableAccount": _row(OF_OPERATORS, accounts.DisableAccountRequest, id=_account),
    ACCOUNTS + "EnableAccount": _row(OF_OPERATORS, accounts.EnableAccountRequest, id=_account),
    USERS + "CreateUser": _row(
        NAMES_AN_ACCOUNT,
        users.CreateUserRequest,
        email=lambda scene: f"new-{scene.user_id}@example.com",
        display_name="N",
        role="ROLE_VALIDATOR",
        type="USER_TYPE_PERSON",
        account_id=_account,
    ),
    USERS + "GetUser": _row(NAMES_A_THING, users.GetUserRequest, id=_user),
    USERS + "ListUsers": _row(NAMES_AN_ACCOUNT, users.ListUsersRequest, account_id=_account),
    USERS + "UpdateUser": _row(
        NAMES_A_THING,
        users.UpdateUserRequest,
        user=lambda scene: {"id": scene.user_id, "display_name": "x"},
        update_mask={"paths": ["display_name"]},
    ),
    USERS + "DeleteUser": _row(NAMES_A_THING, users.DeleteUserRequest, id=_user),
    KEYS + "CreateApiKey": _row(
        NAMES_AN_ACCOUNT,
        keys.CreateApiKeyRequest,
        name="n",
        role="ROLE_DEVELOPER",
        never_expires=True,
        owner_id=_user,
        account_id=_account,
    ),
    KEYS + "GetApiKey": _row(NAMES_A_THING, keys.GetApiKeyRequest, id=_key),
    KEYS + "ListApiKeys": _row(NAMES_AN_ACCOUNT, keys.ListApiKeysRequest, account_id=_account),
    KEYS + "UpdateApiKey": _row(
        NAMES_A_THING,
        keys.UpdateApiKeyRequest,
        api_key=lambda scene: {"id": scene.key_id, "name": "x"},
        update_mask={"paths": ["name"]},
    ),
    KEYS + "DisableApiKey": _row(NAMES_A_THING, keys.DisableApiKeyRequest, id=_key),
    KEYS + "EnableApiKey": _row(NAMES_A_THING, keys.EnableApiKeyRequest, id=_key),
    KEYS + "RotateApiKey": _row(NAMES_A_THING, keys.RotateApiKeyRequest, id=_key),
    KEYS + "RevokeApiKey": _row(
        NAMES_A_THING, keys.RevokeApiKeyRequest, id=_key, reason="REVOCATION_REASON_LOST"
    ),
    KEYS + "RevokeApiKeys": _row(
        NAMES_AN_ACCOUNT,
        keys.RevokeApiKeysRequest,
        filter=lambda scene: {"account_id": scene.account_id, "owner_id": scene.user_id},
        reason="REVOCATION_REASON_LOST",
    ),
    TOKENS + "ValidateToken": _row(
        JUDGES_IN_AN_ACCOUNT, tokens.ValidateTokenRequest, token=_token, account_id=_account
    ),
    TOKENS + "BatchValidateTokens": _row(
        JUDGES_IN_AN_ACCOUNT,
        tokens.BatchValidateTokensRequest,
        requests=lambda scene: [{"token": scene.token, "account_id": scene.account_id}],
    ),
    TOKENS + "WatchInvalidations": _row(JUDGES, tokens.WatchInvalidationsRequest, subscribe={}),
    TOKENS + "WhoAmI": _row(ANY_KEY, tokens.WhoAmIRequest),
    TOKENS + "RotateSelf": _row(ANY_KEY, tokens.RotateSelfRequest),
    TOKENS + "RevokeToken": _row(ANYBODY, tokens.RevokeTokenRequest, token=_token),
    AUDIT + "ListAuditEvents": _row(
        NAMES_AN_ACCOUNT, audit.ListAuditEventsRequest, account_id=_account
    ),
    CHECK: (JUDGES, lambda scene: None),
}
"""What each of CALLERS gets, and what is asked. An empty request where None is said."""
STREAMS = {TOKENS + "WatchInvalidations"}


class Matrix:
    """One service for all cells, with new callers and new things for each."""

    def __init__(self, service: Service, clock: FakeClock) -> None:
        self.service = service
        self._clock = clock
        self._tenant, self._other = service.tenant("tenant"), service.tenant("other")
        self._made = 0
        self._expired = self._key_of(self._tenant, ttl=timedelta(minutes=1))
        clock.advance(HOUR)

    def _key_of(self, tenant: Tenant, **fields: Any) -> str:
        fields.setdefault("role", "ROLE_ADMIN")
        return tenant.stubs.create_key(**fields).token

    def scene(self) -> Scene:
        """Make a user with a key in the account that requests are about."""
        self._made += 1
        stubs = self._tenant.stubs
        user = stubs.create_user(f"user{self._made}@example.com")
        made = stubs.create_key(owner_id=user.id)
        return Scene(self._tenant.account_id, user.id, made.api_key.id, made.token)

    def token(self, caller: str) -> str | None:
        """Make a new key for a caller, so that one cell cannot spoil another."""
        tenant, admin = self._tenant, self.service.admin
        makers: dict[str, Callable[[], str | None]] = {
            "no token": lambda: None,
            "garbage": lambda: "garbage",
            "revoked": partial(self._revoked, tenant.stubs),
            "expired": lambda: self._expired,
            "validator": lambda: self._key_of(tenant, role="ROLE_VALIDATOR"),
            "developer": lambda: self._key_of(tenant, role="ROLE_DEVELOPER"),
            "admin": lambda: self._key_of(tenant),
            "admin of another account": lambda: self._key_of(self._other),
            "operator validator": lambda: admin.create_key(role="ROLE_VALIDATOR").token,
            "operator developer": lambda: admin.create_key(role="ROLE_DEVELOPER").token,
            "operator admin": lambda: admin.create_key(role="ROLE_ADMIN").token,
        }
        return makers[caller]()

    @staticmethod
    def _revoked(stubs: Stubs) -> str:
        made = stubs.create_key(role="ROLE_ADMIN")
        stubs.revoke(made.api_key.id)
        return made.token

    def result(self, method: str, caller: str) -> str:
        """Make the call of one cell; answer OK or the reason of the refusal."""
        self._clock.advance(HOUR)  # no bound on how often anybody may call is met
        request = TABLE[method][1](self.scene())
        payload = b"" if request is None else request.SerializeToString()
        token = self.token(caller)
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        channel: Any = self.service.channel()
        try:
            if method in STREAMS:
                stream = channel.stream_stream(method)(
                    iter([payload]), metadata=metadata, timeout=TIMEOUT_S
                )
                next(iter(stream))
                stream.cancel()
            else:
                channel.unary_unary(method)(payload, metadata=metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            return refusal.reason or refusal.code.name
        finally:
            channel.close()
            if method == ACCOUNTS + "DisableAccount":
                self.service.admin.accounts.EnableAccount(
                    account_service_pb2.EnableAccountRequest(id=self._tenant.account_id)
                )
        return OK


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Matrix]:
    """A service with two accounts beside the operator's."""
    clock = FakeClock()
    path = tmp_path_factory.mktemp("matrix") / "data"
    with running(path, clock, SeededEntropy(seed)) as service:
        yield Matrix(service, clock)


def test_every_method_that_is_served_has_a_row(matrix: Matrix) -> None:
    """What is guarded is what the table speaks of, no more and no less."""
    assert served_methods().keys() == set(TABLE)


@pytest.mark.parametrize("method", sorted(TABLE))
def test_every_caller_gets_what_the_table_says(matrix: Matrix, method: str) -> None:
    """All callers of one method."""
    assert {caller: matrix.result(method, caller) for caller in CALLERS} == dict(
        zip(CALLERS, TABLE[method][0], strict=True)
    )
