"""FastAPI: its TestClient, and the caller in routes."""

import warnings
from typing import Annotated

import fastapi
import pytest

from keybearer import (
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    AsyncVerifier,
    Identity,
    NoIdentityError,
    current_identity,
)
from keybearer.fastapi import KeyAuth
from keybearer.testing import FakeKeybearer

with warnings.catch_warnings():
    # Newer versions want the next httpx under another name, and work with this one.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


def application(verifier: AsyncVerifier) -> fastapi.FastAPI:
    """Return an application whose routes say who calls."""
    app = fastapi.FastAPI()
    guard = fastapi.Depends(KeyAuth(verifier)())

    @app.get("/async")
    async def of_a_coroutine(caller: Annotated[Identity, guard]) -> list[str]:
        return [caller.key_name, current_identity().key_name]

    @app.get("/sync")
    def of_a_thread(caller: Annotated[Identity, guard]) -> list[str]:
        return [caller.key_name, current_identity().key_name]

    @app.get("/decorated", dependencies=[guard])
    async def without_a_parameter() -> list[str]:
        return [current_identity().key_name] * 2

    @app.get("/public")
    async def public() -> str:
        try:
            return current_identity().key_name
        except NoIdentityError:
            return "nobody"

    return app


def _verifier(kind: str, keybearer: FakeKeybearer) -> AsyncVerifier:
    if kind == "fake":
        return keybearer.async_verifier()
    client = AsyncKeybearerClient(keybearer.address, token=keybearer.validator_token, tls=False)
    return AsyncRemoteVerifier(client) if kind == "remote" else AsyncCachingVerifier(client)


@pytest.mark.parametrize("kind", ["fake", "remote", "caching"])
def test_a_test_client_needs_no_with(kind: str, fake_keybearer: FakeKeybearer) -> None:
    """Without `with`, TestClient runs every request in an event loop of its own."""
    http = TestClient(application(_verifier(kind, fake_keybearer)))
    headers = {"authorization": f"Bearer {fake_keybearer.issue()}"}
    answers = [http.get("/async", headers=headers).status_code for _ in range(4)]
    assert answers == [200] * 4


@pytest.mark.parametrize("path", ["/async", "/sync", "/decorated"])
def test_a_route_finds_the_caller(path: str, fake_keybearer: FakeKeybearer) -> None:
    """`current_identity()` is the caller in every kind of route, and nobody afterwards."""
    headers = {"authorization": f"Bearer {fake_keybearer.issue(name='mine')}"}
    with TestClient(application(fake_keybearer.async_verifier())) as http:
        assert http.get(path, headers=headers).json() == ["mine", "mine"]
        assert http.get("/public", headers=headers).json() == "nobody"
    with pytest.raises(NoIdentityError):
        current_identity()
