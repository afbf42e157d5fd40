"""What a provider, or somebody in its place, can say: what is wrong is refused with its reason."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from console.provider import (
    CLIENT_ID,
    KEYS,
    STRANGER,
    HostileProvider,
    callback,
    provider_running,
    signed,
    signed_by_public_key,
    unsigned,
)
from console.signing import SignIns, signing_in
from console.site import SESSION, Site
from fakes import FakeClock
from keybearer_service.console.fetching import Fetcher, FetchFailed
from keybearer_service.domain.clock import HOUR, MINUTE

SECRET = "top secret: %/+&"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service whose client has a secret, and a provider, for all tests of this file."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret").write_text(f"{SECRET}\n")
    client = {"secret_file": folder / "secret"}
    with signing_in(folder / "data", client=client, key_sign_in="on") as running:
        running.provider.secret = SECRET
        with running.browser() as site:
            user_id, _ = running.administrator()
            running.accept(site, running.invite(user_id), "alice")
        yield running


@pytest.fixture
def sign_ins(shared: SignIns) -> Iterator[SignIns]:
    """The same; what the provider said before has been forgotten."""
    shared.next_minute()
    shared.clock.advance(10 * MINUTE)
    yield shared
    shared.provider.secret = SECRET


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser in which nobody is signed in."""
    with sign_ins.browser() as opened:
        yield opened


def assert_refused(sign_ins: SignIns, site: Site, status: int, reason: str) -> None:
    """Check that nobody is signed in, and what the audit log says of it."""
    assert SESSION not in site.cookies
    if status == 403:
        assert sign_ins.refusals()[0] == reason


# --- the control ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(KEYS))
def test_a_good_provider_is_believed(sign_ins: SignIns, site: Site, algorithm: str) -> None:
    """With a key of each kind; so what follows is refused for what is wrong with it."""
    sign_ins.provider.algorithm = algorithm
    assert sign_ins.sign_in(site, "alice").status == 200


def test_ps256_is_believed(sign_ins: SignIns, site: Site) -> None:
    """With the RSA key, which says nothing of its algorithm."""
    sign_ins.provider.header = lambda header: {**header, "alg": "PS256"}
    assert sign_ins.sign_in(site, "alice").status == 200


# --- claims ---------------------------------------------------------------------------------------

CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "issuer of another": ({"iss": "https://id.example.com"}, "ISSUER"),
    "issuer with a slash": ({"iss": "{issuer}/"}, "ISSUER"),
    "no issuer": ({"iss": None}, "ISSUER"),
    "issuer that is a list": ({"iss": ["{issuer}"]}, "ISSUER"),
    "for another client": ({"aud": "another"}, "AUDIENCE"),
    "for nobody": ({"aud": []}, "AUDIENCE"),
    "no audience": ({"aud": None}, "AUDIENCE"),
    "an audience that is an object": ({"aud": {CLIENT_ID: 1}}, "AUDIENCE"),
    "an audience that holds ours as a part": ({"aud": f"{CLIENT_ID}-2"}, "AUDIENCE"),
    "for several, by nobody": ({"aud": [CLIENT_ID, "another"]}, "AUTHORIZED_PARTY"),
    "for several, by another": (
        {"aud": [CLIENT_ID, "another"], "azp": "another"},
        "AUTHORIZED_PARTY",
    ),
    "by another": ({"azp": "another"}, "AUTHORIZED_PARTY"),
    "by a list": ({"azp": [CLIENT_ID]}, "AUTHORIZED_PARTY"),
    "nonce of another": ({"nonce": "another"}, "NONCE"),
    "no nonce": ({"nonce": None}, "NONCE"),
    "nonce that is a list": ({"nonce": ["{nonce}"]}, "NONCE"),
    "expired": ({"exp": -61}, "EXPIRED"),
    "no end": ({"exp": None}, "CLAIM_EXP"),
    "end as text": ({"exp": "2999-01-01"}, "CLAIM_EXP"),
    "end that is true": ({"exp": True}, "CLAIM_EXP"),
    "end without end": ({"exp": float("inf")}, "CLAIM_EXP"),
    "end beyond all time": ({"exp": 1e300}, "CLAIM_EXP"),
    "issued in the future": ({"iat": 120}, "ISSUED_IN_FUTURE"),
    "issued long ago": ({"iat": -661}, "ISSUED_LONG_AGO"),
    "never issued": ({"iat": None}, "CLAIM_IAT"),
    "issued at no number": ({"iat": float("nan")}, "CLAIM_IAT"),
    "not valid yet": ({"nbf": 120}, "NOT_YET_VALID"),
    "never signed in": ({"auth_time": None}, "CLAIM_AUTH_TIME"),
    "signed in long ago": ({"auth_time": -(8 * 3600 + 61)}, "SIGNED_IN_LONG_AGO"),
    "signed in in the future": ({"auth_time": 120}, "SIGNED_IN_IN_FUTURE"),
    "no subject": ({"sub": None}, "SUBJECT"),
    "an empty subject": ({"sub": ""}, "SUBJECT"),
    "a subject that is a number": ({"sub": 7}, "SUBJECT"),
    "a long subject": ({"sub": "a" * 256}, "SUBJECT"),
    "a subject with a line": ({"sub": "alice\nadmin"}, "SUBJECT"),
    "a session that is a list": ({"sid": ["s"]}, "CLAIM_SID"),
    "another access token": ({"at_hash": "x" * 22}, "ACCESS_TOKEN_HASH"),
    "an access token's hash that is a list": ({"at_hash": []}, "ACCESS_TOKEN_HASH"),
}
TIMES = frozenset({"exp", "iat", "nbf", "auth_time"})


@pytest.mark.parametrize("case", sorted(CLAIMS))
def test_an_id_token_with_a_wrong_claim_is_refused(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """Times are seconds from now on; None leaves the claim out."""
    changes, reason = CLAIMS[case]
    provider = sign_ins.provider

    def changed(claims: dict[str, Any]) -> dict[str, Any]:
        for name, value in changes.items():
            wrong = value
            if name in TIMES and isinstance(value, int) and not isinstance(value, bool):
                wrong = provider.now_s() + value
            if value == "{issuer}/":
                wrong = f"{provider.issuer}/"
            if isinstance(value, list) and value and str(value[0]).startswith("{"):
                wrong = [claims[name]]
            claims[name] = wrong
        return {name: value for name, value in claims.items() if value is not None}

    provider.claims = changed
    seen = sign_ins.came_back(site, "alice")
    assert seen.status == 403
    assert_refused(sign_ins, site, 403, reason)


def test_clocks_may_differ_by_a_minute(sign_ins: SignIns, site: Site) -> None:
    """Of a token that has just expired, and of one of the near future."""
    now = sign_ins.provider.now_s()
    assert sign_ins.sign_in(site, "alice", exp=now - 59).status == 200
    assert sign_ins.sign_in(site, "alice", iat=now + 60, auth_time=now + 60).status == 200


def test_several_audiences_are_taken_when_we_asked(sign_ins: SignIns, site: Site) -> None:
    """With our name as the authorised party, and the right hash of the access token."""
    digest = hashlib.sha256(b"opaque").digest()[:16]
    at_hash = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    claims: dict[str, Any] = {"aud": ["another", CLIENT_ID], "azp": CLIENT_ID, "sid": "s1"}
    claims["at_hash"] = at_hash
    assert sign_ins.sign_in(site, "alice", **claims).status == 200


# --- signatures -----------------------------------------------------------------------------------

SIGNERS: dict[str, tuple[Callable[[Any, Any], str], str]] = {
    "none": (lambda header, claims: unsigned({**header, "alg": "none"}, claims), "ALGORITHM"),
    "None": (lambda header, claims: unsigned({**header, "alg": "None"}, claims), "ALGORITHM"),
    "no algorithm": (lambda header, claims: unsigned({"kid": "rsa"}, claims), "ALGORITHM"),
    "an algorithm that is a list": (
        lambda header, claims: unsigned({**header, "alg": ["RS256"]}, claims),
        "ALGORITHM",
    ),
    "the public key as a secret": (signed_by_public_key, "ALGORITHM"),
    "RS512": (
        lambda header, claims: signed({**header, "alg": "RS512"}, claims, KEYS["RS256"]),
        "ALGORITHM",
    ),
    "a stranger's key": (lambda header, claims: signed(header, claims, STRANGER), "SIGNATURE"),
    "no signature": (unsigned, "SIGNATURE"),
    "a key of another kind": (
        lambda header, claims: signed({"alg": "RS256", "kid": "ec"}, claims, KEYS["RS256"]),
        "KEY_UNKNOWN",
    ),
    "an unknown key": (
        lambda header, claims: signed({**header, "kid": "new"}, claims, STRANGER),
        "KEY_UNKNOWN",
    ),
    "a key that is a number": (
        lambda header, claims: signed({**header, "kid": "7"}, claims, STRANGER),
        "KEY_UNKNOWN",
    ),
    "a key of its own": (
        lambda header, claims: signed(
            {**header, "jwk": STRANGER.as_dict(private=False)}, claims, STRANGER
        ),
        "SIGNATURE",
    ),
    "a logout token": (
        lambda header, claims: signed({**header, "typ": "logout+jwt"}, claims, KEYS["RS256"]),
        "TYPE",
    ),
    "an access token": (
        lambda header, claims: signed({**header, "typ": "at+jwt"}, claims, KEYS["RS256"]),
        "TYPE",
    ),
    "something critical": (
        lambda header, claims: unsigned({**header, "crit": ["x"], "x": 1}, claims, "AA"),
        "SIGNATURE",
    ),
    "claims that are a list": (
        lambda header, claims: signed(header, [claims], KEYS["RS256"]),
        "MALFORMED",
    ),
    "no token": (lambda header, claims: "hello", "MALFORMED"),
    "a header that is a list": (lambda header, claims: "W10.W10.AA", "MALFORMED"),
    "a deep header": (
        lambda header, claims: base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".e30.AA",
        "MALFORMED",
    ),
    "an encrypted token": (lambda header, claims: "e30.e30.e30.e30.e30", "ALGORITHM"),
    "nothing": (lambda header, claims: "", "MALFORMED"),
}


@pytest.mark.parametrize("case", sorted(SIGNERS))
def test_an_id_token_that_the_provider_did_not_sign_is_refused(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """Or not as one signs an id_token."""
    sign_ins.provider.sign, reason = SIGNERS[case]
    assert sign_ins.came_back(site, "alice").status == 403
    assert_refused(sign_ins, site, 403, reason)


SETS: dict[str, tuple[Callable[[dict[str, Any]], Any], int]] = {
    "empty": (lambda _: {"keys": []}, 403),
    "no list": (lambda _: {"keys": {}}, 503),
    "no keys": (lambda _: {}, 503),
    "of numbers": (lambda _: {"keys": [1, None, "x", []]}, 403),
    "twice the same name": (lambda keys: {"keys": keys["keys"] * 2}, 403),
    "for encryption": (
        lambda keys: {"keys": [{**one, "use": "enc"} for one in keys["keys"]]},
        403,
    ),
    "for another algorithm": (
        lambda keys: {"keys": [{**one, "alg": "RS512"} for one in keys["keys"]]},
        403,
    ),
    "with nonsense in it": (
        lambda keys: {"keys": [{**one, "n": 7, "x": 7} for one in keys["keys"]]},
        403,
    ),
    "with a short key": (
        lambda keys: {"keys": [{**one, "n": "AQAB" * 30} for one in keys["keys"]]},
        403,
    ),
}


@pytest.mark.parametrize("case", sorted(SETS))
def test_a_set_of_keys_that_is_wrong_signs_nobody_in(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """A set that is none is an outage; one that does not have the key is a refusal."""
    sign_ins.provider.keys, status = SETS[case]
    assert sign_ins.came_back(site, "alice").status == status
    assert SESSION not in site.cookies


def test_a_new_key_is_fetched_once_a_minute(sign_ins: SignIns, site: Site) -> None:
    """A name that is not in the set has it fetched anew, and a stranger cannot have it often."""
    provider = sign_ins.provider
    assert sign_ins.sign_in(site, "alice").status == 200
    provider.seen.clear()
    provider.header = lambda header: {**header, "kid": "unheard of"}
    for _ in range(3):
        assert sign_ins.came_back(site, "alice").status == 403
    assert provider.fetched("/keys") == 0
    sign_ins.clock.advance(MINUTE)
    for _ in range(3):
        assert sign_ins.came_back(site, "alice").status == 403
    assert provider.fetched("/keys") == 1


# --- the answer in the browser --------------------------------------------------------------------

ANSWERS: dict[str, tuple[dict[str, str | None], str]] = {
    "another state": ({"state": "another"}, "STATE"),
    "no state": ({"state": None}, "STATE"),
    "a state that is no ASCII": ({"state": "ä"}, "STATE"),
    "another issuer": ({"iss": "https://id.example.com"}, "ISSUER"),
    "no issuer, which was announced": ({"iss": None}, "ISSUER_MISSING"),
    "no code": ({"code": None}, "PROVIDER_REFUSED"),
    "an error": ({"code": None, "error": "access_denied"}, "PROVIDER_REFUSED"),
    "an error and a code": ({"error": "<script>alert(1)</script>"}, "PROVIDER_REFUSED"),
    "another code": ({"code": "another"}, "CODE_REFUSED"),
}


@pytest.mark.parametrize("case", sorted(ANSWERS))
def test_an_answer_that_was_altered_on_its_way_is_refused(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """And nothing of it is shown."""
    changes, reason = ANSWERS[case]
    query = sign_ins.provider.answer(site.get("/console/sign-in/start").location, "alice")
    wrong = {name: value for name, value in {**query, **changes}.items() if value is not None}
    seen = site.get(callback(wrong))
    assert seen.status == 403
    assert "<script>alert" not in seen.html
    assert_refused(sign_ins, site, 403, reason)


def test_the_code_of_another_attempt_is_refused(sign_ins: SignIns, site: Site) -> None:
    """What a stranger's code was asked for with is not what this browser holds."""
    with sign_ins.browser() as other:
        foreign = sign_ins.provider.answer(other.get("/console/sign-in/start").location, "mallory")
    query = sign_ins.provider.answer(site.get("/console/sign-in/start").location, "alice")
    assert site.get(callback({**query, "code": foreign["code"]})).status == 403
    assert_refused(sign_ins, site, 403, "CODE_REFUSED")


# --- what the provider says of itself, and how it answers -----------------------------------------

DISCOVERIES: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://id.example.com"},
    "no issuer": {"issuer": None},
    "plain text elsewhere": {"token_endpoint": "http://id.example.com/token"},
    "keys over plain text": {"jwks_uri": "http://id.example.com/keys"},
    "no URL": {"authorization_endpoint": "javascript:alert(1)"},
    "a URL with a name and a password": {"token_endpoint": "https://a:b@id.example.com/"},
    "no text": {"token_endpoint": 7},
    "nothing": {"token_endpoint": None, "jwks_uri": None, "authorization_endpoint": None},
    "an end that is no URL": {"end_session_endpoint": "file:///etc/passwd"},
}


@pytest.mark.parametrize("case", sorted(DISCOVERIES))
def test_a_provider_that_says_nonsense_of_itself_is_an_outage(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """Nobody is sent anywhere, and no secret either; the page says that it cannot be reached."""
    sign_ins.provider.discovery = lambda said: {**said, **DISCOVERIES[case]}
    seen = site.get("/console/sign-in/start")
    assert seen.status == 503
    assert "cannot be reached" in seen.text
    assert sign_ins.provider.fetched("/token") == 0


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token"])
@pytest.mark.parametrize(
    "answer",
    [
        (302, {"location": "http://127.0.0.1:1/elsewhere"}, b"{}"),
        (500, {}, b"{}"),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b"[" * 100_000),
        (200, {}, b'{"a": "' + b"a" * 300_000 + b'"}'),
        (200, {"content-encoding": "gzip"}, b"{}"),
        (204, {}, b""),
    ],
    ids=["redirect", "failure", "html", "list", "deep", "huge", "compressed", "empty"],
)
def test_an_answer_that_is_none_signs_nobody_in(
    sign_ins: SignIns, site: Site, path: str, answer: Any
) -> None:
    """It is an outage, or a code that was not taken; never a session."""
    sign_ins.provider.raw[path] = answer
    seen = site.get("/console/sign-in/start")
    if seen.status == 303:
        seen = site.get(callback(sign_ins.provider.answer(seen.location, "alice")))
    assert seen.status in (403, 503)
    assert seen.status == 503 or path == "/token"
    assert SESSION not in site.cookies


def test_the_secret_goes_to_the_token_endpoint_alone(sign_ins: SignIns, site: Site) -> None:
    """Encoded as the standard says; the provider that wants it in the form gets it there."""
    assert sign_ins.sign_in(site, "alice").status == 200
    assert all(SECRET not in str(form) for _, form in sign_ins.provider.seen)
    sign_ins.next_minute()
    sign_ins.clock.advance(10 * MINUTE)
    sign_ins.provider.secret = ""
    methods = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    sign_ins.provider.discovery = lambda said: {**said, **methods}
    assert sign_ins.sign_in(site, "alice").status == 200
    ((_, form),) = [one for one in sign_ins.provider.seen if one[0] == "/token"]
    assert form["client_secret"] == SECRET


@pytest.fixture
def lone_provider() -> Iterator[HostileProvider]:
    """A provider without a service."""
    with provider_running(FakeClock()) as provider:
        yield provider


def test_a_request_ends_in_time_whatever_drips(lone_provider: HostileProvider) -> None:
    """One byte after the other does not keep it alive."""
    path = "/.well-known/openid-configuration"
    lone_provider.slow.add(path)
    with pytest.raises(FetchFailed, match=r"no answer within 0\.3 s"):
        Fetcher(within_s=0.3).get(lone_provider.issuer + path)
    lone_provider.slow.clear()
    assert Fetcher().get(lone_provider.issuer + path).status == 200


def test_nobody_there_is_an_outage() -> None:
    """A port on which nothing listens, and a name that is none."""
    for url in ("http://127.0.0.1:1/", "http://nothing.invalid/"):
        with pytest.raises(FetchFailed):
            Fetcher(within_s=2).get(url)


# --- logout ---------------------------------------------------------------------------------------

LOGOUTS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://id.example.com"},
    "another client": {"aud": "another"},
    "no audience": {"aud": None},
    "old": {"iat": -121},
    "of the future": {"iat": 121},
    "no time": {"iat": None},
    "expired": {"exp": -61},
    "no events": {"events": None},
    "other events": {"events": {"x": {}}},
    "an event that is no object": {
        "events": {"http://schemas.openid.net/event/backchannel-logout": 1}
    },
    "events that are a list": {"events": ["http://schemas.openid.net/event/backchannel-logout"]},
    "a nonce": {"nonce": "n"},
    "no id": {"jti": None},
    "an id that is a number": {"jti": 7},
    "nobody": {"sub": None},
    "a subject that is a number": {"sub": 7},
    "a session that is a list": {"sid": ["s"]},
}


def send_logout(site: Site, token: str, **headers: str) -> int:
    """Send a logout token as a provider would; return the status."""
    return site.request(
        "POST", "/console/backchannel-logout", data={"logout_token": token}, headers=headers
    ).status


@pytest.mark.parametrize("case", sorted(LOGOUTS))
def test_a_logout_token_that_is_wrong_ends_nothing(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """Each of its claims is demanded."""
    sign_ins.sign_in(site, "alice")
    changes = {
        name: sign_ins.provider.now_s() + value if name in TIMES and value else value
        for name, value in LOGOUTS[case].items()
    }
    assert send_logout(site, sign_ins.provider.logout_token(**{"jti": case, **changes})) == 400
    assert site.is_signed_in


def logout_of_kind(sign_ins: SignIns, kind: str | None) -> str:
    """Return a logout token whose header names this type; None for none."""
    _, body, _ = sign_ins.provider.logout_token(jti=f"kind {kind}").split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    key = KEYS["RS256"]
    header = {"alg": "RS256", "kid": key.kid} | ({} if kind is None else {"typ": kind})
    return signed(header, claims, key)


@pytest.mark.parametrize("kind", ["at+jwt", "secevent+jwt"])
def test_a_token_of_another_kind_is_no_logout(sign_ins: SignIns, site: Site, kind: str) -> None:
    """Although all its claims are those of a logout."""
    sign_ins.sign_in(site, "alice")
    assert send_logout(site, logout_of_kind(sign_ins, kind)) == 400
    assert site.is_signed_in


@pytest.mark.parametrize("kind", ["JWT", None])
def test_a_logout_need_not_have_a_type_of_its_own(
    sign_ins: SignIns, site: Site, kind: str | None
) -> None:
    """The standard recommends one, and many providers send none."""
    sign_ins.sign_in(site, "alice")
    assert send_logout(site, logout_of_kind(sign_ins, kind)) == 200
    assert not site.is_signed_in


def test_what_is_no_logout_token_ends_nothing(sign_ins: SignIns, site: Site) -> None:
    """An id_token, one of a stranger, one without a signature, and rubbish."""
    sign_ins.sign_in(site, "alice")
    provider = sign_ins.provider
    good = provider.logout_token(jti="never sent")
    claims = {"iss": provider.issuer, "aud": CLIENT_ID, "sub": "alice", "iat": provider.now_s()}
    header = {"alg": "RS256", "kid": "rsa"}
    for wrong in (
        signed(header, {**claims, "nonce": "n", "exp": provider.now_s() + 9}, KEYS["RS256"]),
        signed({**header, "typ": "logout+jwt"}, claims, STRANGER),
        good.rpartition(".")[0] + ".",
        good[:-4],
        "",
        "x.y.z",
    ):
        assert send_logout(site, wrong) == 400
    assert site.is_signed_in


def test_a_logout_ends_the_sessions_of_a_subject_once(sign_ins: SignIns, site: Site) -> None:
    """All of them, whatever cookies came along; the same token again is refused."""
    sign_ins.sign_in(site, "alice")
    with sign_ins.browser() as second, sign_ins.browser() as provider:
        sign_ins.sign_in(second, "alice")
        token = sign_ins.provider.logout_token(jti="all of alice")
        assert send_logout(provider, token, cookie=f"{SESSION}={site.session}") == 200
        assert not site.is_signed_in
        assert not second.is_signed_in
        sign_ins.sign_in(second, "alice")
        assert send_logout(provider, token) == 400
        assert second.is_signed_in
    events = sign_ins.service.admin.events(actions=["AUDIT_ACTION_SESSION_ENDED"])
    assert [one.changes[0].after for one in events[:2]] == ["PROVIDER_LOGOUT"] * 2
    assert {one.actor.type for one in events[:2]} == {6}


def test_a_logout_of_a_session_ends_that_one_alone(sign_ins: SignIns, site: Site) -> None:
    """By what the provider calls it."""
    sign_ins.sign_in(site, "alice", sid="first")
    with sign_ins.browser() as second:
        sign_ins.sign_in(second, "alice", sid="second")
        token = sign_ins.provider.logout_token(jti="one", sub=None, sid="first")
        assert send_logout(second, token) == 200
        assert not site.is_signed_in
        assert second.is_signed_in


def test_a_logout_of_somebody_unknown_is_fine(sign_ins: SignIns, site: Site) -> None:
    """The provider need not know who is signed in here."""
    sign_ins.sign_in(site, "alice")
    assert send_logout(site, sign_ins.provider.logout_token(jti="bob", sub="bob")) == 200
    assert site.is_signed_in


def test_a_logout_that_cannot_be_checked_is_an_outage(sign_ins: SignIns, site: Site) -> None:
    """Neither done nor refused, so that the provider tries again."""
    sign_ins.provider.raw["/keys"] = (500, {}, b"")
    assert send_logout(site, sign_ins.provider.logout_token(jti="later")) == 503
    sign_ins.provider.raw.clear()
    sign_ins.clock.advance(MINUTE)
    assert send_logout(site, sign_ins.provider.logout_token(jti="later")) == 200


def test_logouts_of_one_address_are_bounded(sign_ins: SignIns, site: Site) -> None:
    """Twenty a minute."""
    assert [send_logout(site, "x") for _ in range(21)] == [400] * 20 + [429]


def test_only_a_form_is_a_logout(sign_ins: SignIns, site: Site) -> None:
    """Of at most 64 KiB."""
    path = "/console/backchannel-logout"
    assert site.request("POST", path, json={"logout_token": "x"}).status == 415
    assert send_logout(site, "x" * 70_000) == 413
    assert site.get(path).status == 405


# --- tokens beside the provider -------------------------------------------------------------------


def test_a_row_that_was_planted_opens_nothing(sign_ins: SignIns, site: Site) -> None:
    """Who writes to the database makes nobody somebody: each identity has a MAC."""
    store = sign_ins.service.app.container.store
    with store.read() as reader:
        identity = reader.identity(sign_ins.provider.issuer, "alice")
    assert identity is not None
    with store.write() as tx:
        tx.delete_identity(identity.user_id)
        tx.insert_identity(replace(identity, subject="mallory"))
    try:
        assert sign_ins.came_back(site, "mallory").status == 403
        assert_refused(sign_ins, site, 403, "IDENTITY_ALTERED")
    finally:
        with store.write() as tx:
            tx.delete_identity(identity.user_id)
            tx.insert_identity(identity)
    sign_ins.clock.advance(HOUR)
    assert sign_ins.sign_in(site, "alice").status == 200
