"""The provider at which people sign in: where it is, its keys, and the exchange of a code."""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from keybearer_service.console.fetching import Fetched, Fetcher, FetchFailed
from keybearer_service.console.provider_tokens import (
    Client,
    KeyUnknown,
    Logout,
    TokenRefused,
    logout_in,
    person_in,
    read,
)
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.identity import ProvenPerson
from keybearer_service.net.sign_in import ProviderSettings, is_safe_url
from keybearer_service.telemetry.log_quotas import OutageLog

KEPT_FOR_S: Final = 600.0
"""The provider's metadata and its keys."""
REFETCHED_EVERY_S: Final = 60.0
"""For a key that is not in the set, at most."""
TRIED_AGAIN_AFTER_S: Final = 5.0
"""A provider that did not answer is not asked before that."""
DOWN_AFTER_S: Final = 60.0
"""How long something must have failed for the provider to count as gone."""
_DISCOVERY: Final = "/.well-known/openid-configuration"
_OK: Final = 200
_FIRST_SERVER_ERROR: Final = 500


class ProviderUnreachable(Exception):
    """The provider cannot be used now, which says nothing about anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The metadata of a provider, as far as it is used."""

    authorization: str
    token: str
    keys: str
    end_session: str
    """Empty for none."""
    auth_methods: Sequence[str]
    names_itself: bool
    """Whether its answers in the browser say who it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a sign-in at the provider is asked for."""

    redirect_uri: str
    state: str
    nonce: str
    verifier: str
    max_age_s: int
    """How long ago the person may have signed in there; 0 asks them to do so now."""


@dataclass(slots=True)
class _Kept:
    value: Any = None
    fetched: float = float("-inf")
    tried: float = float("-inf")
    failing_since: float | None = None
    problem: str = ""


class Provider:
    """An OpenID Connect provider. Thread-safe; one request at a time waits for it."""

    def __init__(self, settings: ProviderSettings, fetcher: Fetcher, clock: Clock) -> None:
        """Create it; nothing is fetched before somebody asks.

        Args:
            settings: Which one.
            fetcher: Sends requests.
            clock: Says what is too old.
        """
        self.settings = settings
        self._client = Client(issuer=settings.issuer, client_id=settings.client_id)
        self._fetcher = fetcher
        self._clock = clock
        self._lock = threading.Lock()
        self._discovery = _Kept()
        self._keys = _Kept()
        self._exchange = _Kept()
        self._outage = OutageLog("provider_unreachable")

    @property
    def issuer(self) -> str:
        """The issuer."""
        return self.settings.issuer

    def endpoints(self) -> Endpoints:
        """Return the metadata of the provider.

        Raises:
            ProviderUnreachable: It cannot be asked, or its metadata is not as it should be.
        """
        with self._lock:
            found: Endpoints = self._kept(self._discovery, KEPT_FOR_S, self._discover)
            return found

    def known_endpoints(self) -> Endpoints | None:
        """Return the metadata that was read last, without asking; None before the first time."""
        known: Endpoints | None = self._discovery.value
        return known

    def is_down(self) -> bool:
        """Return whether the provider has not answered for DOWN_AFTER_S; ask it now and then."""
        with self._lock, suppress(ProviderUnreachable):
            self._kept(self._discovery, REFETCHED_EVERY_S, self._discover)
        now = self._clock.monotonic()
        return any(
            one.failing_since is not None and now - one.failing_since >= DOWN_AFTER_S
            for one in (self._discovery, self._keys, self._exchange)
        )

    def sign_in_url(self, request: Request) -> str:
        """Return where a browser is sent to sign in.

        Raises:
            ProviderUnreachable: As from `endpoints`.
        """
        challenge = hashlib.sha256(request.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": request.redirect_uri,
            "scope": "openid email",
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "max_age": str(request.max_age_s),
            # Some providers take a max_age of 0 for none.
            **({} if request.max_age_s else {"prompt": "login"}),
        }
        return _with_query(self.endpoints().authorization, query)

    def sign_out_url(self) -> str:
        """Return where a browser signs out of the provider; empty when that is not known."""
        known = self.known_endpoints()
        if known is None or not known.end_session:
            return ""
        return _with_query(known.end_session, {"client_id": self.settings.client_id})

    def person(self, request: Request, code: str, *, since: Micros) -> ProvenPerson:
        """Exchange a code, and return whom the provider names.

        Args:
            request: What was asked for.
            code: What came back.
            since: The person must have signed in at the provider since then.

        Raises:
            TokenRefused: The code is not taken, or the answer is not the one that was asked for.
            ProviderUnreachable: The provider cannot be asked.
        """
        answer = self._exchanged(request, code)
        token, access_token = answer.get("id_token"), answer.get("access_token", "")
        if not isinstance(token, str) or not isinstance(access_token, str):
            raise TokenRefused("NO_ID_TOKEN")
        return person_in(
            self._read(token),
            self._client,
            nonce=request.nonce,
            access_token=access_token,
            since=since,
            now=self._clock.now(),
        )

    def logout(self, token: str) -> Logout:
        """Return what a logout token ends.

        Raises:
            TokenRefused: It is none, or not for this client.
            ProviderUnreachable: The keys of the provider cannot be fetched.
        """
        return logout_in(self._read(token), self._client, self._clock.now())

    # --- what is fetched --------------------------------------------------------------------------

    def _read(self, token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        keys = self._key_set(KEPT_FOR_S)
        try:
            return read(token, keys)
        except KeyUnknown:
            # A new key, perhaps. What was fetched a moment ago is not fetched again.
            fresh = self._key_set(REFETCHED_EVERY_S)
            if fresh is keys:
                raise
            return read(token, fresh)

    def _key_set(self, max_age_s: float) -> Sequence[object]:
        uri = self.endpoints().keys
        with self._lock:
            found: Sequence[object] = self._kept(
                self._keys, max_age_s, lambda: self._fetch_keys(uri)
            )
            return found

    def _kept(self, kept: _Kept, max_age_s: float, fetch: Callable[[], Any]) -> Any:
        now = self._clock.monotonic()
        if now - kept.fetched < max_age_s:
            return kept.value
        if kept.problem and now - kept.tried < TRIED_AGAIN_AFTER_S:
            raise ProviderUnreachable(kept.problem)
        with self._attempt(kept):
            kept.value = fetch()
            kept.fetched = self._clock.monotonic()
        return kept.value

    @contextmanager
    def _attempt(self, kept: _Kept) -> Iterator[None]:
        """Note whether what is fetched inside comes, and since when it does not."""
        kept.tried = self._clock.monotonic()
        try:
            yield
        except FetchFailed as error:
            kept.problem = str(error)
            if kept.failing_since is None:
                kept.failing_since = kept.tried
            self._outage.failed(error)
            raise ProviderUnreachable(kept.problem) from None
        kept.problem, kept.failing_since = "", None
        self._outage.recovered()

    def _discover(self) -> Endpoints:
        url = self.settings.issuer.rstrip("/") + _DISCOVERY
        said = _assert_ok(self._fetcher.get(url))
        if said.get("issuer") != self.settings.issuer:
            raise FetchFailed("it names another issuer than oidc_issuer")
        methods = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return Endpoints(
            authorization=_url(said, "authorization_endpoint"),
            token=_url(said, "token_endpoint"),
            keys=_url(said, "jwks_uri"),
            end_session=_url(said, "end_session_endpoint")
            if "end_session_endpoint" in said
            else "",
            auth_methods=[str(one) for one in methods] if isinstance(methods, list) else [],
            names_itself=said.get("authorization_response_iss_parameter_supported") is True,
        )

    def _fetch_keys(self, uri: str) -> Sequence[object]:
        keys = _assert_ok(self._fetcher.get(uri)).get("keys")
        if not isinstance(keys, list):
            raise FetchFailed("a set of keys without keys")
        return keys

    def _exchanged(self, request: Request, code: str) -> Mapping[str, Any]:
        endpoints = self.endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": request.redirect_uri,
            "code_verifier": request.verifier,
        }
        with self._attempt(self._exchange):
            credentials = self._credentials(endpoints, form)
            answer = self._fetcher.post(endpoints.token, form, credentials)
            if answer.status >= _FIRST_SERVER_ERROR:
                raise FetchFailed(f"status {answer.status}")
        if answer.status != _OK:
            raise TokenRefused("CODE_REFUSED")
        return answer.content

    def _credentials(self, endpoints: Endpoints, form: dict[str, str]) -> tuple[str, str] | None:
        client_id = self.settings.client_id
        try:
            secret = self.settings.secret()
        except (OSError, ValueError) as error:
            raise FetchFailed(f"oidc_client_secret_file: {type(error).__name__}") from None
        if secret and "client_secret_basic" in endpoints.auth_methods:
            # Encoded as a form first, as RFC 6749 says.
            return quote_plus(client_id), quote_plus(secret)
        form["client_id"] = client_id
        if secret:
            form["client_secret"] = secret
        return None


def _assert_ok(answer: Fetched) -> Mapping[str, Any]:
    if answer.status != _OK:
        raise FetchFailed(f"status {answer.status}")
    return answer.content


def _url(said: Mapping[str, Any], name: str) -> str:
    url = said.get(name)
    if not isinstance(url, str) or not is_safe_url(url):
        raise FetchFailed(f"{name} is no URL that secrets may be sent to")
    return url


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
