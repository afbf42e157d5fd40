"""What a provider signs, id_token and logout token: who signed it, and what it must say."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from keybearer_service.domain.clock import MINUTE, SECOND, Micros
from keybearer_service.domain.identity import ProvenPerson

ALGORITHMS: Final = {
    "RS256": ("RSA", ""),
    "PS256": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""The algorithms that are taken, and the type and the curve of their keys."""
CLOCKS_DIFFER_BY: Final = MINUTE
"""How far the provider's clock may be off."""
MAX_ID_TOKEN_AGE: Final = 10 * MINUTE
MAX_LOGOUT_AGE: Final = 2 * MINUTE
MAX_SUBJECT: Final = 255
"""Characters of what a provider calls a person; the standard has as many."""
MAX_EMAIL: Final = 254
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
_MIN_RSA_BYTES: Final = 256
_MAX_TIME_S: Final = 2**40
_KEY_CLASSES: Final[Mapping[str, type[Key]]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


class TokenRefused(Exception):
    """A token of the provider is not taken. `reason` is for the audit log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyUnknown(TokenRefused):
    """The set of keys has none that the token names."""

    def __init__(self) -> None:
        super().__init__("KEY_UNKNOWN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whose tokens are taken, and for whom they must be."""

    issuer: str
    client_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Logout:
    """What a provider has ended."""

    id: str
    subject: str
    """Empty when it names its session alone."""
    provider_session: str
    """Empty for all sessions of the subject."""


class _Registry(jws.JWSRegistry):
    # The list above decides, and not what the library recommends at the moment.
    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise TokenRefused("ALGORITHM")
        return self.algorithms[name]


_REGISTRY: Final = _Registry(strict_check_header=False)


def read(token: str, keys: Sequence[object]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return header and claims of a token, once its signature was checked.

    Args:
        token: The token.
        keys: The provider's set of keys.

    Raises:
        KeyUnknown: The set has no key that the token names.
        TokenRefused: The token is malformed, or its signature is wrong.
    """
    header = _header_of(token)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefused("ALGORITHM")
    key = _key_of(header, algorithm, keys)
    try:
        signed = jws.deserialize_compact(token, key, registry=_REGISTRY)
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise TokenRefused("SIGNATURE") from None
    if not isinstance(claims, dict):
        raise TokenRefused("MALFORMED")
    return header, claims


def person_in(
    token: tuple[Mapping[str, Any], Mapping[str, Any]],
    client: Client,
    *,
    nonce: str,
    access_token: str,
    since: Micros,
    now: Micros,
) -> ProvenPerson:
    """Return whom an id_token names.

    Args:
        token: Its header and claims, as `read` returns them.
        client: Who must have issued it, and for whom.
        nonce: What it must repeat.
        access_token: What came with it; empty for nothing.
        since: The person must have signed in at the provider since then.
        now: The moment.

    Raises:
        TokenRefused: It is not the one that was asked for.
    """
    header, claims = token
    _assert_type(header, {"", "jwt"})
    _assert_ours(claims, client)
    _assert_that(claims.get("nonce") == nonce, "NONCE")
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    _assert_that(issued <= now + CLOCKS_DIFFER_BY, "ISSUED_IN_FUTURE")
    _assert_that(issued >= now - MAX_ID_TOKEN_AGE - CLOCKS_DIFFER_BY, "ISSUED_LONG_AGO")
    _assert_that(now < expires + CLOCKS_DIFFER_BY, "EXPIRED")
    if "nbf" in claims:
        _assert_that(_time(claims, "nbf") <= now + CLOCKS_DIFFER_BY, "NOT_YET_VALID")
    signed_in = _time(claims, "auth_time")
    _assert_that(signed_in <= now + CLOCKS_DIFFER_BY, "SIGNED_IN_IN_FUTURE")
    _assert_that(signed_in >= since - CLOCKS_DIFFER_BY, "SIGNED_IN_LONG_AGO")
    if "at_hash" in claims:
        right = _half_hash(str(header["alg"]), access_token)
        _assert_that(claims["at_hash"] == right, "ACCESS_TOKEN_HASH")
    email = claims.get("email", "")
    return ProvenPerson(
        issuer=client.issuer,
        subject=_subject(claims),
        auth_time=signed_in,
        provider_session=_text(claims, "sid"),
        email=email if _is_visible(email) else "",
        # Nothing but true itself: some providers write the text "false".
        is_email_verified=claims.get("email_verified") is True,
    )


def logout_in(
    token: tuple[Mapping[str, Any], Mapping[str, Any]], client: Client, now: Micros
) -> Logout:
    """Return what a logout token ends.

    Args:
        token: Its header and claims, as `read` returns them.
        client: Who must have issued it, and for whom.
        now: The moment.

    Raises:
        TokenRefused: It is no logout token, or not for this client.
    """
    header, claims = token
    # The standard only recommends the type of its own (Back-Channel Logout 1.0, section 2.4). The
    # event, and that there is no nonce, tell a logout from other tokens.
    _assert_type(header, {"", "jwt", "logout+jwt"})
    _assert_ours(claims, client)
    issued = _time(claims, "iat")
    _assert_that(abs(issued - now) <= MAX_LOGOUT_AGE, "ISSUED_LONG_AGO")
    if "exp" in claims:
        _assert_that(now < _time(claims, "exp") + CLOCKS_DIFFER_BY, "EXPIRED")
    events = claims.get("events")
    is_logout = isinstance(events, dict) and isinstance(events.get(LOGOUT_EVENT), dict)
    _assert_that(is_logout, "NO_LOGOUT")
    _assert_that("nonce" not in claims, "NONCE")
    logout_id = _text(claims, "jti")
    _assert_that(bool(logout_id), "NO_ID")
    subject = _subject(claims) if "sub" in claims else ""
    session = _text(claims, "sid")
    _assert_that(bool(subject or session), "NOBODY_NAMED")
    return Logout(id=logout_id, subject=subject, provider_session=session)


def _header_of(token: str) -> Mapping[str, Any]:
    encoded, dot, _ = token.partition(".")
    try:
        text = base64.urlsafe_b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4))
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not dot or not isinstance(header, dict):
        raise TokenRefused("MALFORMED")
    return header


def _key_of(header: Mapping[str, Any], algorithm: str, keys: Sequence[object]) -> Key:
    kind, curve = ALGORITHMS[algorithm]
    suited = [
        one
        for one in keys
        if isinstance(one, dict)
        and one.get("kty") == kind
        and (not curve or one.get("crv") == curve)
        and one.get("use", "sig") == "sig"
        and one.get("alg", algorithm) == algorithm
    ]
    name = header.get("kid")
    if name is not None:
        suited = [one for one in suited if one.get("kid") == name and isinstance(name, str)]
    if len(suited) != 1:
        # Without a name there must be no choice.
        raise KeyUnknown
    # The public parts alone, without what says how the key is to be used, which was read above.
    parts = {
        part: suited[0][part] for part in ("kty", "n", "e", "crv", "x", "y") if part in suited[0]
    }
    try:
        if kind == "RSA" and len(_decoded(parts["n"]).lstrip(b"\0")) < _MIN_RSA_BYTES:
            raise TokenRefused("KEY_TOO_SHORT")
        return _KEY_CLASSES[kind].import_key(parts)
    except (JoseError, ValueError, TypeError, LookupError, AttributeError):
        raise TokenRefused("KEY_UNUSABLE") from None


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _assert_that(holds: bool, reason: str) -> None:  # noqa: FBT001 - what is asserted
    if not holds:
        raise TokenRefused(reason)


def _assert_type(header: Mapping[str, Any], allowed: set[str]) -> None:
    found = header.get("typ", "")
    is_right = isinstance(found, str) and found.lower().removeprefix("application/") in allowed
    _assert_that(is_right, "TYPE")


def _assert_ours(claims: Mapping[str, Any], client: Client) -> None:
    _assert_that(claims.get("iss") == client.issuer, "ISSUER")
    found = claims.get("aud")
    audience = found if isinstance(found, list) else [found]
    _assert_that(client.client_id in audience, "AUDIENCE")
    if len(audience) > 1 or "azp" in claims:
        _assert_that(claims.get("azp") == client.client_id, "AUTHORIZED_PARTY")


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    is_right = isinstance(subject, str) and 0 < len(subject) <= MAX_SUBJECT
    if not is_right or not isinstance(subject, str) or not subject.isprintable():
        raise TokenRefused("SUBJECT")
    return subject


def _text(claims: Mapping[str, Any], name: str) -> str:
    text = claims.get(name, "")
    if not isinstance(text, str) or len(text) > MAX_SUBJECT or not text.isprintable():
        raise TokenRefused(f"CLAIM_{name.upper()}")
    return text


def _time(claims: Mapping[str, Any], name: str) -> Micros:
    value = claims.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TokenRefused(f"CLAIM_{name.upper()}")
    if not math.isfinite(value) or not 0 <= value <= _MAX_TIME_S:
        raise TokenRefused(f"CLAIM_{name.upper()}")
    return Micros(int(value) * SECOND)


def _is_visible(email: object) -> bool:
    """Return whether an address can be shown: somebody reads it before they say that it is them."""
    return isinstance(email, str) and len(email) <= MAX_EMAIL and email.isprintable()


def _half_hash(algorithm: str, text: str) -> str:
    # Ed25519 has SHA-512 in it, the others SHA-256 in their names.
    new = hashlib.sha256 if algorithm.endswith("256") else hashlib.sha512
    digest = new(text.encode("ascii", "replace")).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
