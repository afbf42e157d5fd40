"""Where a database is: a URL that holds no secret, and the file of the password beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_SCHEMES: Final = frozenset({"postgresql", "postgres"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """A database on a server of its own."""

    text: str
    """postgresql://USER@HOST/NAME, as libpq reads it."""
    password_file: Path | None = None
    """Read whenever a connection is opened, so that the password can be changed. Without it libpq
    looks where it always does: in PGPASSWORD and in ~/.pgpass."""
    is_insecure: bool = False
    """Whether the way to another machine may be one that does not prove which server answers."""

    def __post_init__(self) -> None:
        """Refuse what is no such URL.

        Raises:
            ValueError: The text says what would be right, and repeats nothing of the URL.
        """
        parts = urlsplit(self.text)
        if parts.scheme not in _SCHEMES:
            raise ValueError("must begin with postgresql://")
        options = dict(parse_qsl(parts.query))
        if ":" in parts.netloc.rpartition("@")[0] or "password" in options:
            raise ValueError(
                "holds a password, which logs and lists of processes would show; name a file with "
                "--database-password-file, or set PGPASSWORD"
            )
        if "service" in options:
            raise ValueError("names a service; give the host and the name of the database")

    def secret(self) -> str:
        """Return the password; empty when libpq is to find one by itself.

        Raises:
            OSError: The file cannot be read.
        """
        if self.password_file is None:
            return ""
        return self.password_file.read_text("utf-8").rstrip("\r\n")
