"""No secret on disk, in logs or in answers that are no answer to a issuer: promise P5."""

import base64
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from fakes import FakeClock, SeededEntropy
from harness import Stubs, message, running
from keybearer.v1 import (
    account_service_pb2,
    api_key_service_pb2,
    token_service_pb2,
    user_service_pb2,
)
from keybearer_service.domain.clock import HOUR
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.token_format import draw_secret, write
from keybearer_service.endpoints import SERVICES
from keybearer_service.storage import dbapi
from keybearer_service.storage.sqlite import SqliteStore
from reliability.processes import ServerProcess, answer, command, init, serving
from reliability.secret_scan import files_below, hunt, spellings
from reliability.seeded_bugs import KeepsFreedPages


def every_method(server: ServerProcess, tokens: list[str]) -> int:
    """Call every method with every token, with nothing and with garbage to say."""
    calls = 0
    channel = server.channel()
    for service in SERVICES:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            for token in tokens:
                for body in (b"", b"\xff" + token.encode(), b"\x0a\x49" + token.encode()):
                    send(channel, path, token, body, streaming=method.client_streaming)
                    calls += 1
    return calls


def send(channel: grpc.Channel, path: str, token: str, body: bytes, *, streaming: bool) -> None:
    """Make one call, whatever comes of it."""
    metadata = (("authorization", f"Bearer {token}"),)
    with suppress(grpc.RpcError):
        if streaming:
            stream: Callable[..., Iterator[bytes]] = channel.stream_stream(path)
            list(stream(iter([body]), metadata=metadata, timeout=2))
        else:
            call: Callable[..., bytes] = channel.unary_unary(path)
            call(body, metadata=metadata, timeout=5)


def story(admin: Stubs, server: ServerProcess) -> Iterator[str]:
    """Have every way of minting issuer, and answer the tokens."""
    account = admin.accounts.CreateAccount(
        account_service_pb2.CreateAccountRequest(
            name="tenant",
            admin_email="tenant@example.com",
            admin_display_name="Tenant",
            request_id=str(uuid.uuid4()),
        )
    )
    yield account.token
    request = {"name": "k", "never_expires": True, "request_id": str(uuid.uuid4())}
    created = admin.create_key(**request)
    yield created.token
    yield admin.create_key(**request, attempt=1).token
    rotated = admin.keys.RotateApiKey(
        message(
            api_key_service_pb2.RotateApiKeyRequest,
            id=created.api_key.id,
            overlap=timedelta(hours=1),
        )
    )
    yield rotated.token
    admin.validate(rotated.token, account_id="-")
    holder = server.stubs(rotated.token)
    renewed = holder.tokens.RotateSelf(token_service_pb2.RotateSelfRequest())
    yield renewed.token
    reported = admin.create_key()
    yield reported.token
    holder.tokens.RevokeToken(token_service_pb2.RevokeTokenRequest(token=reported.token))
    owner = admin.create_user("owner@example.com")
    yield admin.create_key(owner_id=owner.id).token
    admin.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=owner.id))
    asked = [message(token_service_pb2.ValidateTokenRequest, token=reported.token)]
    admin.tokens.BatchValidateTokens(
        message(token_service_pb2.BatchValidateTokensRequest, requests=asked)
    )


def run_through_everything(path: Path, bugs: tuple[str, ...] = ()) -> list[str]:
    """KeyIssuer, present and refuse tokens everywhere; answers where any of them was found."""
    data, backups = path / "data", path / "backups"
    backups.mkdir()
    ids = init(data)
    entropy = SystemEntropy()
    # Well-formed, and of nothing.
    tokens = [ids["token"], write("kbear1", entropy.base62(16), draw_secret(entropy))]
    places: dict[str, bytes] = {}
    with serving(data, bugs=bugs, flags=["--log-level", "debug"]) as server:
        admin = server.stubs(ids["token"])
        tokens += story(admin, server)
        tokens.append(
            answer("admin-token", "--data-dir", str(data), "--email", "glass@example.com")["token"]
        )
        calls = every_method(server, tokens[: 1 if bugs else 4])
        for number, words in enumerate(
            (
                ["backup", str(backups / "one.db")],
                ["audit", "export"],
                ["audit", "verify"],
                ["check"],
                ["pepper", "add"],
                ["pepper", "list"],
            )[: 1 if bugs else None]
        ):
            done = command(*words, "--data-dir", str(data))
            assert done.returncode == 0, done.stderr
            places[f"{number} {' '.join(words[:2])}"] = (done.stdout + done.stderr).encode()
        places.update({f"live {name}": text for name, text in files_below(data).items()})
        assert server.stop() == 0
        places["log"] = bytes(server.output)
    places.update(files_below(data, backups))
    sys.stdout.write(
        f"{len(tokens)} tokens, {calls} calls, {sum(map(len, places.values()))} bytes searched\n"
    )
    assert len(places["log"]) > 1000
    return hunt(tokens, places)


def test_no_token_is_written_down_anywhere(tmp_path: Path) -> None:
    """After every method, refused and failing calls and every command, no token is found."""
    assert run_through_everything(tmp_path) == []


def test_a_token_in_the_log_is_found(tmp_path: Path) -> None:
    """The hunt finds a token that a planted line writes in hexadecimal."""
    assert any(" hex in log" in one for one in run_through_everything(tmp_path, ("log-token",)))


@pytest.mark.parametrize("around", [b"", b"x", b"xy", b"xyz"])
def test_every_spelling_is_found(around: bytes) -> None:
    """A secret is found in base64 too, wherever in the encoded text it stands."""
    token = write("kbear1", "0" * 16, draw_secret(SeededEntropy(1)))
    text = base64.b64encode(around + token.encode() + around)
    assert hunt([token], {"text": text})
    assert {how for how, _ in spellings("a")} >= {"raw", "reversed", "hex"}


def dead_digests(
    path: Path, clock: FakeClock, seed: int, store: type[SqliteStore]
) -> tuple[int, int]:
    """Rotate many keys; answers how many digests died, and how many are still in the file."""
    with running(path, clock, SeededEntropy(seed), opener=store) as service:
        admin, database = service.admin, service.data_dir.database
        ids = [admin.create_key(name=f"key {number}").api_key.id for number in range(40)]
        before = digests(database)
        for number, key_id in enumerate(ids):
            request = api_key_service_pb2.RotateApiKeyRequest(id=key_id)
            if number % 2:
                request.overlap.FromSeconds(3600)
            admin.keys.RotateApiKey(request)
        clock.advance(2 * HOUR)
        for key_id in ids:
            # The next write to the key, after the overlap.
            admin.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key_id))
        dead = before - digests(database)
    content = database.read_bytes()
    return len(dead), sum(digest in content for digest in dead)


def digests(database: Path) -> set[bytes]:
    """Read the digests that rows hold."""
    connection = dbapi.connect(str(database))
    try:
        return {
            digest
            for row in connection.execute("SELECT digest, old_digest FROM api_keys")
            for digest in row
            if digest is not None
        }
    finally:
        connection.close()


def test_dead_digests_are_erased(tmp_path: Path, clock: FakeClock, seed: int) -> None:
    """What is left of a rotated secret is gone from the file's free space too."""
    assert dead_digests(tmp_path / "data", clock, seed, SqliteStore) == (40, 0)


def test_digests_in_freed_pages_are_found(tmp_path: Path, clock: FakeClock, seed: int) -> None:
    """The search finds digests when the store does not overwrite what it frees."""
    dead, left = dead_digests(tmp_path / "data", clock, seed, KeepsFreedPages)
    assert dead == 40
    assert left
