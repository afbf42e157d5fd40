"""What guards every answer and every request of the console's port."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "clipboard-write=(self), clipboard-read=(), camera=(), geolocation=(),"
    " microphone=()",
    "x-frame-options": "DENY",
}
"""On every answer; static files alone have another `cache-control`."""
STRICT_TRANSPORT: Final = "max-age=31536000"
"""Sent when the console is reached over TLS."""
CLEAR_SITE_DATA: Final = '"cache", "storage"'
"""Sent when somebody signs out."""


class PublicOrigin:
    """The one origin that the console is reached at."""

    def __init__(self, url: str) -> None:
        """Create it.

        Args:
            url: Its scheme and host, as people type it.
        """
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}".lower()
        self.is_tls = parts.scheme == "https"
        self._host = _without_default_port(parts.netloc.lower(), is_tls=self.is_tls)
        self._port = parts.port

    def is_host(self, host: str) -> bool:
        """Return whether a `Host` header names this origin."""
        return _without_default_port(host.lower(), is_tls=self.is_tls) == self._host

    def is_alias(self, host: str) -> bool:
        """Return whether a `Host` header names this origin by another name of the same machine."""
        if urlsplit(self.url).hostname != "127.0.0.1":
            return False
        return host.lower() in {f"localhost:{self._port}", f"[::1]:{self._port}"}

    def sent(self, headers: Headers) -> bool:
        """Return whether a browser sent a form from a page of this origin.

        Browsers say where a request comes from in `Sec-Fetch-Site`; old ones in `Origin` alone.
        """
        site = headers.getlist("sec-fetch-site")
        if site:
            return site == ["same-origin"]
        return [one.lower() for one in headers.getlist("origin")] == [self.url]


def _without_default_port(host: str, *, is_tls: bool) -> str:
    return host.removesuffix(":443" if is_tls else ":80")
