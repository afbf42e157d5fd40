"""Access rules: who may call a method, read from the descriptors, judged in one place.

`decide` is the only code that compares a role or a scope with a rule. The keybearer server, the
interceptors and the web guards all call it, so that a verdict never depends on the door.
"""

import enum
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from keybearer.v1 import access_pb2


class Role(enum.IntEnum):
    """A rank of authority, with the numbers of `keybearer.v1.Role`; a greater one holds more."""

    UNSPECIFIED = 0
    VALIDATOR = 1
    DEVELOPER = 2
    ADMIN = 3


class Decision(enum.Enum):
    """What a rule says about a caller that was identified."""

    ALLOWED = "ALLOWED"
    ROLE_INSUFFICIENT = "ROLE_INSUFFICIENT"
    SCOPE_INSUFFICIENT = "SCOPE_INSUFFICIENT"


# Named apart, because Python 3.11 takes a tenth of a microsecond to find a member of an enum.
_ADMIN = Role.ADMIN
_ALLOWED = Decision.ALLOWED


class RuleError(ValueError):
    """A service cannot be guarded as it stands: a method has no rule, or one that is no rule."""


@dataclass(frozen=True, slots=True)
class AccessRule:
    """What one method asks of its callers. The default asks for any valid key."""

    role: Role = Role.UNSPECIFIED
    """The least effective role; UNSPECIFIED asks for none."""
    scopes: tuple[str, ...] = ()
    """Scopes that must all be met."""
    public: bool = False
    """Nobody is asked for a credential."""
    only_roles: tuple[Role, ...] = ()
    """Exactly these roles may call; empty means the rank alone counts."""
    operator_only: bool = False
    """Only callers of the operator account (keybearer's own methods)."""
    accepted_roles: tuple[Role, ...] = field(init=False, repr=False, compare=False)
    """The roles that meet `role` and `only_roles`: worked out once, for every check."""
    accepted_scopes: tuple[frozenset[str], ...] = field(init=False, repr=False, compare=False)
    """For each of `scopes`, the held scopes that meet it."""

    def __post_init__(self) -> None:
        """Refuse a rule that contradicts itself.

        Raises:
            RuleError: `public` beside another field, or a scope with a wildcard.
        """
        if self.public and (self.role or self.scopes or self.only_roles or self.operator_only):
            message = (
                "a public method asks for nothing: drop role, scopes, only_roles, operator_only"
            )
            raise RuleError(message)
        for scope in self.scopes:
            if not is_required_scope(scope):
                message = f"required scope {scope!r} is not [a-z0-9][a-z0-9_.:-]*, at most 100"
                raise RuleError(message)
        named = self.only_roles or tuple(Role)
        roles = tuple(role for role in Role if role >= self.role and role in named)
        object.__setattr__(self, "accepted_roles", roles)
        object.__setattr__(self, "accepted_scopes", tuple(map(scopes_that_meet, self.scopes)))


MAX_SCOPE_LENGTH = 100
"""Characters in one scope, section 1 of the wire contract."""
MAX_SCOPES = 64
"""Scopes in one key, section 1 of the wire contract."""

_SCOPE = re.compile(r"[a-z0-9][a-z0-9_.:-]*", re.ASCII)


def is_required_scope(scope: str) -> bool:
    """Tell whether `scope` may be asked for: well formed and without a wildcard."""
    return len(scope) <= MAX_SCOPE_LENGTH and _SCOPE.fullmatch(scope) is not None


def is_held_scope(scope: str) -> bool:
    """Tell whether a key may carry `scope`: as a required one, or `*`, or one that ends in `.*`."""
    if scope == "*":
        return True
    return len(scope) <= MAX_SCOPE_LENGTH and is_required_scope(scope.removesuffix(".*"))


def scopes_that_meet(required: str) -> frozenset[str]:
    """Answer every held scope that meets the `required` one: itself, `*`, and `a.*` for `a.b`."""
    parents = (f"{required[: place + 1]}*" for place, one in enumerate(required) if one == ".")
    return frozenset((required, "*", *parents))


def decide(rule: AccessRule, role: Role, scopes: Collection[str]) -> Decision:
    """Judge an identified caller by a rule.

    Args:
        rule: What is asked for.
        role: The caller's effective role.
        scopes: The scopes of the caller's key. An ADMIN meets every scope without carrying any.
    """
    if role not in rule.accepted_roles:
        return Decision.ROLE_INSUFFICIENT
    if role is not _ADMIN:
        for accepted in rule.accepted_scopes:
            if accepted.isdisjoint(scopes):
                return Decision.SCOPE_INSUFFICIENT
    return _ALLOWED


def rule_of(method: MethodDescriptor) -> AccessRule | None:
    """Read the `(keybearer.v1.access)` option of a method; None when it has none.

    Raises:
        RuleError: The option contradicts itself or names a role this version does not know.
    """
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        return None
    access = options.Extensions[access_pb2.access]
    try:
        return AccessRule(
            role=Role(access.role),
            scopes=tuple(access.scopes),
            public=access.public,
            only_roles=tuple(Role(role) for role in access.only_roles),
            operator_only=access.operator_only,
        )
    except ValueError as error:
        message = f"the access rule of {method.full_name} is no rule: {error}"
        raise RuleError(message) from error


def method_path(method: MethodDescriptor) -> str:
    """Name a method as gRPC does on the wire: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def rules_of(services: Iterable[ServiceDescriptor]) -> dict[str, AccessRule]:
    """Read the rules of whole services, by method path.

    Raises:
        RuleError: A method has no rule; it would be denied for ever, which nobody means.
    """
    rules: dict[str, AccessRule] = {}
    for service in services:
        for method in service.methods:
            rule = rule_of(method)
            if rule is None:
                message = f"{method.full_name} has no option (keybearer.v1.access)"
                raise RuleError(message)
            rules[method_path(method)] = rule
    return rules
