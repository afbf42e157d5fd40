"""One call, as the use cases see it: who calls, from where, and whether the caller still waits."""

from collections.abc import Callable
from typing import Protocol

from keybearer._wire.enums import AuditActorType
from keybearer.access import AccessRule
from keybearer_service.domain.audit_event import Actor
from keybearer_service.domain.verdict import Caller


class Origin(Protocol):
    """Where a call comes from."""

    @property
    def peer(self) -> str:
        """The address of the other end, without its port."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether somebody still waits for the answer."""
        ...

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the caller may still wait; None without a deadline."""
        ...


class CallContext:
    """The facts of one call. What only logs and audit events need is computed on demand."""

    __slots__ = ("_new_request_id", "_origin", "_request_id", "caller", "method", "rule", "started")

    def __init__(
        self,
        method: str,
        rule: AccessRule,
        origin: Origin,
        new_request_id: Callable[[], str],
        started: float = 0.0,
    ) -> None:
        self.method = method
        """`/package.Service/Method`."""
        self.rule = rule
        """The caller is judged by it when the call begins, and again inside a change."""
        self.caller: Caller | None = None
        """None for the public methods, and until the caller is authenticated."""
        self.started = started
        """When the call began, in seconds on the monotonic clock."""
        self._origin = origin
        self._new_request_id = new_request_id
        self._request_id = ""

    @property
    def request_id(self) -> str:
        """The id of this call in logs, errors and audit events."""
        if not self._request_id:
            self._request_id = self._new_request_id()
        return self._request_id

    @property
    def peer(self) -> str:
        """The address of the other end, without its port."""
        return self._origin.peer

    @property
    def is_alive(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._origin.is_alive

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the caller may still wait; None without a deadline."""
        return self._origin.remaining_s

    @property
    def identity(self) -> Caller:
        """The caller of a method that is not public."""
        if self.caller is None:
            raise LookupError(f"{self.method} has no caller: it is public")
        return self.caller

    @property
    def actor(self) -> Actor:
        """The caller, as the audit log names it."""
        if self.caller is None:
            return Actor(type=AuditActorType.ANONYMOUS)
        session_id = self.caller.session_id
        return Actor(
            type=AuditActorType.SESSION if session_id else AuditActorType.KEY,
            key_id=self.caller.key_id,
            user_id=self.caller.owner_id,
            user_email=self.caller.owner_email,
            session_id=session_id,
        )
