"""What the service records about itself while it works. It does not know where it goes."""

import enum
from typing import Protocol

from keybearer._wire.enums import Outcome


class EntryPoint(enum.StrEnum):
    """Where a question about a token comes in."""

    VALIDATE = "validate"
    BATCH = "batch"
    EXT_AUTHZ = "ext_authz"
    FORWARD_AUTH = "forward_auth"
    INTROSPECTION = "introspection"


class Recorder(Protocol):
    """Records what happens. Must be cheap, safe for many threads, and never raise."""

    def judged(
        self, entry_point: EntryPoint, outcome: Outcome, seconds: float, count: int = 1
    ) -> None:
        """Record verdicts.

        Args:
            entry_point: Where the questions came in.
            outcome: What the verdicts say.
            seconds: How long each took to reach, the network left out.
            count: How many.
        """
        ...

    def called(self, method: str, code: str) -> None:
        """Record one management call: its path and the name of its status code."""
        ...

    def refused(self, where: str, reason: str) -> None:
        """Record one refusal: at an entry point, or in front of our own methods (`grpc`)."""
        ...

    def overloaded(self, executor: str, bound: str) -> None:
        """Record one call that was refused because too many of its kind are there.

        Args:
            executor: The name of the executor that it was for.
            bound: Whose bound it was: of `all` callers, or of one `account`.
        """
        ...


class NullRecorder:
    """Records nothing: for a server whose metrics nobody can ask for."""

    def judged(
        self, entry_point: EntryPoint, outcome: Outcome, seconds: float, count: int = 1
    ) -> None:
        """Ignore it."""

    def called(self, method: str, code: str) -> None:
        """Ignore it."""

    def refused(self, where: str, reason: str) -> None:
        """Ignore it."""

    def overloaded(self, executor: str, bound: str) -> None:
        """Ignore it."""
