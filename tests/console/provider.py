"""A small OpenID Connect provider that tests can turn hostile in every single part."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from fakes import FakeClock
from keybearer_service.domain.clock import SECOND
from keybearer_service.net.sign_in import ProviderSettings

CLIENT_ID: Final = "keybearer-console"
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
Change = Callable[[dict[str, Any]], Any]


def unchanged(value: dict[str, Any]) -> dict[str, Any]:
    """Leave it as it is."""
    return value


_RSA: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
KEYS: Final[Mapping[str, Key]] = {
    "RS256": _RSA,
    "ES256": ECKey.generate_key("P-256", {"kid": "ec"}),
    "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
}
"""Made once: an RSA key takes a while."""
STRANGER: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
"""A key of somebody else, under the name of ours."""


class _Registry(jws.JWSRegistry):
    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def signed(header: Mapping[str, Any], claims: object, key: Key) -> str:
    """Return a token, with whatever header and claims."""
    registry = _Registry(strict_check_header=False)
    return jws.serialize_compact(dict(header), json.dumps(claims), key, registry=registry)


def unsigned(header: Mapping[str, Any], claims: object, signature: str = "") -> str:
    """Return a token with a signature that is none."""
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()) for one in (header, claims)]
    return ".".join([*(one.rstrip(b"=").decode() for one in parts), signature])


def signed_by_public_key(header: Mapping[str, Any], claims: object) -> str:
    """Return a token whose HMAC has the public key as its secret."""
    public = _RSA.as_pem(private=False)
    body = unsigned({**header, "alg": "HS256"}, claims).rpartition(".")[0]
    digest = hmac.digest(public, body.encode(), "sha256")
    return f"{body}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@dataclass
class Grant:
    """A code that was handed out, and what it is good for."""

    challenge: str
    redirect_uri: str
    claims: dict[str, Any]


@dataclass
class HostileProvider:
    """The provider. Attributes change what it answers."""

    clock: FakeClock
    issuer: str = ""
    secret: str = ""
    algorithm: str = "RS256"
    claims: Change = unchanged
    header: Change = unchanged
    sign: Callable[[Mapping[str, Any], dict[str, Any]], str] | None = None
    discovery: Change = unchanged
    keys: Change = unchanged
    tokens: Change = unchanged
    raw: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Whole answers, by path."""
    slow: set[str] = field(default_factory=set)
    """Paths whose answers come one byte at a time, until `hurry`."""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Every request: its path and its form."""
    grants: dict[str, Grant] = field(default_factory=dict)
    person: str = "alice"
    """Who is signed in there in every real browser that comes."""
    hurry: threading.Event = field(default_factory=threading.Event)

    def settings(self, **changes: Any) -> ProviderSettings:
        """Return what the service is told of it."""
        return ProviderSettings(**{"issuer": self.issuer, "client_id": CLIENT_ID, **changes})

    def behave(self) -> None:
        """Be a good provider again."""
        self.algorithm, self.sign = "RS256", None
        self.claims = self.header = self.discovery = self.keys = self.tokens = unchanged
        self.raw.clear()
        self.slow.clear()
        self.seen.clear()

    def now_s(self) -> int:
        """Return the time as tokens say it."""
        return self.clock.now() // SECOND

    def fetched(self, path: str) -> int:
        """Return how often a path was asked for."""
        return sum(seen == path for seen, _ in self.seen)

    # --- what a person does -----------------------------------------------------------------------

    def answer(self, location: str, subject: str = "alice", **claims: Any) -> dict[str, str]:
        """Sign a person in who was sent here; return the query to come back with."""
        asked = dict(parse_qsl(urlsplit(location).query))
        assert location.startswith(f"{self.issuer}/authorize?"), location
        assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT_ID)
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.grants)}"
        found = {
            "iss": self.issuer,
            "sub": subject,
            "aud": CLIENT_ID,
            "iat": self.now_s(),
            "exp": self.now_s() + 300,
            "auth_time": self.now_s(),
            "nonce": asked["nonce"],
            **claims,
        }
        self.grants[code] = Grant(asked["code_challenge"], asked["redirect_uri"], found)
        return {"code": code, "state": asked["state"], "iss": self.issuer}

    def logout_token(self, key: str = "RS256", **changes: Any) -> str:
        """Return a logout token; a change to None leaves the claim out."""
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": self.now_s(),
            "exp": self.now_s() + 120,
            "jti": "logout-1",
            "sub": "alice",
            "events": {LOGOUT_EVENT: {}},
            **changes,
        }
        header = {"alg": key, "typ": "logout+jwt", "kid": KEYS[key].kid}
        return signed(header, {k: v for k, v in claims.items() if v is not None}, KEYS[key])

    # --- what it answers --------------------------------------------------------------------------

    def respond(
        self, path: str, form: dict[str, str], authorization: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        self.seen.append((path, form))
        if path in self.raw:
            return self.raw[path]
        status, content = self._content(path, form, authorization)
        return status, {"content-type": "application/json"}, json.dumps(content).encode()

    def _content(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration":
            return 200, self.discovery(
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    "end_session_endpoint": f"{self.issuer}/logout",
                    "authorization_response_iss_parameter_supported": True,
                }
            )
        if path == "/keys":
            public = [key.as_dict(private=False) for key in KEYS.values()]
            return 200, self.keys({"keys": public})
        if path == "/token":
            return self._exchange(form, authorization)
        return 404, {"error": "not_found"}

    def _exchange(self, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        grant = self.grants.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if grant is None or challenge != grant.challenge:
            return 400, {"error": "invalid_grant"}
        if form["redirect_uri"] != grant.redirect_uri:
            return 400, {"error": "invalid_grant"}
        if self.secret:
            pair = base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":")
            if [unquote_plus(one) for one in pair] != [CLIENT_ID, self.secret]:
                return 401, {"error": "invalid_client"}
        header = self.header({"alg": self.algorithm, "kid": KEYS[self.algorithm].kid})
        claims = self.claims(grant.claims)
        if self.sign is not None:
            token = self.sign(header, claims)
        else:
            token = signed(header, claims, KEYS[self.algorithm])
        return 200, self.tokens(
            {"access_token": "opaque", "token_type": "Bearer", "id_token": token}
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    provider: HostileProvider

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        fields = parse_qs(self.rfile.read(length).decode(), keep_blank_values=True)
        self._answer({name: values[-1] for name, values in fields.items()})

    def _answer(self, form: dict[str, str]) -> None:
        path = urlsplit(self.path).path
        status, headers, body = self.provider.respond(
            path, form, self.headers.get("authorization", "")
        )
        if path == "/authorize":
            query = self.provider.answer(f"{self.provider.issuer}{self.path}", self.provider.person)
            asked = dict(parse_qsl(urlsplit(self.path).query))
            target = f"{asked['redirect_uri']}?{urlencode(query)}"
            status, headers, body = 303, {"location": target}, b""
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if path in self.provider.slow:
            self._drip(body)
        else:
            self.wfile.write(body)

    def _drip(self, body: bytes) -> None:
        self.close_connection = True
        with suppress(OSError):  # the other end had enough
            for one in body:
                self.wfile.write(bytes([one]))
                if self.provider.hurry.wait(0.05):
                    return

    def log_message(self, *_: Any) -> None:
        """Keep the output of tests clean."""


@contextmanager
def provider_running(clock: FakeClock) -> Iterator[HostileProvider]:
    """Run a provider on a free port of this machine."""
    provider = HostileProvider(clock)
    handler = type("Handler", (_Handler,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        provider.hurry.set()
        server.shutdown()
        thread.join()
        server.server_close()


def callback(query: Mapping[str, str]) -> str:
    """Return the path that a person comes back to."""
    return f"/console/sign-in/callback?{urlencode(query)}"
