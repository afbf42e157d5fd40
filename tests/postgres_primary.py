"""A PostgreSQL server of its own, with a standby that commits wait for, and that can leave it."""

import subprocess

import postgres_server
from keybearer_service.container import migrate_store
from keybearer_service.net.database_url import DatabaseUrl

_STANDBY = "standby"
_TRIES = 1000


class Primary:
    """A server with a synchronous standby that can leave it."""

    def __init__(self) -> None:
        self.server = postgres_server.Server()
        self.standby: subprocess.Popen[bytes] | None = None
        postgres_server.execute(self.server.url("postgres"), "CREATE DATABASE k")
        self.url = DatabaseUrl(text=self.server.url("k"))
        migrate_store(self.url)

    def attach(self) -> None:
        """Have a standby, and wait for it with every commit."""
        self.standby = self.server.standby(_STANDBY)
        self._set(_STANDBY)

    def detach(self) -> None:
        """Lose the standby: it follows another server now."""
        assert self.standby is not None
        self.standby.kill()
        self.standby.wait()
        self.standby = None

    def have_none(self) -> None:
        """Want no standby any more."""
        self._set("")

    def close(self) -> None:
        """End both."""
        if self.standby is not None:
            self.detach()
        self.server.close()

    def _set(self, names: str) -> None:
        postgres_server.execute(
            self.server.url("postgres"),
            f"ALTER SYSTEM SET synchronous_standby_names = '{names}'",
            "SELECT pg_reload_conf()",
        )
        # It reads its settings a moment after it was told to.
        for _ in range(_TRIES):
            if postgres_server.value_of(self.url.text, "SHOW synchronous_standby_names") == names:
                return
        raise AssertionError("the server does not read its settings")
