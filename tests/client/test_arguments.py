"""Arguments of a wrong type or form: an error that names them, before anything is sent."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from client.support import COMPLETE, DEMO
from keybearer import (
    NEVER_EXPIRES,
    AccessRule,
    ApiKeyState,
    AsyncAuthInterceptor,
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    AuthInterceptor,
    CachingVerifier,
    KeybearerClient,
    RemoteVerifier,
    RevocationReason,
    Role,
    RuleError,
    TLSConfig,
    UserType,
    errors,
)
from keybearer.credentials import (
    async_bearer_interceptors,
    bearer_call_credentials,
    bearer_interceptor,
)
from keybearer.fastapi import KeyAuth
from keybearer.testing import FakeKeybearer
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

NOWHERE = "127.0.0.1:1"
"""Nothing listens there: a call that is sent fails as UNAVAILABLE."""
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - the point of the test
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


def client() -> Any:
    """Return a client that nobody answers."""
    return KeybearerClient(NOWHERE, token="unsent", tls=False, timeout=0.5)


def create(**arguments: Any) -> Any:
    """Create a key, with one argument that is wrong."""
    right = {"name": "ci", "role": Role.DEVELOPER, "expiration": NEVER_EXPIRES}
    return client().create_api_key(**{**right, **arguments})


WRONG_EXPIRATIONS: dict[str, Any] = {
    "a number": 3600,
    "a fraction": 0.5,
    "zero": 0,
    "text": "30d",
    "a date": date(2030, 1, 1),
    "None": None,
    "True": True,
    "False": False,
    "the text of NEVER_EXPIRES": "NEVER_EXPIRES",
    "the value of NEVER_EXPIRES": NEVER_EXPIRES.value,
    "the class of NEVER_EXPIRES": type(NEVER_EXPIRES),
    "a class": timedelta,
}


@pytest.mark.parametrize("name", WRONG_EXPIRATIONS)
def test_no_mistake_makes_a_key_that_never_expires(name: str) -> None:
    """NEVER_EXPIRES alone means never; anything else of a wrong type is a TypeError."""
    with pytest.raises(TypeError, match=r"expiration.*datetime.*timedelta.*NEVER_EXPIRES"):
        create(expiration=WRONG_EXPIRATIONS[name])


@pytest.mark.parametrize("name", [name for name in WRONG_EXPIRATIONS if name != "None"])
def test_no_mistake_updates_a_key_to_never_expire(name: str) -> None:
    """The same in an update, where None leaves the expiration as it is."""
    with pytest.raises(TypeError, match=r"expiration.*datetime.*timedelta.*NEVER_EXPIRES"):
        client().update_api_key("a" * 16, expiration=WRONG_EXPIRATIONS[name])


@pytest.mark.parametrize("name", WRONG_EXPIRATIONS)
def test_no_mistake_makes_an_account_whose_key_never_expires(name: str) -> None:
    """The same for the first key of an account."""
    with pytest.raises(TypeError, match=r"ttl.*timedelta.*NEVER_EXPIRES"):
        client().create_account(
            "research",
            admin_email="lee@example.com",
            admin_display_name="Lee",
            ttl=WRONG_EXPIRATIONS[name],
        )


@pytest.mark.parametrize("expiration", [MOMENT, timedelta(days=1), NEVER_EXPIRES])
def test_each_right_expiration_is_sent(expiration: Any) -> None:
    """The three right kinds of expiration reach the connection."""
    with pytest.raises(errors.UnavailableError):
        client().update_api_key("a" * 16, expiration=expiration)


Call = Callable[[Any], Any]
WRONG: dict[str, tuple[Call, type[Exception], str]] = {
    "expiration: a naive datetime": (lambda _: create(expiration=NAIVE), ValueError, "expiration"),
    "overlap_end_time: a naive datetime": (
        lambda c: c.update_api_key("x", overlap_end_time=NAIVE),
        ValueError,
        "overlap_end_time",
    ),
    "overlap_end_time: a timedelta": (
        lambda c: c.update_api_key("x", overlap_end_time=timedelta(1)),
        TypeError,
        "overlap_end_time",
    ),
    "expires_before: a naive datetime": (
        lambda c: next(c.list_api_keys(expires_before=NAIVE)),
        ValueError,
        "expires_before",
    ),
    "unused_since: a date": (
        lambda c: next(c.list_api_keys(unused_since=date(2030, 1, 1))),
        TypeError,
        "unused_since",
    ),
    "after: text": (lambda c: next(c.list_audit_events(after="7d")), TypeError, "after"),
    "before: a number": (lambda c: next(c.list_audit_events(before=1)), TypeError, "before"),
    "overlap: None": (lambda c: c.rotate_api_key("x", overlap=None), TypeError, "overlap"),
    "overlap: a number": (lambda c: c.rotate_api_key("x", overlap=60), TypeError, "overlap"),
    "overlap of the own key": (lambda c: c.rotate_self(overlap=None), TypeError, "overlap"),
    "role: text": (lambda _: create(role="developer"), TypeError, r"role.*Role\.DEVELOPER"),
    "role: a number": (lambda _: create(role=2), TypeError, "role"),
    "role: True": (lambda _: create(role=True), TypeError, "role"),
    "role: None": (lambda _: create(role=None), TypeError, "role"),
    "role: of another enum": (lambda _: create(role=UserType.PERSON), TypeError, "role"),
    "role of a user": (lambda c: c.update_user("x", role="admin"), TypeError, "role"),
    "type of a user": (
        lambda c: c.create_user("a@example.com", display_name="a", role=Role.ADMIN, type="person"),
        TypeError,
        "type",
    ),
    "reason: text": (lambda c: c.revoke_api_key("x", reason="lost"), TypeError, "reason"),
    "required_role: text": (
        lambda c: c.validate_token("x", required_role="admin"),
        TypeError,
        "required_role",
    ),
    "states: one member": (
        lambda c: next(c.list_api_keys(states=ApiKeyState.ACTIVE)),
        TypeError,
        "states",
    ),
    "states: text": (lambda c: next(c.list_api_keys(states="ACTIVE")), TypeError, "states"),
    "states: None": (lambda c: next(c.list_api_keys(states=None)), TypeError, "states"),
    "roles: of another enum": (
        lambda c: next(c.list_users(roles=[UserType.PERSON])),
        TypeError,
        r"roles\[0\]",
    ),
    "actions: text": (lambda c: next(c.list_audit_events(actions=["x"])), TypeError, "actions"),
    "scopes: text": (lambda _: create(scopes="ab"), TypeError, "scopes"),
    "scopes: bytes": (lambda _: create(scopes=b"ab"), TypeError, "scopes"),
    "scopes: a mapping": (lambda _: create(scopes={"a": "b"}), TypeError, "scopes"),
    "scopes: None": (lambda _: create(scopes=None), TypeError, "scopes"),
    "scopes: numbers": (lambda _: create(scopes=["a", 1]), TypeError, r"scopes\[1\]"),
    "scopes of an update": (lambda c: c.update_api_key("x", scopes="ab"), TypeError, "scopes"),
    "required_scopes: text": (
        lambda c: c.validate_token("x", required_scopes="ab"),
        TypeError,
        "required_scopes",
    ),
    "tokens: text": (lambda c: c.batch_validate_tokens("ab"), TypeError, "tokens"),
    "labels: pairs": (lambda _: create(labels=[("a", "b")]), TypeError, "labels"),
    "labels: numbers": (lambda _: create(labels={"a": 1}), TypeError, r"labels\['a'\]"),
    "labels of an update": (lambda c: c.update_api_key("x", labels="a=b"), TypeError, "labels"),
    "name: None": (lambda _: create(name=None), TypeError, "name"),
    "name: bytes": (lambda _: create(name=b"ci"), TypeError, "name"),
    "name: half a character": (lambda _: create(name="\ud800"), ValueError, "name"),
    "labels: half a character": (
        lambda _: create(labels={"a": "\ud800"}),
        ValueError,
        r"labels\['a'\]",
    ),
    "scopes: half a character": (lambda _: create(scopes=["\ud800"]), ValueError, r"scopes\[0\]"),
    "display_name: half a character": (
        lambda c: c.update_user("x", display_name="\udcff"),
        ValueError,
        "display_name",
    ),
    "account_id: None": (lambda _: create(account_id=None), TypeError, "account_id"),
    "owner_id: None": (lambda _: create(owner_id=None), TypeError, "owner_id"),
    "etag: None": (lambda c: c.update_api_key("x", name="a", etag=None), TypeError, "etag"),
    "key_id: None": (lambda c: c.disable_api_key(None), TypeError, "key_id"),
    "token: None": (lambda c: c.validate_token(None), TypeError, "token"),
    "token: bytes": (lambda c: c.revoke_token(b"x"), TypeError, "token"),
    "request_id: None": (lambda _: create(request_id=None), TypeError, "request_id"),
    "attempt: None": (lambda _: create(attempt=None), TypeError, "attempt"),
    "attempt: True": (lambda _: create(attempt=True), TypeError, "attempt"),
    "page_size: text": (lambda c: next(c.list_api_keys(page_size="9")), TypeError, "page_size"),
    "page_size: too large": (
        lambda c: next(c.list_accounts(page_size=2**31)),
        ValueError,
        "page_size",
    ),
    "validate_only: None": (
        lambda c: c.delete_user("x", validate_only=None),
        TypeError,
        "validate_only",
    ),
    "validate_only: text": (
        lambda c: c.delete_user("x", validate_only="no"),
        TypeError,
        "validate_only",
    ),
    "revoke_created: a number": (
        lambda c: c.delete_user("x", revoke_created=1),
        TypeError,
        "revoke_created",
    ),
    "note: bytes": (
        lambda c: c.revoke_api_key("x", reason=RevocationReason.LOST, note=b"x"),
        TypeError,
        "note",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    """The error is a TypeError or a ValueError that names the argument, and nothing is sent."""
    call, error_class, named = WRONG[name]
    with pytest.raises(error_class) as raised:
        call(client())
    assert re.match(named, str(raised.value)), raised.value
    # A lone surrogate is a UnicodeEncodeError to protobuf, which is a ValueError too.
    assert type(raised.value) is error_class


def test_a_wrong_token_is_not_repeated() -> None:
    """The error about a token does not show it."""
    with pytest.raises(TypeError) as raised:
        client().validate_token(b"kbear1_secret")
    assert "secret" not in str(raised.value)


# --- clients, verifiers, guards -------------------------------------------------------------------


def _client(**arguments: Any) -> KeybearerClient:
    right: dict[str, Any] = {"address": NOWHERE, "token": "own", "tls": False}
    return KeybearerClient(**{**right, **arguments})


def _async_client() -> AsyncKeybearerClient:
    return AsyncKeybearerClient(NOWHERE, token="own", tls=False)


def _guard(**arguments: Any) -> AuthInterceptor:
    return AuthInterceptor(RemoteVerifier(_client()), **arguments)


def _call_with_source(source: Any) -> None:
    _client(token=source).who_am_i()


ANY: Any = None
"""For values of a wrong type, which mypy would refuse."""
WRONG_PARTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "address: a URL": (
        lambda: _client(address="https://keys.example.com:443"),
        ValueError,
        "address.*'keys.example.com:443'.*tls=False",
    ),
    "address: a URL, asyncio": (
        lambda: AsyncKeybearerClient("http://localhost:50051", token="own"),
        ValueError,
        "address.*'localhost:50051'",
    ),
    "address: empty": (lambda: _client(address=""), ValueError, "address"),
    "address: with a newline": (lambda: _client(address="a:1\n"), ValueError, "address"),
    "address: bytes": (lambda: _client(address=b"a:1"), TypeError, "address"),
    "address: None": (lambda: _client(address=None), TypeError, "address"),
    "token: empty": (lambda: _client(token=""), ValueError, "token"),
    "token: a newline": (lambda: _client(token="\n"), ValueError, "token"),
    "token: two words": (lambda: _client(token="a b"), ValueError, "token"),
    "token: bytes": (lambda: _client(token=b"kbear1_secret"), TypeError, "token.*bytes"),
    "token: a source of bytes": (
        lambda: _call_with_source(lambda: b"kbear1_secret"),
        TypeError,
        "token.*bytes",
    ),
    "token: a source of nothing": (
        lambda: _call_with_source(lambda: None),
        TypeError,
        "token.*None",
    ),
    "token: bytes, asyncio": (
        lambda: AsyncKeybearerClient(NOWHERE, token=b"kbear1_secret"),  # type: ignore[arg-type]
        TypeError,
        "token",
    ),
    "token: of call credentials": (lambda: bearer_call_credentials(""), ValueError, "token"),
    "token: of an interceptor": (lambda: bearer_interceptor(ANY), TypeError, "token"),
    "token: of interceptors": (lambda: async_bearer_interceptors(ANY), TypeError, "token"),
    "tls: text": (lambda: _client(tls="false"), TypeError, "tls"),
    "tls: None": (lambda: _client(tls=None), TypeError, "tls"),
    "timeout: text": (lambda: _client(timeout="3"), TypeError, "timeout"),
    "timeout: zero": (lambda: _client(timeout=0), ValueError, "timeout"),
    "timeout: a timedelta": (lambda: _client(try_timeout=timedelta(1)), TypeError, "try_timeout"),
    "ca: a path": (lambda: TLSConfig(ca="ca.pem"), TypeError, "ca.*from_files"),  # type: ignore[arg-type]
    "cert without a key": (lambda: TLSConfig(cert=b"x"), ValueError, "cert and key"),
    "verifier: the client for asyncio": (
        lambda: RemoteVerifier(_async_client()),  # type: ignore[arg-type]
        TypeError,
        "RemoteVerifier needs a KeybearerClient, not an AsyncKeybearerClient",
    ),
    "verifier: the client for threads": (
        lambda: AsyncCachingVerifier(_client()),  # type: ignore[arg-type]
        TypeError,
        "AsyncCachingVerifier needs an AsyncKeybearerClient",
    ),
    "verifier: the class": (lambda: CachingVerifier(KeybearerClient), TypeError, "Caching"),  # type: ignore[arg-type]
    "verifier: an address": (lambda: AsyncRemoteVerifier(NOWHERE), TypeError, "AsyncRemote"),  # type: ignore[arg-type]
    "verifier: no token": (lambda: RemoteVerifier(_client(token=None)), ValueError, "token"),
    "verifier: account_id": (
        lambda: RemoteVerifier(_client(), account_id=ANY),
        TypeError,
        "account_id",
    ),
    "verifier: timeout": (lambda: RemoteVerifier(_client(), timeout=-1), ValueError, "timeout"),
    "verifier: max_entries": (
        lambda: CachingVerifier(_client(), max_entries=0),
        ValueError,
        "max_entries",
    ),
    "guard: a client": (
        lambda: AuthInterceptor(_client()),  # type: ignore[arg-type]
        TypeError,
        r"AuthInterceptor needs a verifier, such as CachingVerifier\(client\)",
    ),
    "guard: a class": (lambda: AuthInterceptor(CachingVerifier), TypeError, "Auth"),  # type: ignore[arg-type]
    "guard: a client, asyncio": (
        lambda: AsyncAuthInterceptor(_async_client()),  # type: ignore[arg-type]
        TypeError,
        "AsyncAuthInterceptor needs a verifier",
    ),
    "guard: ASGI": (lambda: AuthMiddleware(ANY, _async_client()), TypeError, "AuthMiddle"),  # type: ignore[arg-type]
    "guard: WSGI": (lambda: WSGIAuthMiddleware(ANY, _client()), TypeError, "WSGIAuth"),  # type: ignore[arg-type]
    "guard: FastAPI": (lambda: KeyAuth(_async_client()), TypeError, "KeyAuth"),  # type: ignore[arg-type]
    "guard: a rule that is a role": (
        lambda: WSGIAuthMiddleware(ANY, RemoteVerifier(_client()), rule=Role.ADMIN),  # type: ignore[arg-type]
        TypeError,
        "rule",
    ),
    "rules: without a slash": (
        lambda: _guard(rules={"test.guarded.Demo/Any": AccessRule()}),
        RuleError,
        "rules: 'test.guarded.Demo/Any' is not /package.Service/Method",
    ),
    "rules: the method alone": (
        lambda: _guard(rules={"Any": AccessRule()}),
        RuleError,
        "rules: 'Any'",
    ),
    "rules: an unknown method": (
        lambda: _guard(rules={"/test.guarded.Demo/Anny": AccessRule()}),
        RuleError,
        "rules: test.guarded.Demo has no method 'Anny'",
    ),
    "rules: a role": (
        lambda: _guard(rules={"/test.guarded.Demo/Any": Role.ADMIN}),
        TypeError,
        "rules",
    ),
    "rules: pairs": (lambda: _guard(rules=[("/a/b", AccessRule())]), TypeError, "rules"),
    "public_methods: text": (
        lambda: _guard(public_methods="/test.guarded.Demo/Any"),
        TypeError,
        "public_methods",
    ),
    "public_methods: without a slash": (
        lambda: _guard(public_methods=["test.guarded.Demo/Any"]),
        RuleError,
        "public_methods",
    ),
    "services: a descriptor alone": (lambda: _guard(services=DEMO), TypeError, "services"),
    "services: names": (lambda: _guard(services=["Demo"]), TypeError, "services"),
    "rejudge_after: zero": (lambda: _guard(rejudge_after=0), ValueError, "rejudge_after"),
    "rule: text for scopes": (lambda: AccessRule(scopes="ab"), TypeError, "scopes"),  # type: ignore[arg-type]
    "rule: text for a role": (
        lambda: AccessRule(role="developer"),  # type: ignore[arg-type]
        TypeError,
        r"role.*Role\.DEVELOPER",
    ),
    "rule: a role alone": (lambda: AccessRule(only_roles=Role.ADMIN), TypeError, "only_roles"),  # type: ignore[arg-type]
    "rule: text for public": (lambda: AccessRule(public="no"), TypeError, "public"),  # type: ignore[arg-type]
    "fake: text for a role": (
        lambda: FakeKeybearer().issue("developer"),  # type: ignore[arg-type]
        TypeError,
        "role",
    ),
    "fake: text for scopes": (lambda: FakeKeybearer().issue(scopes="ab"), TypeError, "scopes"),
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_a_wrong_part_is_named_when_it_is_put_together(name: str) -> None:
    """A client, a verifier, a guard or a rule that cannot work is rejected where it is made."""
    make, error_class, named = WRONG_PARTS[name]
    with pytest.raises(error_class, match=named) as raised:
        make()
    assert "secret" not in str(raised.value)


def test_right_parts_are_taken() -> None:
    """Lists instead of tuples, paths of other services, and addresses of every kind gRPC knows."""
    rule = AccessRule(scopes=["a"], only_roles=[Role.ADMIN])  # type: ignore[arg-type]
    assert (rule.scopes, rule.only_roles) == (("a",), (Role.ADMIN,))
    _guard(
        services=[COMPLETE],
        rules={"/elsewhere.Service/Method": AccessRule(), "/test.guarded.Demo/Any": AccessRule()},
        public_methods=["/test.guarded.Demo/Public"],
    )
    for address in ("localhost:1", "dns:///localhost:1", "unix:/tmp/x", "unix:///tmp/x", "[::1]:1"):
        _client(address=address)
    _client(token="with a newline at its end\n".replace(" ", "_"))
    _client(token=lambda: "current")
