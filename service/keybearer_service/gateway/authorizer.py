"""What the entry points for gateways share: reading a requirement, and writing an identity.

An entry point never decides. It turns what it reads into a `Question` for `Validator.judge`.

A requirement comes from several sources at once: a header, a query, the configuration of a route.
All of them hold together, and none relaxes another. What cannot be read is never left out: a typing
error would open a path without a sound. It is the gateway's mistake, so its client is denied (403)
and the log says what is wrong with it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import structlog

from keybearer._wire.bearer import token_of
from keybearer._wire.enums import Outcome
from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.domain import token_format, validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import (
    CredentialsMissing,
    FieldInvalid,
    RoleInsufficient,
    ServiceError,
)
from keybearer_service.domain.model import ANY_ACCOUNT
from keybearer_service.domain.verdict import Caller, Match
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.telemetry.recorder import EntryPoint, Recorder
from keybearer_service.usecases.access import authorize_question
from keybearer_service.validation.validator import Question, Validator, denial_of

log = structlog.get_logger(__name__)

ROLE = "required_role"
SCOPES = "required_scopes"
ACCOUNT = "account_id"
"""The names of the three requirements, in Envoy's context extensions and in a query."""

IDENTITY_HEADERS = (
    "x-keybearer-key-id",
    "x-keybearer-key-name",
    "x-keybearer-account",
    "x-keybearer-owner",
    "x-keybearer-owner-email",
    "x-keybearer-role",
    "x-keybearer-scopes",
)
"""All of them go out with every admission, so that none of the client's own is left standing."""

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_ROLES = {role.name: role for role in Role if role}
_FAULTS_LOGGED_A_MINUTE = 10


@dataclass(frozen=True, slots=True)
class Gateway:
    """Who asks at an entry point."""

    account_id: str
    """The account whose keys are meant when no source names one."""
    is_operator: bool
    """Whether the keys of other accounts may be asked for."""


def gateway_of(caller: Caller) -> Gateway:
    """Return the gateway behind a caller that was judged."""
    return Gateway(caller.account_id, caller.is_operator)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What all sources ask for together."""

    rule: AccessRule
    accounts: frozenset[str]
    """Accounts that were named; ANY_ACCOUNT may be one of them."""


class Authorizer:
    """Admits or denies the clients of gateways."""

    def __init__(self, validator: Validator, recorder: Recorder, clock: Clock) -> None:
        """Take who judges, and who is told."""
        self._validator = validator
        self._recorder = recorder
        self._clock = clock
        self._logged_faults = MinuteQuota(clock, _FAULTS_LOGGED_A_MINUTE)

    def authorize(
        self,
        entry_point: EntryPoint,
        gateway: Gateway,
        asked: Iterable[tuple[str, str]],
        authorization: Sequence[str],
    ) -> Match:
        """Answer whose token it is, when it meets everything that is asked.

        Args:
            entry_point: Where it is asked.
            gateway: Who asks.
            asked: Names and values of requirements, from every source.
            authorization: The values of the client's `authorization` headers.

        Raises:
            RoleInsufficient: Too low a role; or a requirement that cannot be read or met.
            OperatorOnly: Another account, and the gateway is not of the operator account.
            ScopeInsufficient, CredentialsMissing, CredentialsExpired, CredentialsInvalid: Denied.
            StoreError, StoreUnavailable: The store could not be asked; that denies nobody.
        """
        try:
            return self._judge(
                entry_point, self._question(entry_point, gateway, asked, authorization)
            )
        except ServiceError as error:
            self._recorder.refused(entry_point, error.reason)
            raise

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how many faults were not logged one by one; called every minute."""
        for entry_point, count in self._logged_faults.collect(everything=everything).items():
            log.warning("requirements_invalid", entry_point=entry_point, not_logged=count)

    def _question(
        self,
        entry_point: EntryPoint,
        gateway: Gateway,
        asked: Iterable[tuple[str, str]],
        authorization: Sequence[str],
    ) -> Question:
        try:
            requirement = requirement_of(asked)
            scope = _scope(gateway, requirement.accounts)
        except FieldInvalid as error:
            if self._logged_faults.admit(entry_point):
                log.warning(
                    "requirement_invalid",
                    entry_point=entry_point,
                    field=error.field,
                    why=error.description,
                )
            raise RoleInsufficient(
                "the gateway asks for what no key can have; the log of keybearer says what is wrong"
            ) from error
        token = token_of(authorization)
        if token is None:
            raise CredentialsMissing
        return Question(Presented(token), scope, requirement.rule)

    def _judge(self, entry_point: EntryPoint, question: Question) -> Match:
        started = self._clock.monotonic()
        verdict = self._validator.judge(question)
        self._recorder.judged(entry_point, verdict.outcome, self._clock.monotonic() - started)
        match = verdict.match
        if verdict.outcome is Outcome.VALID and match is not None:
            return match
        role = Role.UNSPECIFIED if match is None else match.record.effective_role
        raise denial_of(verdict.outcome, question.rule, role)


def requirement_of(asked: Iterable[tuple[str, str]]) -> Requirement:
    """Unite what all sources ask for: the highest role, every scope, every account.

    Raises:
        FieldInvalid: An unknown name, or a value that cannot be read; an empty one cannot.
    """
    role = Role.UNSPECIFIED
    scopes: list[str] = []
    accounts: set[str] = set()
    for name, value in asked:
        if name == ROLE:
            role = max(role, _role(value))
        elif name == SCOPES:
            # An empty one, as of a template without its value, is refused as ill-formed.
            scopes.extend(scope.strip(" \t") for scope in value.split(","))
        elif name == ACCOUNT:
            if value != ANY_ACCOUNT and not token_format.is_id(value):
                raise FieldInvalid(ACCOUNT, "not an account id, nor -")
            accounts.add(value)
        else:
            raise FieldInvalid("name", f"{name[:64]!r} is none of {ROLE}, {SCOPES}, {ACCOUNT}")
    return Requirement(validators.requirement("", role, scopes), frozenset(accounts))


def identity_of(match: Match) -> tuple[str, ...]:
    """Answer the values of IDENTITY_HEADERS, in their order: printable ASCII, else per cent."""
    record = match.record
    return (
        record.key_id,
        quote(record.key_name, safe=_PRINTABLE),
        record.account_id,
        record.owner_id,
        quote(record.owner_email, safe=_PRINTABLE),
        record.effective_role.name,
        record.scopes.replace(" ", ","),
    )


def _role(value: str) -> Role:
    role = _ROLES.get(value.upper().removeprefix("ROLE_"))
    if role is None:
        raise FieldInvalid(ROLE, f"not one of {', '.join(_ROLES)}")
    return role


def _scope(gateway: Gateway, named: frozenset[str]) -> AccountScope:
    for one in named:
        authorize_question(gateway, one)
    particular = named - {ANY_ACCOUNT}
    if len(particular) > 1:
        raise FieldInvalid(ACCOUNT, "several sources name different accounts")
    return authorize_question(gateway, next(iter(particular or named), ""))
