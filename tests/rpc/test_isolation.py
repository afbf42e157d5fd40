"""Another account's things answer exactly as if they did not exist."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, Tenant, running
from keybearer.v1 import token_service_pb2

NOTHING = "0" * 16


@dataclass
class Pair:
    """Two accounts with the same things in them, and a key and a user for each."""

    service: Service
    mine: Tenant
    theirs: Tenant
    their_token: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Pair]:
    """Two tenants beside the operator; nothing in these tests changes them."""
    path = tmp_path_factory.mktemp("pair") / "data"
    with running(path, FakeClock(), SeededEntropy(seed)) as service:
        mine, theirs = service.tenant("mine"), service.tenant("theirs")
        yield Pair(service, mine, theirs, theirs.stubs.create_key(name="theirs").token)


KEY_CALLS: dict[str, Callable[[Stubs, str], Any]] = {
    "GetApiKey": lambda stubs, key: stubs.key(key),
    "UpdateApiKey": lambda stubs, key: stubs.update_key(key, {"name": "x"}),
    "UpdateApiKey with a wrong etag": lambda stubs, key: stubs.update_key(
        key, {"name": "x"}, etag="wrong"
    ),
    "DisableApiKey": lambda stubs, key: stubs.disable_key(key),
    "EnableApiKey": lambda stubs, key: stubs.enable_key(key),
    "RotateApiKey": lambda stubs, key: stubs.rotate(key),
    "RevokeApiKey": lambda stubs, key: stubs.revoke(key),
}
USER_CALLS: dict[str, Callable[[Stubs, str], Any]] = {
    "GetUser": lambda stubs, user: stubs.user(user),
    "UpdateUser": lambda stubs, user: stubs.update_user(user, {"display_name": "x"}),
    "DeleteUser": lambda stubs, user: stubs.delete_user(user),
    "DeleteUser, tried out": lambda stubs, user: stubs.delete_user(user, validate_only=True),
    "CreateApiKey": lambda stubs, user: stubs.create_key(owner_id=user),
}


def answer(call: Callable[[], Any], asked: str) -> tuple[object, ...]:
    """Make a refused call; answer everything that came back, but for the id that was asked."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    trailers = {
        key: value.replace(asked.encode(), b"ID")
        for key, value in error.trailing_metadata()
        if isinstance(value, bytes)
    }
    assert trailers
    return error.code(), error.details(), trailers


@pytest.mark.parametrize("name", sorted(KEY_CALLS))
def test_another_accounts_key_is_as_unknown_as_none(pair: Pair, name: str) -> None:
    """Status, text and details are the same, byte for byte."""
    stubs, foreign = pair.mine.stubs, pair.theirs.key_id
    theirs = answer(lambda: KEY_CALLS[name](stubs, foreign), foreign)
    assert theirs[0] is grpc.StatusCode.NOT_FOUND
    assert theirs == answer(lambda: KEY_CALLS[name](stubs, NOTHING), NOTHING)


@pytest.mark.parametrize("name", sorted(USER_CALLS))
def test_another_accounts_user_is_as_unknown_as_none(pair: Pair, name: str) -> None:
    """Status, text and details are the same, byte for byte."""
    stubs, foreign = pair.mine.stubs, pair.theirs.user_id
    theirs = answer(lambda: USER_CALLS[name](stubs, foreign), foreign)
    assert theirs[0] is grpc.StatusCode.NOT_FOUND
    assert theirs == answer(lambda: USER_CALLS[name](stubs, NOTHING), NOTHING)


def test_another_accounts_things_are_in_no_list(pair: Pair) -> None:
    """Neither keys, nor users, nor events, also when they are asked for by id."""
    stubs, theirs = pair.mine.stubs, pair.theirs
    assert {one.account_id for one in stubs.list_keys().api_keys} == {pair.mine.account_id}
    assert {one.account_id for one in stubs.list_users().users} == {pair.mine.account_id}
    assert {one.account_id for one in stubs.events()} <= {pair.mine.account_id}
    assert not stubs.list_keys(owner_id=theirs.user_id).api_keys
    assert not stubs.events(target_id=theirs.key_id)
    assert not stubs.events(actor_id=theirs.user_id)


def test_another_accounts_page_token_is_foreign(pair: Pair) -> None:
    """It is bound to its account."""
    token = pair.theirs.stubs.list_keys(page_size=1).next_page_token
    assert token
    refusal = answer(lambda: pair.mine.stubs.list_keys(page_token=token), token)
    assert refusal[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_was_done_to_the_other_account(pair: Pair) -> None:
    """After all of the above its key and user are as they were."""
    for name in sorted(KEY_CALLS):
        answer(lambda name=name: KEY_CALLS[name](pair.mine.stubs, pair.theirs.key_id), "-")  # type: ignore[misc]
    key = pair.theirs.stubs.key(pair.theirs.key_id)
    assert (key.state, key.secret_version, key.name) == (1, 1, "first admin key")
    assert pair.theirs.stubs.who_am_i().valid


def _comparable(verdict: token_service_pb2.ValidateTokenResponse) -> bytes:
    copy = token_service_pb2.ValidateTokenResponse()
    copy.CopyFrom(verdict)
    copy.ClearField("revision")
    return copy.SerializeToString(deterministic=True)


def test_another_accounts_token_is_as_unknown_as_none(pair: Pair) -> None:
    """NOT_FOUND, byte for byte as for garbage, whatever is required."""
    stubs = pair.mine.stubs
    for required in ({}, {"required_role": "ROLE_ADMIN"}, {"required_scopes": ["a"]}):
        theirs = stubs.validate(pair.their_token, **required)
        assert theirs.outcome == token_service_pb2.VALIDATION_OUTCOME_NOT_FOUND
        assert _comparable(theirs) == _comparable(stubs.validate("garbage", **required))


def test_a_batch_keeps_accounts_apart_too(pair: Pair) -> None:
    """Each item by itself."""
    request = token_service_pb2.BatchValidateTokensRequest(
        requests=[
            token_service_pb2.ValidateTokenRequest(token=one)
            for one in (pair.their_token, pair.mine.stubs.token, "garbage")
        ]
    )
    verdicts = pair.mine.stubs.tokens.BatchValidateTokens(request).responses
    assert [one.outcome for one in verdicts] == [2, 1, 2]
    assert _comparable(verdicts[0]) == _comparable(verdicts[2])
