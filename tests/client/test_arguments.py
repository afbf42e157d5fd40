"""Arguments of a wrong type or form: an error that names them, before anything is sent."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from keybearer import (
    NEVER_EXPIRES,
    ApiKeyState,
    KeybearerClient,
    RevocationReason,
    Role,
    UserType,
    errors,
)

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
