"""KeybearerClient and AsyncKeybearerClient against the real service."""

import asyncio
import inspect
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from client.support import serving
from fakes import FakeClock
from harness import Service
from keybearer import (
    NEVER_EXPIRES,
    ApiKeyState,
    AsyncAuthInterceptor,
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    AuditAction,
    AuthInterceptor,
    CachingVerifier,
    KeybearerClient,
    Outcome,
    RemoteVerifier,
    RevocationReason,
    Role,
    TLSConfig,
    UserType,
    errors,
)
from keybearer._client import client as client_module
from keybearer._client import requests
from keybearer._client.requests import Pages, Request
from keybearer.fastapi import KeyAuth
from keybearer.testing import FakeKeybearer
from keybearer.v1 import token_service_pb2
from keybearer.web import WSGIAuthMiddleware
from keybearer_service.endpoints import SERVICES


@pytest.fixture
def client(service: Service) -> Iterator[KeybearerClient]:
    """A client with the credential of the first administrator."""
    with KeybearerClient(service.address, token=service.admin_token, tls=False) as client:
        yield client


def test_keys_live_as_the_description_tells(client: KeybearerClient, clock: FakeClock) -> None:
    """Keys are created, listed, shown, updated, disabled, enabled, rotated and revoked."""
    issued = client.create_api_key(
        "ci",
        role=Role.DEVELOPER,
        expiration=timedelta(days=30),
        description="of the build",
        scopes=["clusters.read"],
        labels={"team": "build"},
    )
    key = issued.api_key
    now = datetime.fromtimestamp(clock.now() / 1e6, UTC)
    assert (key.name, key.description, key.role) == ("ci", "of the build", Role.DEVELOPER)
    assert (key.scopes, key.labels) == (("clusters.read",), {"team": "build"})
    assert (key.state, key.create_time) == (ApiKeyState.ACTIVE, now)
    assert key.expire_time == now + timedelta(days=30)
    assert client.get_api_key(key.id) == key
    assert key in list(client.list_api_keys(states=[ApiKeyState.ACTIVE], name_contains="CI"))

    verdict = client.validate_token(issued.token, required_scopes=["clusters.read"])
    assert verdict.valid
    assert verdict.identity is not None
    assert verdict.identity.key_id == key.id
    assert verdict.cache_for == timedelta(seconds=60)

    assert client.update_api_key(key.id, name="cd", expiration=NEVER_EXPIRES).name == "cd"
    assert client.get_api_key(key.id).expire_time is None
    assert client.disable_api_key(key.id).state is ApiKeyState.DISABLED
    assert client.validate_token(issued.token).outcome is Outcome.DISABLED
    assert client.enable_api_key(key.id).state is ApiKeyState.ACTIVE

    rotated = client.rotate_api_key(key.id, overlap=timedelta(hours=1))
    assert rotated.api_key.overlap_end_time == now + timedelta(hours=1)
    verdicts = client.batch_validate_tokens([issued.token, rotated.token, "nothing"])
    assert [one.valid for one in verdicts] == [True, True, False]

    revoked = client.revoke_api_key(key.id, reason=RevocationReason.LOST, note="on a train")
    assert (revoked.state, revoked.revoke_time) == (ApiKeyState.REVOKED, now)
    assert revoked.revocation_reason is RevocationReason.LOST
    assert client.validate_token(rotated.token).outcome is Outcome.REVOKED


def test_users_and_accounts_are_managed(client: KeybearerClient) -> None:
    """Every method for users and accounts works."""
    user = client.create_user(
        "dev@example.com", display_name="Dev", role=Role.ADMIN, type=UserType.PERSON
    )
    assert client.get_user(user.id) == user
    assert user in list(client.list_users(roles=[Role.ADMIN], types=[UserType.PERSON]))
    assert client.update_user(user.id, role=Role.DEVELOPER).role is Role.DEVELOPER
    key = client.create_api_key(
        "theirs", role=Role.DEVELOPER, expiration=NEVER_EXPIRES, owner_id=user.id
    ).api_key
    assert client.delete_user(user.id, validate_only=True).revoked_key_ids == (key.id,)
    assert client.get_api_key(key.id).state is ApiKeyState.ACTIVE
    assert client.delete_user(user.id).revoked_key_count == 1
    assert client.get_api_key(key.id).revocation_reason is RevocationReason.OWNER_DELETED

    issued = client.create_account(
        "tenant", admin_email="admin@example.com", admin_display_name="Admin"
    )
    account = issued.account
    assert client.get_account(account.id) == account
    assert account in list(client.list_accounts(name_contains="tenant"))
    assert client.disable_account(account.id).disable_time is not None
    assert client.validate_token(issued.token, account_id="-").outcome is Outcome.DISABLED
    assert client.enable_account(account.id).disable_time is None
    assert client.validate_token(issued.token, account_id=account.id).valid


def test_a_caller_learns_about_itself_and_renews_its_secret(
    client: KeybearerClient, service: Service
) -> None:
    """WhoAmI, RotateSelf and RevokeToken work, the last without another credential."""
    assert client.who_am_i().is_operator
    issued = client.create_api_key("self", role=Role.VALIDATOR, expiration=timedelta(days=1))
    with KeybearerClient(service.address, token=issued.token, tls=False) as own:
        caller = own.who_am_i()
        assert caller.identity.key_id == issued.api_key.id
        assert caller.expires_soon
        renewed = own.rotate_self()
        assert own.who_am_i().overlap_end_time is not None
    with KeybearerClient(service.address, tls=False) as nobody:
        nobody.revoke_token(renewed.token)
        nobody.revoke_token("nothing")
    assert client.validate_token(renewed.token).outcome is Outcome.REVOKED


def test_lists_are_read_page_by_page(client: KeybearerClient) -> None:
    """Every item comes once and in order, however small the pages are."""
    made = [
        client.create_api_key(f"key {number}", role=Role.VALIDATOR, expiration=NEVER_EXPIRES)
        for number in range(7)
    ]
    listed = client.list_api_keys(name_contains="key ", order_by="name", page_size=2)
    assert [key.id for key in listed] == [one.api_key.id for one in made]
    events = list(client.list_audit_events(actions=[AuditAction.API_KEY_CREATED], page_size=3))
    assert [event.target.id for event in events] == [one.api_key.id for one in reversed(made)]
    assert all(event.seq > 0 and event.hash and event.time.tzinfo for event in events)


def test_the_client_for_asyncio_does_the_same(service: Service) -> None:
    """The asynchronous client creates, lists, changes and validates."""

    async def token() -> str:
        return service.admin_token

    async def run() -> None:
        async with AsyncKeybearerClient(service.address, token=token, tls=False) as client:
            issued = await client.create_api_key(
                "async", role=Role.DEVELOPER, expiration=NEVER_EXPIRES
            )
            listed = [key async for key in client.list_api_keys(name_contains="async")]
            assert listed == [issued.api_key]
            assert [user async for user in client.list_users(page_size=1)]
            assert (await client.validate_token(issued.token)).valid
            await client.revoke_api_key(issued.api_key.id, reason=RevocationReason.LOST)
            assert not (await client.validate_token(issued.token)).valid
            with pytest.raises(errors.ResourceNotFoundError):
                await client.get_api_key("0" * 16)

    asyncio.run(run())


def test_both_clients_offer_every_call() -> None:
    """Each RPC but the stream is a function of `requests` and, with its signature, of both."""
    functions = {
        name: function
        for name, function in vars(requests).items()
        if inspect.isfunction(function)
        and function.__module__ == requests.__name__
        and name[0] != "_"
    }
    served = {method.name for service in SERVICES for method in service.methods}
    assert {name.replace("_", "") for name in functions} == {
        name.lower() for name in served - {"WatchInvalidations"}
    }
    for client_class in (KeybearerClient, AsyncKeybearerClient):
        for name, function in functions.items():
            method = getattr(client_class, name)
            signature = inspect.signature(method)
            assert [*signature.parameters][1:] == [*inspect.signature(function).parameters]
            assert signature.return_annotation not in (Request, Pages)
            assert method.__doc__ == function.__doc__


def test_errors_are_typed_by_their_reason(client: KeybearerClient) -> None:
    """The class, the reason, the metadata and the fields come from the service's details."""
    with pytest.raises(errors.ResourceNotFoundError) as missing:
        client.get_api_key("0" * 16)
    assert missing.value.code is grpc.StatusCode.NOT_FOUND
    assert missing.value.metadata["id"] == "0" * 16
    assert isinstance(missing.value.__cause__, grpc.RpcError)

    with pytest.raises(errors.FieldInvalidError) as invalid:
        client.create_api_key("", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    assert [one.field for one in invalid.value.field_violations] == ["name"]

    with pytest.raises(errors.FieldInvalidError):
        client.update_api_key(client.who_am_i().identity.key_id)
    with pytest.raises(errors.LastAdminError):
        client.delete_user(client.who_am_i().identity.owner_id)


def test_a_token_is_asked_for_at_every_call(service: Service, client: KeybearerClient) -> None:
    """A callable token source is called for every call."""
    current = [service.admin_token + "\n"]
    with KeybearerClient(service.address, token=lambda: current[0], tls=False) as renewing:
        renewing.who_am_i()
        current[0] = client.rotate_self(overlap=timedelta()).token
        assert renewing.who_am_i().identity.secret_version == 2


@pytest.mark.parametrize("token", ["", "  \n", "a b", "a\nb", "ä"])
def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it(token: str) -> None:
    """A malformed token is rejected without repeating it, also one that a source returns."""
    with pytest.raises(ValueError, match="the token") as raised:
        KeybearerClient("127.0.0.1:1", token=token, tls=False)
    with (
        KeybearerClient("127.0.0.1:1", token=lambda: token, tls=False) as client,
        pytest.raises(ValueError, match="the token"),
    ):
        client.who_am_i()
    assert not token.strip() or token not in str(raised.value)


def test_secrets_stay_out_of_reprs(client: KeybearerClient, service: Service) -> None:
    """No `repr` of a client or a result contains a token."""
    issued = client.create_api_key("secret", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    account = client.create_account("a", admin_email="a@example.com", admin_display_name="A")
    shown = f"{client!r} {issued!r} {account!r} {TLSConfig(cert=b'public', key=b'private')!r}"
    for secret in (issued.token, account.token, service.admin_token, "private"):
        assert secret not in shown


def test_what_a_traceback_shows_of_a_call_holds_no_token() -> None:
    """Tools that show the variables of every frame show our own objects by their `repr`."""
    with (
        KeybearerClient("127.0.0.1:1", token="kbear1_hidden", tls=False) as client,
        pytest.raises(errors.UnavailableError) as raised,
    ):
        client.validate_token("kbear1_shown")
    frames = [entry.frame for entry in raised.traceback if "keybearer/_client" in str(entry.path)]
    objects = [
        value
        for frame in frames
        for value in frame.f_locals.values()
        if type(value).__module__.startswith("keybearer.") and not isinstance(value, Message)
    ]
    assert any(isinstance(one, requests.Request) for one in objects)
    assert "kbear1" not in repr(objects)


def test_a_read_is_tried_again_and_a_change_is_not(
    fake_keybearer: FakeKeybearer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read is repeated after a broken connection, a change is not."""
    tries = []
    honest = client_module.KeybearerClient._try

    def count(self: KeybearerClient, request: Request[object], timeout: float) -> object:
        tries.append(request.kind)
        return honest(self, request, timeout)

    monkeypatch.setattr(client_module.KeybearerClient, "_try", count)
    with KeybearerClient("127.0.0.1:1", token="token", tls=False) as client:
        with pytest.raises(errors.UnavailableError):
            client.who_am_i()
        with pytest.raises(errors.UnavailableError):
            client.disable_api_key("id")
    assert tries == [requests.Kind.READ] * 3 + [requests.Kind.WRITE]


def test_a_read_that_a_stopping_server_cancels_is_tried_again() -> None:
    """A server cancels what it has taken and not begun; that says nothing about the call."""
    asked = []

    def who_am_i(_: Any, context: grpc.ServicerContext) -> token_service_pb2.WhoAmIResponse:
        asked.append(True)
        if len(asked) == 1:
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return token_service_pb2.WhoAmIResponse(
            valid=True, key_id="id", account_id="account", owner_id="owner"
        )

    handler = grpc.unary_unary_rpc_method_handler(
        who_am_i,
        token_service_pb2.WhoAmIRequest.FromString,
        token_service_pb2.WhoAmIResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("keybearer.v1.TokenService", {"WhoAmI": handler})
    with serving([], service) as address, KeybearerClient(address, token="t", tls=False) as client:
        assert client.who_am_i().identity.key_id == "id"


@pytest.mark.parametrize("flavour", ["threads", "asyncio"])
def test_a_deadline_of_ours_ends_a_call_that_hangs(
    flavour: str, fake_keybearer: FakeKeybearer
) -> None:
    """A call that hangs ends after the timeout of the client."""

    def call() -> None:
        with KeybearerClient(
            fake_keybearer.address, token="token", tls=False, timeout=0.3
        ) as client:
            client.who_am_i()

    async def call_async() -> None:
        async with AsyncKeybearerClient(
            fake_keybearer.address, token="token", tls=False, timeout=0.3
        ) as client:
            await client.who_am_i()

    started = time.monotonic()
    with fake_keybearer.stall(), pytest.raises(errors.DeadlineExceededError):
        call() if flavour == "threads" else asyncio.run(call_async())
    assert 0.25 < time.monotonic() - started < 3


def test_an_overload_tells_when_to_try_again(fake_keybearer: FakeKeybearer) -> None:
    """RetryInfo arrives as seconds."""
    trouble = fake_keybearer.outage(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    with (
        trouble,
        KeybearerClient(fake_keybearer.address, token="token", tls=False) as client,
        pytest.raises(errors.OverloadedError) as raised,
    ):
        client.who_am_i()
    assert raised.value.retry_after == 1.0


def test_a_client_works_again_after_close_and_after_fork(fake_keybearer: FakeKeybearer) -> None:
    """A closed client and a forked one open a new connection."""
    token = fake_keybearer.validator_token
    client = KeybearerClient(fake_keybearer.address, token=token, tls=False)
    client.who_am_i()
    client.close()
    client.who_am_i()
    client._pid = -1  # as a child of fork finds it
    before = client._channel
    client.who_am_i()
    assert client._channel is not before
    client.close()


def test_reprs_say_what_is_connected_to_what() -> None:
    """Verifiers and guards name their service and their account, and no token."""
    client = KeybearerClient("127.0.0.1:1", token="kbear1_hidden", tls=False)
    async_client = AsyncKeybearerClient("127.0.0.1:1", token="kbear1_hidden", tls=False)
    made: list[object] = [
        AuthInterceptor(RemoteVerifier(client, account_id="A")),
        AuthInterceptor(CachingVerifier(client, account_id="A")),
        AsyncAuthInterceptor(AsyncRemoteVerifier(async_client, account_id="A")),
        AsyncAuthInterceptor(AsyncCachingVerifier(async_client, account_id="A")),
        KeyAuth(AsyncRemoteVerifier(async_client, account_id="A")),
        WSGIAuthMiddleware(lambda _, __: [], RemoteVerifier(client, account_id="A")),
    ]
    for one in made:
        shown = repr(one)
        assert shown.startswith(type(one).__name__)
        assert "Verifier(" in shown
        assert "'127.0.0.1:1'" in shown
        assert "account_id='A'" in shown
        assert "hidden" not in shown
