"""Peppers that are retired, removed or missing: what the tokens under them answer."""

from concurrent import futures

import grpc
import pytest

from fakes import FakeClock
from harness import Service, Stubs, message, refused
from keybearer import KeybearerClient, Presented, RemoteVerifier
from keybearer.errors import VerifierUnavailableError
from keybearer.v1 import token_service_pb2
from keybearer_service.domain.clock import HOUR, MINUTE
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.peppers import add_pepper, list_peppers, retire_pepper


def add(service: Service) -> tuple[str, str]:
    """Add a pepper; return the ids of the one before and of the new one."""
    container = service.only_node.container
    (old, _), *_ = list_peppers(container.store, container.clock.now())
    new = add_pepper(container.mutations, container.keyring, container.entropy, service.account_id)
    return old.id, new.id


def retire(service: Service, pepper_id: str) -> None:
    """Retire a pepper."""
    retire_pepper(service.app.container.mutations, service.account_id, pepper_id)


def forget(service: Service, pepper_id: str) -> None:
    """Remove the file of a pepper, and have the server read its key files as after a restart."""
    (service.data_dir.peppers / f"{pepper_id}.pepper").unlink()
    service.restart()


def batch(stubs: Stubs, *tokens: str) -> list[token_service_pb2.ValidateTokenResponse]:
    """Validate tokens in one call."""
    request = message(
        token_service_pb2.BatchValidateTokensRequest, requests=[{"token": one} for one in tokens]
    )
    return list(stubs.tokens.BatchValidateTokens(request).responses)


@pytest.fixture
def expired(service: Service, admin: Stubs, clock: FakeClock) -> tuple[str, str, str]:
    """A token that has expired under the first pepper, its key's id and that pepper's."""
    made = admin.create_key(ttl={"seconds": 60}, role="ROLE_VALIDATOR")
    old, _ = add(service)
    service.admin_token = admin.rotate_self().token
    clock.advance(HOUR)
    return made.token, made.api_key.id, old


def test_expired_keys_do_not_keep_a_pepper(service: Service, expired: tuple[str, str, str]) -> None:
    """It retires although their rows name it; as long as its file is there they are EXPIRED."""
    token, _, old = expired
    retire(service, old)
    assert service.admin.outcome(token) == "EXPIRED"
    assert refused(service.as_token(token).who_am_i).reason == "CREDENTIALS_EXPIRED"


def test_live_keys_keep_a_pepper(service: Service, admin: Stubs, clock: FakeClock) -> None:
    """Also those that expire in a moment, those that are disabled, and old secrets in overlap."""
    old, _ = add(service)
    service.admin_token = admin.rotate_self(overlap={"seconds": 60}).token
    with pytest.raises(LocalError, match="needed by 1 live secrets"):
        retire(service, old)
    clock.advance(MINUTE)
    retire(service, old)


def test_without_the_file_of_its_retired_pepper_a_token_opens_nothing(
    service: Service, expired: tuple[str, str, str]
) -> None:
    """NOT_FOUND and CREDENTIALS_INVALID, as for any secret that cannot be told from a wrong one."""
    token, _, old = expired
    retire(service, old)
    forget(service, old)
    admin = service.admin
    assert admin.outcome(token) == "NOT_FOUND"
    assert [one.outcome for one in batch(admin, token)] == [2]
    assert refused(service.as_token(token).who_am_i).reason == "CREDENTIALS_INVALID"
    admin.revoke_token(token)
    assert admin.create_key().token


def test_a_running_server_learns_that_a_pepper_was_retired(
    service: Service, expired: tuple[str, str, str]
) -> None:
    """A server that was started without the file, before the pepper was retired beside it."""
    token, _, old = expired
    forget(service, old)
    assert refused(lambda: service.admin.outcome(token)).reason == "STORE_UNAVAILABLE"
    retire(service, old)
    assert service.admin.outcome(token) == "NOT_FOUND"


def test_a_key_whose_pepper_is_gone_is_not_revived(
    service: Service, expired: tuple[str, str, str]
) -> None:
    """Extending its expiry is refused, and so is a new secret; revoking it is not."""
    _, key_id, old = expired
    retire(service, old)
    forget(service, old)
    admin = service.admin
    refusal = refused(lambda: admin.update_key(key_id, paths=["expiration"], never_expires=True))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_EXPIRED")
    assert refused(lambda: admin.rotate(key_id)).reason == "KEY_EXPIRED"
    assert admin.update_key(key_id, {"name": "gone"}).name == "gone"
    assert admin.revoke(key_id).HasField("revoke_time")


def test_one_missing_pepper_does_not_fail_a_batch(
    service: Service, admin: Stubs, expired: tuple[str, str, str]
) -> None:
    """The token under it gets no verdict, to be used for nothing; ValidateToken is UNAVAILABLE."""
    token, _, old = expired
    forget(service, old)
    admin = service.admin
    live = admin.create_key().token
    before, unjudged, after, unknown = batch(admin, live, token, live, "nonsense")
    assert before.valid
    assert after.valid
    assert unknown.outcome == 2
    assert unjudged == message(
        token_service_pb2.ValidateTokenResponse, cache_for={}, revision=before.revision
    )
    refusal = refused(lambda: admin.outcome(token))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert refused(service.as_token(token).who_am_i).reason == "STORE_UNAVAILABLE"


def test_a_server_starts_without_a_pepper_that_no_live_secret_needs(
    service: Service, admin: Stubs
) -> None:
    """New secrets are under the newest one that can be read."""
    old, new = add(service)
    forget(service, new)
    made = service.admin.create_key()
    assert service.admin.outcome(made.token) == "VALID"
    container = service.app.container
    needed = {one.id: count for one, count in list_peppers(container.store, container.clock.now())}
    assert needed[new] == 0
    assert needed[old] == 2


def test_one_missing_pepper_does_not_fail_checks_that_go_together(
    service: Service, expired: tuple[str, str, str]
) -> None:
    """A verifier gets every other verdict, and for that token none, however often it asks."""
    token, _, old = expired
    forget(service, old)
    good = [service.admin.create_key().token for _ in range(8)]
    with (
        KeybearerClient(service.address, token=service.admin_token, tls=False) as client,
        futures.ThreadPoolExecutor(16) as pool,
    ):
        verifier = RemoteVerifier(client, timeout=10)
        missing = [pool.submit(verifier.verify, Presented(token)) for _ in range(4)]
        others = [pool.submit(verifier.verify, Presented(one)) for one in good * 4]
        assert all(check.result().valid for check in others)
        assert all(isinstance(one.exception(), VerifierUnavailableError) for one in missing)
