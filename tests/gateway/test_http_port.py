"""The HTTP port: methods, paths, introspection, health, outages, TLS, and what is refused."""

import base64
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote_plus

import httpx
import pytest

from fakes import FakeClock, SeededEntropy
from gateway.gateway_clients import (
    ENTRY_POINTS,
    check_request,
    forward_auth_request,
    reason_in,
    send_check,
)
from gateway.support import Cast, Gated, cast, gated, tls_files
from harness import initialise, make_app, raising, refused
from keybearer_service.config import ConfigError, load_to_serve
from keybearer_service.http.listeners import HttpConfig, HttpListeners
from keybearer_service.net.addresses import Address, Listener, ListenError
from keybearer_service.net.tls import TlsFiles
from keybearer_service.storage import StoreLockedError
from reliability.hostile import HostileConnection


@pytest.mark.parametrize("path", ["/v1/auth", "/v1/auth/", "/v1/auth/orders/7?page=2"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_a_gateway_may_ask_with_its_clients_method_and_path(
    world: Gated, keys: Cast, method: str, path: str
) -> None:
    """Envoy asks with its client's method behind its client's path; the answer is the same."""
    answer = world.http.request(
        method, path, headers=forward_auth_request(keys.gateway, keys.good, ())
    )
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["x-keybearer-key-id"] == keys.good_key_id
    assert answer.headers["cache-control"] == "no-store"


def test_a_body_is_ignored(world: Gated, keys: Cast) -> None:
    """What a gateway passes on of its client's body changes nothing."""
    headers = forward_auth_request(keys.gateway, keys.good, ())
    body = b"required_role=ADMIN" * 1000
    assert world.http.post("/v1/auth", headers=headers, content=body).status_code == 200


def test_nobody_is_admitted_without_a_gateways_credential(world: Gated, keys: Cast) -> None:
    """A good key alone is worth nothing at the doors, and neither is two credentials."""
    mine = forward_auth_request(None, keys.good, ())
    twice = [*mine, *[("x-keybearer-caller", f"Bearer {keys.gateway}")] * 2]
    for headers in (mine, twice, [*mine, ("x-keybearer-caller", keys.gateway)]):
        answer = world.http.get("/v1/auth", headers=headers)
        assert answer.status_code == 403
        assert "x-keybearer-key-id" not in answer.headers
    request = check_request({"authorization": f"Bearer {keys.good}"}, {})
    assert refused(lambda: send_check(world, None, request)).reason == "CREDENTIALS_MISSING"


def test_a_clients_identity_headers_are_not_read(world: Gated, keys: Cast) -> None:
    """What a client says about itself neither helps nor harms."""
    spoofed = [("x-keybearer-role", "ADMIN"), ("x-keybearer-key-id", "evil")]
    headers = [*forward_auth_request(keys.gateway, keys.good, ()), *spoofed]
    answer = world.http.get("/v1/auth", headers=headers)
    assert answer.headers["x-keybearer-role"] == "DEVELOPER"
    assert answer.headers["x-keybearer-key-id"] == keys.good_key_id


def test_a_grpc_client_behind_a_relaying_gateway_gets_the_whole_status(
    world: Gated, keys: Cast
) -> None:
    """A denial of a gRPC request is a gRPC status with its details, in headers."""
    headers = [
        *forward_auth_request(keys.gateway, keys.good, [("required_role", "ADMIN")]),
        ("content-type", "application/grpc+proto"),
    ]
    answer = world.http.get("/v1/auth", headers=headers)
    assert (answer.status_code, answer.content) == (403, b"")
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.headers["grpc-status"] == "7"
    assert answer.headers["grpc-message"].startswith("this needs the role ADMIN")
    assert reason_in(answer.headers["grpc-status-details-bin"]) == "ROLE_INSUFFICIENT"


# --- Envoy's answer -------------------------------------------------------------------------------


def test_envoy_is_told_to_take_the_token_off(world: Gated, keys: Cast) -> None:
    """The upstream sees the client's token only where the route says so."""
    headers = {"authorization": f"Bearer {keys.good}"}
    for extensions, removed in (
        ({}, ["authorization"]),
        ({"keep_authorization": "false"}, ["authorization"]),
        ({"keep_authorization": "true"}, []),
    ):
        answer = send_check(world, keys.gateway, check_request(headers, extensions))
        assert list(answer.ok_response.headers_to_remove) == removed


def test_envoy_is_told_who_came_for_its_log(world: Gated, keys: Cast) -> None:
    """Dynamic metadata names the key, and holds no secret."""
    headers = {"authorization": f"Bearer {keys.good}"}
    answer = send_check(world, keys.gateway, check_request(headers, {}))
    facts = {name: one.string_value for name, one in answer.dynamic_metadata.fields.items()}
    assert facts["key_id"] == keys.good_key_id
    assert facts["role"] == "DEVELOPER"
    assert keys.good not in str(answer)


def test_envoy_may_send_raw_headers(world: Gated, keys: Cast) -> None:
    """With `encode_raw_headers` they come in another field; two credentials are none there too."""
    request = check_request({}, {})
    headers = request.attributes.request.http.header_map.headers
    headers.add(key="authorization", raw_value=f"Bearer {keys.good}".encode())
    assert send_check(world, keys.gateway, request).status.code == 0
    headers.add(key="authorization", raw_value=f"Bearer {keys.good}".encode())
    assert send_check(world, keys.gateway, request).status.code == 16


def test_an_http_client_of_envoy_is_denied_in_json(world: Gated, keys: Cast) -> None:
    """A denial has a body for programs and the challenge."""
    headers = {"authorization": f"Bearer {keys.revoked}"}
    denied = send_check(world, keys.gateway, check_request(headers, {})).denied_response
    names = {one.header.key: one.header.value for one in denied.headers}
    assert denied.status.code == 401
    assert json.loads(denied.body)["error"] == "CREDENTIALS_INVALID"
    assert names["content-type"] == "application/json"
    assert 'error="invalid_token"' in names["www-authenticate"]


# --- introspection --------------------------------------------------------------------------------


def test_introspection_tells_whose_token_it_is(world: Gated, keys: Cast) -> None:
    """The names of RFC 7662 and ours."""
    answer = ENTRY_POINTS["introspection"](world, keys.gateway, keys.good, ()).identity
    assert answer == {
        "active": True,
        "token_type": "Bearer",
        "client_id": keys.good_key_id,
        "sub": world.service.admin_user_id,
        "username": "admin@example.com",
        "scope": "clusters.read logs.*",
        "key_id": keys.good_key_id,
        "key_name": "Schlüssel 100%",
        "account_id": world.service.account_id,
        "owner_id": world.service.admin_user_id,
        "owner_email": "admin@example.com",
        "role": "DEVELOPER",
    }


def test_introspection_tells_when_a_token_ends(world: Gated, keys: Cast) -> None:
    """`exp` in seconds, as RFC 7519 counts."""
    until = world.clock.now() // 1_000_000 + 3600
    token = world.admin.create_key(expire_time={"seconds": until}).token
    assert ENTRY_POINTS["introspection"](world, keys.gateway, token, ()).identity["exp"] == until


def introspect(world: Gated, keys: Cast, **request: Any) -> httpx.Response:
    """Ask, in whatever form."""
    request.setdefault("headers", {"x-keybearer-caller": f"Bearer {keys.gateway}"})
    return world.http.post("/oauth2/introspect", **request)


def test_a_resource_server_may_authenticate_as_the_rfc_has_it(world: Gated, keys: Cast) -> None:
    """Existing clients know `Authorization` alone; both together are two credentials."""
    token = {"token": keys.good, "token_type_hint": "access_token"}
    headers = {"authorization": f"Bearer {keys.gateway}"}
    assert introspect(world, keys, headers=headers, data=token).json()["active"] is True
    both = {**headers, "x-keybearer-caller": f"Bearer {keys.gateway}"}
    refusal = introspect(world, keys, headers=both, data=token)
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"] == 'Bearer realm="keybearer"'


def ways_to_authenticate(keys: Cast, secret: str) -> dict[str, dict[str, Any]]:
    """Return every way in which a resource server may present a credential."""
    form = {"token": keys.good}
    pair = base64.b64encode(f"{'A' * 16}:{quote_plus(secret)}".encode()).decode()
    return {
        "our header": {"headers": {"x-keybearer-caller": f"Bearer {secret}"}, "data": form},
        "a bearer": {"headers": {"authorization": f"Bearer {secret}"}, "data": form},
        "client_secret_basic": {"headers": {"authorization": f"Basic {pair}"}, "data": form},
        "client_secret_post": {
            "headers": {},
            "data": {**form, "client_id": "A" * 16, "client_secret": secret},
        },
    }


WAYS = ("our header", "a bearer", "client_secret_basic", "client_secret_post")


@pytest.mark.parametrize("way", WAYS)
def test_a_resource_server_authenticates_in_any_one_way(world: Gated, keys: Cast, way: str) -> None:
    """The secret is the token of a VALIDATOR; a refusal names the scheme that was used."""
    answer = introspect(world, keys, **ways_to_authenticate(keys, keys.gateway)[way])
    assert (answer.status_code, answer.json()["active"]) == (200, True)
    for secret in (keys.unknown, keys.expired, keys.revoked):
        refusal = introspect(world, keys, **ways_to_authenticate(keys, secret)[way])
        assert refusal.status_code == 401
        scheme = "Basic" if way == "client_secret_basic" else "Bearer"
        assert refusal.headers["www-authenticate"].startswith(f'{scheme} realm="keybearer"')
    developer = introspect(world, keys, **ways_to_authenticate(keys, keys.good)[way])
    assert (developer.status_code, developer.json()["error"]) == (403, "ROLE_INSUFFICIENT")


@pytest.mark.parametrize("ways", [*itertools.combinations(WAYS, 2)], ids=" and ".join)
def test_two_ways_at_once_are_none(world: Gated, keys: Cast, ways: tuple[str, str]) -> None:
    """RFC 6749 section 2.3: a client must not use more than one, not even with the same secret."""
    one, other = (ways_to_authenticate(keys, keys.gateway)[way] for way in ways)
    headers = [*one["headers"].items(), *other["headers"].items()]
    answer = introspect(world, keys, headers=headers, data={**one["data"], **other["data"]})
    assert (answer.status_code, answer.json()["error"]) == (401, "CREDENTIALS_MISSING")


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic {token}",
        "Basic !{pair}",
        "Basic {bare}",
        "Basic {empty}",
        "Basic {pair}, Basic {pair}",
        "Basic {latin}",
        "Digest {pair}",
    ],
)
def test_an_ill_formed_basic_credential_is_none(
    world: Gated, keys: Cast, authorization: str
) -> None:
    """And it is no server error."""
    value = authorization.format(
        token=keys.gateway,
        pair=base64.b64encode(f"a:{keys.gateway}".encode()).decode(),
        bare=base64.b64encode(keys.gateway.encode()).decode(),
        empty=base64.b64encode(b"a:").decode(),
        latin=base64.b64encode(f"\xe9:{keys.gateway}".encode("latin-1")).decode(),
    )
    answer = introspect(world, keys, headers={"authorization": value}, data={"token": keys.good})
    assert (answer.status_code, answer.json()["error"]) == (401, "CREDENTIALS_MISSING")


@pytest.mark.parametrize("secrets", [["", "x"], ["x", ""], [""]], ids=str)
def test_an_ill_formed_secret_in_the_form_is_none(
    world: Gated, keys: Cast, secrets: list[str]
) -> None:
    """Neither an empty one, nor one of two."""
    given = [keys.gateway if one else "" for one in secrets]
    answer = introspect(world, keys, headers={}, data={"token": keys.good, "client_secret": given})
    assert (answer.status_code, answer.json()["error"]) == (401, "CREDENTIALS_MISSING")


def test_a_secret_in_the_form_is_not_the_token_in_question(world: Gated, keys: Cast) -> None:
    """And the other way round: only VALIDATORs learn anything."""
    form = {"token": keys.gateway, "client_secret": keys.good}
    assert introspect(world, keys, headers={}, data=form).status_code == 403


def test_a_requirement_in_the_form_counts(world: Gated, keys: Cast) -> None:
    """It would be sad to have it ignored."""
    for name, value in (
        ("required_role", "ADMIN"),
        ("required_scopes", "a.b"),
        ("account_id", "x"),
    ):
        answer = introspect(world, keys, data={"token": keys.good, name: value})
        assert (answer.status_code, answer.json()) == (200, {"active": False})


MALFORMED: dict[str, dict[str, Any]] = {
    "no token": {"data": {"other": "x"}},
    "an empty token": {"data": {"token": ""}},
    "two tokens": {"data": {"token": ["a", "b"]}},
    "json": {"json": {"token": "a"}},
    "no body": {},
    "a token in the query": {"params": {"token": "a"}, "data": {"token": "a"}},
    "too much": {"data": {"token": "a" * 9000}},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_introspection_is_400(world: Gated, keys: Cast, case: str) -> None:
    """What is no question gets no verdict."""
    answer = introspect(world, keys, **MALFORMED[case])
    assert answer.status_code == 400
    assert answer.json()["error"] == "FIELD_INVALID"


def test_introspection_is_never_a_get(world: Gated, keys: Cast) -> None:
    """A token in a URL stands in every log."""
    headers = {"x-keybearer-caller": f"Bearer {keys.gateway}"}
    answer = world.http.get(f"/oauth2/introspect?token={keys.good}", headers=headers)
    assert answer.status_code == 405


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_outage_is_no_verdict_at_any_door(world: Gated, keys: Cast, entry_point: str) -> None:
    """Without the store everybody hears UNAVAILABLE or 503, and nobody that a key is bad."""
    with world.outage():
        for token in (keys.good, keys.unknown):
            answer = ENTRY_POINTS[entry_point](world, keys.gateway, token, ())
            assert (answer.kind, answer.reason) == ("unavailable", "STORE_UNAVAILABLE")
        assert world.http.get("/readyz").status_code == 503
        assert world.http.get("/healthz").status_code == 200


def key_id_of(token: str) -> str:
    """Return the id of the key that a token names."""
    return token.split("_")[1]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_outage_between_gateway_and_client_is_no_verdict(
    world: Gated, keys: Cast, entry_point: str
) -> None:
    """The same when the gateway is still known and its client cannot be looked up."""
    look_up, look_up_many = world.store.lookup, world.store.lookup_many

    def look_up_gateway(key_id: str) -> Any:
        if key_id == key_id_of(keys.good):
            raise StoreLockedError("locked by the test")
        return look_up(key_id)

    def look_up_gateways(key_ids: Sequence[str]) -> Any:
        if key_id_of(keys.good) in key_ids:
            raise StoreLockedError("locked by the test")
        return look_up_many(key_ids)

    with world.store.replacing(lookup=look_up_gateway, lookup_many=look_up_gateways):
        answer = ENTRY_POINTS[entry_point](world, keys.gateway, keys.good, ())
    assert (answer.kind, answer.reason) == ("unavailable", "STORE_UNAVAILABLE")


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_pepper_that_is_missing_is_no_verdict(world: Gated, keys: Cast, entry_point: str) -> None:
    """A key whose digest cannot be computed is neither good nor bad, at every entry point."""
    look_up = world.store.lookup

    def look_up_without_pepper(key_id: str) -> Any:
        record, revision = look_up(key_id)
        if record is not None and key_id == key_id_of(keys.good):
            record = record._replace(pepper_id="NoSuchPepper0001")
        return record, revision

    with world.store.replacing(lookup=look_up_without_pepper):
        answer = ENTRY_POINTS[entry_point](world, keys.gateway, keys.good, ())
    assert (answer.kind, answer.reason) == ("unavailable", "STORE_UNAVAILABLE")


def test_what_nobody_foresaw_is_no_verdict_and_tells_nothing(world: Gated, keys: Cast) -> None:
    """A fault of ours is 500 with a reference, never 401, and never an exception's text."""
    with world.store.replacing(lookup=raising(ValueError(keys.good))):
        answer = world.http.get(
            "/v1/auth", headers=forward_auth_request(keys.gateway, keys.good, ())
        )
    assert answer.status_code == 500
    assert answer.json()["error"] == "INTERNAL"
    assert keys.good not in answer.text


def test_a_server_that_ends_says_so_to_probes(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """`/readyz` turns before the port closes."""
    with gated(tmp_path / "data", clock, entropy) as world:
        assert world.http.get("/readyz").text == "ready\n"
        world.service.app.drain()
        assert world.http.get("/readyz").status_code == 503


def test_every_port_ends_at_the_same_time(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """A call that is half sent has its grace, and the HTTP port does not wait for it to begin."""
    with (
        gated(tmp_path / "data", clock, entropy) as world,
        HostileConnection(world.service.address) as connection,
    ):
        app = world.service.app
        ending = threading.Thread(target=app.stop, args=(60,))
        connection.begin_call()
        connection.settle()
        ending.start()
        deadline = time.monotonic() + 30
        while somebody_listens(app.http_port):
            assert time.monotonic() < deadline
        assert ending.is_alive()
        connection.close()
        ending.join(30)
        assert not ending.is_alive()


def somebody_listens(port: int) -> bool:
    """Return whether anything listens on a port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


# --- what is refused at the start -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["listen", "http_listen", "metrics_listen", "console_listen"])
def test_plaintext_off_loopback_is_refused_on_every_port(name: str) -> None:
    """Tokens and metrics do not go over a network in plain text by accident."""
    beside = {"console_url": "https://keys.example.com"} if name == "console_listen" else {}
    with pytest.raises(ConfigError, match=f"^{name}: .*plain text"):
        load_to_serve(None, {name: "0.0.0.0:8081", **beside})
    load_to_serve(None, {name: "0.0.0.0:8081", "insecure": True, **beside})
    load_to_serve(None, {name: "127.0.0.1:8081"})


@pytest.mark.parametrize(
    "flags",
    [
        {"http_open": True, "http_account": "A" * 16},
        {"http_open": True, "http_listen": "127.0.0.1:0"},
        {"http_account": "A" * 16},
        {"http_account": "A" * 15, "http_listen": "127.0.0.1:0"},
        {"http_account": "-", "http_listen": "127.0.0.1:0"},
        {"http_listen": "unix:/tmp/keybearer"},
        {"http_listen": "8081"},
    ],
    ids=str,
)
def test_contradicting_flags_are_refused(flags: dict[str, Any]) -> None:
    """An open port is opened for somebody, and an account is an id or `*`."""
    with pytest.raises(ConfigError, match=r"^http_(open|account|listen): "):
        load_to_serve(None, flags)


def test_a_port_in_use_is_refused_and_leaves_nothing_open(world: Gated) -> None:
    """One line, and no second port left behind."""
    taken = Listener(address=Address("127.0.0.1", world.service.app.http_port))
    ports = HttpListeners(
        HttpConfig(gateway=Listener(address=Address("127.0.0.1", 0)), metrics=taken),
        gateway_routes=(),
        is_live=lambda: True,
        is_ready=lambda: True,
        render_metrics=lambda: (b"", ""),
    )
    with pytest.raises(ListenError, match="in use"):
        ports.bind()
    ports.close()


def test_an_account_that_does_not_exist_cannot_be_opened(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """A typing error in --http-account is reported at the start."""
    data_dir, _ = initialise(tmp_path / "data", clock, entropy)
    http = HttpConfig(gateway=Listener(address=Address("127.0.0.1", 0)), accounts="B" * 16)
    with pytest.raises(ListenError, match="http-account"):
        make_app(data_dir, clock, entropy, http=http)


# --- the open port --------------------------------------------------------------------------------


def test_an_open_port_answers_for_its_one_account_and_warns(
    tmp_path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No credential is asked, and no other account is reached."""
    with gated(tmp_path / "data", clock, entropy, is_open=True) as world:
        keys = cast(world)

        def status(token: str, *headers: tuple[str, str]) -> int:
            mine = [("authorization", f"Bearer {token}"), *headers]
            return world.http.get("/v1/auth", headers=mine).status_code

        assert status(keys.good) == 200
        assert status(keys.tenant) == 401
        assert status(keys.good, ("x-keybearer-account", world.service.account_id)) == 200
        for account in ("-", keys.tenant_account):
            assert status(keys.tenant, ("x-keybearer-account", account)) == 403
        request = check_request({"authorization": f"Bearer {keys.good}"}, {})
        assert refused(lambda: send_check(world, None, request)).reason == "CREDENTIALS_MISSING"
    assert "http_port_open" in capfd.readouterr().out


def test_a_credential_changes_nothing_on_an_open_port(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """A client that sends one itself cannot choose the account that it is judged in."""
    with gated(tmp_path / "data", clock, entropy, is_open=True) as world:
        keys = cast(world)
        tenants_admin = world.admin.create_account("other").token
        for credential in (
            keys.unknown,
            keys.revoked,
            keys.admin,
            keys.wide_gateway,
            keys.tenant_gateway,
            tenants_admin,
        ):
            mine = [("x-keybearer-caller", f"Bearer {credential}")]
            for token, expected in ((keys.good, 200), (keys.tenant, 401)):
                headers = [("authorization", f"Bearer {token}"), *mine]
                for sent in (headers, [*headers, *mine]):
                    assert world.http.get("/v1/auth", headers=sent).status_code == expected
                for way in (mine, [("authorization", f"Bearer {credential}")]):
                    response = world.http.post(
                        "/oauth2/introspect", data={"token": token}, headers=way
                    )
                    assert response.json()["active"] is (expected == 200)


def test_a_port_may_be_opened_for_every_account(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """With `*`; an account in a request narrows that."""
    with gated(tmp_path / "data", clock, entropy, is_open=True, accounts="*") as world:
        keys = cast(world)
        mine = {"x-keybearer-account": world.service.account_id}
        for token in (keys.good, keys.tenant):
            headers = {"authorization": f"Bearer {token}"}
            assert world.http.get("/v1/auth", headers=headers).status_code == 200
            narrowed = world.http.get("/v1/auth", headers={**headers, **mine})
            assert narrowed.status_code == (200 if token == keys.good else 401)


def test_the_settings_may_widen_what_operators_gateways_ask_about(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """With --http-account and without --http-open, and never for a tenant's gateway."""
    with gated(tmp_path / "data", clock, entropy, accounts="*") as world:
        keys = cast(world)
        for gateway, token, expected in (
            (keys.gateway, keys.good, 200),
            (keys.gateway, keys.tenant, 200),
            (keys.tenant_gateway, keys.good, 401),
            (keys.tenant_gateway, keys.tenant, 200),
        ):
            headers = forward_auth_request(gateway, token, ())
            assert world.http.get("/v1/auth", headers=headers).status_code == expected
        assert world.http.get("/v1/auth").status_code == 403


# --- TLS ------------------------------------------------------------------------------------------


def test_the_http_port_serves_tls_and_takes_new_files(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """A renewed certificate is served without a restart."""
    files = tls_files(tmp_path / "tls", "first.example.com")
    with gated(tmp_path / "data", clock, entropy, tls=files) as world:
        assert world.http.get("/healthz").status_code == 200
        port = world.service.app.http_port
        first = ssl.get_server_certificate(("127.0.0.1", port))
        assert first == files.certificate.read_text()
        tls_files(tmp_path / "tls", "second.example.com")
        second = ssl.get_server_certificate(("127.0.0.1", port))
        assert second == files.certificate.read_text() != first
        files.certificate.write_text("no certificate")
        assert ssl.get_server_certificate(("127.0.0.1", port)) == second


def trusting(files: TlsFiles) -> ssl.SSLContext:
    """Trust one certificate and no other."""
    return ssl.create_default_context(cafile=files.certificate)


def test_a_client_certificate_is_asked_for_on_the_http_port_too(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """With --tls-client-ca and nothing else nobody reaches any port without one."""
    files = tls_files(tmp_path / "tls", "localhost", with_client_ca=True)
    with gated(tmp_path / "data", clock, entropy, tls=files, metrics=True) as world:
        for port in (world.service.app.http_port, world.service.app.metrics_port):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"https://localhost:{port}/healthz", verify=trusting(files))
            context = trusting(files)
            context.load_cert_chain(files.certificate, files.key)
            answer = httpx.get(f"https://localhost:{port}/healthz", verify=context)
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("metrics_tls", "scheme"), [("off", "http"), ("server", "https"), ("mutual", "")]
)
def test_metrics_may_have_another_tls_than_tokens(
    tmp_path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    metrics_tls: Literal["off", "server", "mutual"],
    scheme: str,
) -> None:
    """A kubelet and Prometheus have no client certificate, and ask where none is asked for."""
    files = tls_files(tmp_path / "tls", "localhost", with_client_ca=True)
    settings = load_to_serve(
        None,
        {
            "metrics_listen": "0.0.0.0:9464",
            "metrics_tls": metrics_tls,
            "tls_cert": files.certificate,
            "tls_key": files.key,
            "tls_client_ca": files.client_ca,
        },
    )
    with gated(
        tmp_path / "data",
        clock,
        entropy,
        tls=files,
        metrics=True,
        metrics_tls=settings.tls_of_metrics,
    ) as world:
        reached = {
            f"{tried}:{path}"
            for tried in ("http", "https")
            for path in ("/healthz", "/readyz", "/metrics")
            if is_answered(f"{tried}://localhost:{world.service.app.metrics_port}{path}", files)
        }
        assert reached == {
            f"{scheme}:{path}" for path in ("/healthz", "/readyz", "/metrics") if scheme
        }
        assert not is_answered(f"https://localhost:{world.service.app.http_port}/healthz", files)


def is_answered(url: str, files: TlsFiles) -> bool:
    """Return whether a client without a certificate gets an answer."""
    try:
        return httpx.get(url, verify=trusting(files)).status_code == 200
    except httpx.HTTPError:
        return False


def test_plaintext_metrics_off_loopback_are_allowed_where_they_are_meant() -> None:
    """Said for that port, and for no other."""
    meant = {"metrics_listen": "0.0.0.0:9464", "metrics_tls": "off"}
    assert load_to_serve(None, meant).tls_of_metrics is None
    with pytest.raises(ConfigError, match=r"^http_listen: .*plain text"):
        load_to_serve(None, {**meant, "http_listen": "0.0.0.0:8081"})


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"metrics_tls": "off"}, "needs metrics_listen"),
        ({"metrics_tls": "server"}, "server needs tls_cert"),
        ({"metrics_tls": "mutual"}, "mutual needs .* tls_client_ca"),
        (
            {"metrics_tls": "mutual", "tls_cert": "cert.pem", "tls_key": "key.pem"},
            "mutual needs .* tls_client_ca",
        ),
        ({"metrics_tls": "on"}, "'off', 'server' or 'mutual'"),
    ],
    ids=str,
)
def test_a_tls_of_metrics_that_cannot_be_is_refused(flags: dict[str, Any], why: str) -> None:
    """By name, with what would be right."""
    given = flags if "listen" in why else {**flags, "metrics_listen": "127.0.0.1:0"}
    with pytest.raises(ConfigError, match=f"^metrics_tls: .*{why}"):
        load_to_serve(None, given)
