"""One call, as the use cases see it: who calls, from where, and whether anybody still waits."""

from collections.abc import Callable
from typing import Protocol

from keybearer.access import AccessRule, Role
from keybearer_service.domain.audit_event import Actor, ActorType
from keybearer_service.domain.errors import OperatorOnly, ResourceNotFound
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


class CallContext:
    """The facts of one call. What only logs and audit events need is worked out when they ask."""

    __slots__ = ("_new_request_id", "_origin", "_request_id", "caller", "method", "rule", "started")

    def __init__(
        self,
        method: str,
        rule: AccessRule,
        origin: Origin,
        new_request_id: Callable[[], str],
        started: float = 0.0,
    ) -> None:
        """Take where the call comes from and which rule its caller is judged by."""
        self.method = method
        """`/package.Service/Method`."""
        self.rule = rule
        """What the caller is judged by, and is judged by again inside a change."""
        self.caller: Caller | None = None
        """None for the public methods, and until the caller is authenticated."""
        self.started = started
        """When the call began, in seconds on the monotonic clock."""
        self._origin = origin
        self._new_request_id = new_request_id
        self._request_id = ""

    @property
    def request_id(self) -> str:
        """Names this call in logs, errors and audit events."""
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
    def identity(self) -> Caller:
        """The caller of a method that is not public."""
        if self.caller is None:
            raise LookupError(f"{self.method} has no caller: it is public")
        return self.caller

    @property
    def is_operator_admin(self) -> bool:
        """Whether the caller may act in every account."""
        return self.identity.is_operator and self.identity.role is Role.ADMIN

    def account(self, requested: str) -> str:
        """Answer the account to act in: the caller's own, or the one asked for.

        Raises:
            OperatorOnly: Another account, and the caller is no operator's administrator. Whether
                the account exists is not told.
        """
        if requested in ("", self.identity.account_id):
            return self.identity.account_id
        if not self.is_operator_admin:
            raise OperatorOnly("account_id: only operators may name another account")
        return requested

    def assert_operator(self, field: str) -> None:
        """Refuse callers that are not of the operator account.

        Raises:
            OperatorOnly: Naming the field that asked for more.
        """
        if not self.identity.is_operator:
            raise OperatorOnly(f"{field}: only operators may name another account")

    def assert_visible(self, account_id: str, resource: str, resource_id: str) -> None:
        """Refuse a thing of an account the caller may not see, exactly as if it did not exist.

        Raises:
            ResourceNotFound: Not visible.
        """
        if account_id != self.identity.account_id and not self.is_operator_admin:
            raise ResourceNotFound(resource, resource_id)

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
