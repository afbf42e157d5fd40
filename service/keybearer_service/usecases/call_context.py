"""One call, as the use cases see it: who calls, from where, and whether the caller still waits."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol
from urllib.parse import unquote

from keybearer.access import AccessRule
from keybearer_service.domain.audit_event import Actor, ActorType
from keybearer_service.domain.verdict import Caller


class Transport(Protocol):
    """The connection that a call came by; grpc's ServicerContext is one."""

    def peer(self) -> str:
        """Return the other end in the form of grpc: `ipv4:192.0.2.1:1234`."""
        ...

    def is_active(self) -> bool:
        """Return whether the call was neither cancelled nor answered."""
        ...

    def time_remaining(self) -> float | None:
        """Return the seconds left until the caller's deadline; None when there is none."""
        ...


class CallContext:
    """The facts of one call. What only logs and audit events need is computed on demand."""

    __slots__ = ("_new_request_id", "_request_id", "_transport", "caller", "method", "rule")

    def __init__(
        self,
        method: str,
        rule: AccessRule,
        transport: Transport,
        new_request_id: Callable[[], str],
    ) -> None:
        self.method = method
        """`/package.Service/Method`."""
        self.rule = rule
        """The caller is judged by it when the call begins, and again inside a change."""
        self.caller: Caller | None = None
        """None for public methods, and until the caller is authenticated."""
        self._transport = transport
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
        family, _, address = unquote(self._transport.peer()).partition(":")
        return address.rpartition(":")[0].strip("[]") if family.startswith("ip") else family

    @property
    def is_alive(self) -> bool:
        """Whether the caller still waits for the response."""
        remaining = self._transport.time_remaining()
        return self._transport.is_active() and (remaining is None or remaining > 0)

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
            return Actor(type=ActorType.ANONYMOUS)
        return Actor(
            type=ActorType.KEY,
            key_id=self.caller.key_id,
            user_id=self.caller.owner_id,
            user_email=self.caller.owner_email,
        )


_current: ContextVar[CallContext | None] = ContextVar("keybearer_call", default=None)


def set_current_call(call: CallContext | None) -> None:
    """Say which call is being served, and None once it is over.

    A call that stayed here would live until the garbage collector comes: grpc keeps a context for
    each call, which would hold the call, which holds its transport, which holds the context. And
    while it lives its stream counts among the 100 of its connection.
    """
    _current.set(call)


def current_call() -> CallContext:
    """Answer the call being served; the call pipeline sets it before a servicer runs."""
    call = _current.get()
    if call is None:
        raise LookupError("no call is being served")
    return call
