"""How people may sign in at the console, as the settings say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from keybearer._wire.peer import is_loopback

KeySignIn = Literal["auto", "on", "off"]
Binding = Literal["invitation", "verified-email"]

MAX_SECRET: Final = 4096
"""Bytes of a file with a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """An OpenID Connect provider, and what it calls the console."""

    issuer: str
    client_id: str
    secret_file: Path | None = None
    """Read whenever a code is exchanged, so that the secret can be changed; None for a client
    without one."""

    def secret(self) -> str:
        """Return the secret; empty without one.

        Raises:
            OSError, ValueError: The file cannot be read, is empty, or holds no such text.
        """
        if self.secret_file is None:
            return ""
        with self.secret_file.open("rb") as file:
            text = file.read(MAX_SECRET + 1).decode("utf-8").strip()
        if not text or len(text) > MAX_SECRET:
            raise ValueError("the file must hold the secret and nothing else")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInSettings:
    """Who may sign in, and how."""

    provider: ProviderSettings | None = None
    """None when people sign in with tokens alone."""
    bind: Binding = "invitation"
    """What makes somebody at the provider a user here."""
    bind_account: str = ""
    """With `verified-email`: the account; empty for the operator account."""
    key_sign_in: KeySignIn = "auto"
    """Whether the token of a key opens the console: `auto` while nobody can sign in otherwise."""


def is_safe_url(text: str) -> bool:
    """Return whether secrets may be sent to a URL: https, or http on this machine."""
    try:
        parts = urlsplit(text)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:
        return False
    if (
        not host
        or not text.isascii()
        or not text.isprintable()
        or {"@", "#", "\\", " "} & set(text)
    ):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
