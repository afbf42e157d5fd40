"""From a credential and a rule to an identity or a denial: the part that all guards share.

Everything here denies by default: a verdict that is not VALID, an outcome this version does not
know, a method without a rule, and any exception.
"""

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from keybearer._client.verifier import RETRY_AFTER, AsyncVerifier, Verifier, is_one_word
from keybearer.access import AccessRule, Decision, Role, RuleError, decide, method_path, rule_of
from keybearer.errors import DETAILS_KEY, DOMAIN, KeybearerError, VerifierUnavailableError
from keybearer.models import Identity, Outcome, Verdict

log = logging.getLogger(__name__)

HEALTH_AND_REFLECTION: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The methods that probes and tools call without a credential."""

Headers = Callable[[], Iterable[tuple[str, str | bytes]]]
"""Answers the headers of a request, or the metadata of a call; names in lower case."""

_REALM = 'Bearer realm="keybearer"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Why a call is refused, in the words of section 6 of the wire contract."""

    code: grpc.StatusCode
    reason: str
    message: str
    """For people; says nothing that the caller may not know."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    """Seconds."""
    challenge: str = ""
    """The value of `www-authenticate`, RFC 6750 section 3; empty when there is none."""
    field: str = ""
    """The field of the request that is wrong."""

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Answer the trailing metadata: the details of the status, and the challenge."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after * 1e9))
            details.append(retry)
        status = status_pb2.Status(
            code=self.code.value[0],
            message=self.message,
            details=[_packed(detail) for detail in details],
        )
        trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
        if self.challenge:
            trailers += (("www-authenticate", self.challenge),)
        return trailers


CREDENTIALS_MISSING: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_MISSING",
    message="exactly one `authorization: Bearer <token>` is needed",
    challenge=_REALM,
)
CREDENTIALS_INVALID: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_INVALID",
    message="the credential is not accepted",
    challenge=(
        f'{_REALM}, error="invalid_token", error_description="the credential is not accepted"'
    ),
)
CREDENTIALS_EXPIRED: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_EXPIRED",
    message="the key has expired",
    challenge=f'{_REALM}, error="invalid_token", error_description="the key has expired"',
)
NO_RULE: Final = Denial(
    code=grpc.StatusCode.PERMISSION_DENIED,
    reason="ROLE_INSUFFICIENT",
    message="this has no access rule, so nobody may call it",
    challenge=f'{_REALM}, error="insufficient_scope"',
)
MALFORMED_MESSAGE: Final = Denial(
    code=grpc.StatusCode.INVALID_ARGUMENT,
    reason="FIELD_INVALID",
    message="(message): the bytes are not a message of this method",
    metadata={"field": "(message)"},
    field="(message)",
)


class NoIdentityError(LookupError):
    """Nobody was identified: the code runs outside a guarded call, or for a public method."""


# Named apart, because Python 3.11 takes a tenth of a microsecond to find a member of an enum.
_VALID = Outcome.VALID
_ALLOWED = Decision.ALLOWED

_current: ContextVar[Identity | None] = ContextVar("keybearer_identity", default=None)
enter_identity = _current.set
leave_identity = _current.reset


def current_identity() -> Identity:
    """Answer who makes the call that is being handled.

    Raises:
        NoIdentityError: Nobody was identified.
    """
    identity = _current.get()
    if identity is None:
        raise NoIdentityError("no identity: the method is public, or nothing guards this code")
    return identity


class Rules:
    """Which rule a gRPC method is judged by.

    Args:
        services: Descriptors of services of which every method must have a rule.
        rules: Rules by method path, `/package.Service/Method`, for methods whose own proto has
            none. They win over the options in the proto.
        public_methods: Paths that need no credential, exactly.

    Raises:
        RuleError: A method of `services` has no rule, or a rule cannot be judged here.
    """

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        rules: Mapping[str, AccessRule] | None,
        public_methods: Collection[str],
    ) -> None:
        self._rules = dict(rules or {})
        for method in (method for service in services for method in service.methods):
            path = method_path(method)
            rule = self._rules.get(path) or rule_of(method)
            if rule is None:
                raise RuleError(f"{method.full_name} has no option (keybearer.v1.access)")
            self._rules[path] = rule
        for path, rule in self._rules.items():
            _assert_judgeable(path, rule)
        for path in public_methods:
            self._rules.setdefault(path, AccessRule(public=True))

    def of(self, path: str) -> AccessRule | None:
        """Answer the rule of a method; None when it has none, which is a denial."""
        rule = self._rules.get(path)
        if rule is not None:
            return rule
        try:
            rule = _declared_rule(path)
            if rule is not None:
                _assert_judgeable(path, rule)
        except RuleError:
            log.exception("%s is denied to everybody", path)
            return None
        if rule is None:
            log.error("%s is denied to everybody: it has no option (keybearer.v1.access)", path)
        return rule


def check(verifier: Verifier, headers: Headers, rule: AccessRule | None) -> Identity | Denial:
    """Judge a call. Never raises: trouble is a denial.

    Args:
        verifier: Answers whose token it is.
        headers: Answers what came with the call, when it is called.
        rule: What is asked for; without one nobody may call.
    """
    try:
        if rule is None:
            return NO_RULE
        token = _bearer_token(headers())
        if token is None:
            return CREDENTIALS_MISSING
        return _judge(token, verifier.verify(token), rule)
    except Exception as error:  # noqa: BLE001 - whatever happened, the answer is no
        return denial_of(error)


async def check_async(
    verifier: AsyncVerifier, headers: Headers, rule: AccessRule | None
) -> Identity | Denial:
    """As `check`, for asyncio."""
    try:
        if rule is None:
            return NO_RULE
        token = _bearer_token(headers())
        if token is None:
            return CREDENTIALS_MISSING
        return _judge(token, await verifier.verify(token), rule)
    except Exception as error:  # noqa: BLE001 - whatever happened, the answer is no
        return denial_of(error)


def denial_of(error: Exception) -> Denial:
    """Turn trouble into a denial that tells nothing of it.

    Whatever keybearer answers to *our* question, also UNAUTHENTICATED, is an outage to the caller.
    """
    if isinstance(error, KeybearerError):
        retry_after = RETRY_AFTER if error.retry_after is None else error.retry_after
        return Denial(
            code=grpc.StatusCode.UNAVAILABLE,
            reason=VerifierUnavailableError.default_reason,
            message="the credential cannot be checked right now",
            retry_after=retry_after,
        )
    reference = uuid.uuid4().hex[:16]
    log.error("a guard failed and denied the call, reference %s", reference, exc_info=error)
    return Denial(
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        message=f"internal error (reference {reference})",
        metadata={"reference": reference},
    )


def _bearer_token(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Answer the token; None unless there is exactly one `authorization`, of the form of RFC 6750.

    What follows the scheme is taken as it is: no verifier accepts what is no token, and `_judge`
    tells why, at the expense of those who are refused.
    """
    authorization = None
    for name, value in headers:
        if name == "authorization":
            if authorization is not None:
                return None
            authorization = value
    if authorization is None:
        return None
    if isinstance(authorization, bytes):
        authorization = authorization.decode("latin-1")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    return token.lstrip(" ") or None


def _judge(token: str, verdict: Verdict, rule: AccessRule) -> Identity | Denial:
    identity = verdict.identity
    if verdict.outcome is _VALID and identity is not None:
        decision = decide(rule, identity.effective_role, identity.scopes)
        if decision is _ALLOWED:
            return identity
        return _insufficient(decision.value, rule, identity.effective_role)
    if verdict.outcome is Outcome.EXPIRED:
        return CREDENTIALS_EXPIRED
    if verdict.outcome in (Outcome.ROLE_INSUFFICIENT, Outcome.SCOPE_INSUFFICIENT):
        role = Role.UNSPECIFIED if identity is None else identity.effective_role
        return _insufficient(verdict.outcome.name, rule, role)
    # Two headers that were joined into one, for example, are not one header.
    return CREDENTIALS_INVALID if is_one_word(token) else CREDENTIALS_MISSING


def _insufficient(reason: str, rule: AccessRule, role: Role) -> Denial:
    """Say which role or which scopes would do."""
    needed = ", ".join(one.name for one in rule.accepted_roles if one)
    if reason == Decision.SCOPE_INSUFFICIENT.value:
        scopes = ", ".join(rule.scopes)
        message = f"this needs the scopes {scopes}"
        metadata = {"required_scopes": scopes}
        extra = f', scope="{" ".join(rule.scopes)}"'
    else:
        message = f"this needs the role {needed}; the key's effective role is {role.name}"
        metadata = {"required_role": needed, "effective_role": role.name}
        extra = ""
    return Denial(
        code=grpc.StatusCode.PERMISSION_DENIED,
        reason=reason,
        message=message,
        metadata=metadata,
        challenge=f'{_REALM}, error="insufficient_scope", error_description="{message}"{extra}',
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _declared_rule(path: str) -> AccessRule | None:
    """Read the rule of a method whose proto is loaded in this process."""
    service_name, _, method_name = path.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        method = service.methods_by_name[method_name]
    except KeyError:
        return None
    return rule_of(method)


def _assert_judgeable(path: str, rule: AccessRule) -> None:
    """Refuse a rule that only keybearer itself can judge."""
    if rule.operator_only:
        raise RuleError(f"{path}: operator_only is for keybearer's own methods")
