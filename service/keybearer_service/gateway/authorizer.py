"""What the entry points for gateways share: reading a requirement, and writing an identity.

An entry point never decides. It turns what it reads into a `Question` for `Validator.judge`.

A requirement comes from several sources at once: a header, a query, the configuration of a route.
All of them hold together, and none relaxes another. What cannot be read is never left out: a typing
error would open a path without a sound. It is the gateway's mistake, so its client is denied (403)
and the log says what is wrong with it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import structlog

from keybearer._wire.bearer import token_of
from keybearer._wire.enums import Outcome
from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.domain import token_format, validators
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import (
    CredentialsMissing,
    FieldInvalid,
    OperatorOnly,
    RoleInsufficient,
    ServiceError,
)
from keybearer_service.domain.model import ANY_ACCOUNT
from keybearer_service.domain.verdict import Caller, Match
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.telemetry.recorder import EntryPoint, Recorder
from keybearer_service.usecases.access import EVERY_ACCOUNT, gateway_scopes
from keybearer_service.validation.validator import Question, Validator, denial_of

log = structlog.get_logger(__name__)

ROLE = "required_role"
SCOPES = "required_scopes"
ACCOUNT = "account_id"
"""The names of the three requirements, in Envoy's context extensions and in a query."""

ACCOUNTS_LABEL = "keybearer/gateway-accounts"
"""The label of a gateway's key that names the other accounts it asks about over HTTP."""

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
    """Who asks at an entry point, and about which accounts; ANY_ACCOUNT stands for all of them."""

    accounts: frozenset[str]
    """The accounts whose keys are meant when no source names one."""
    may_name: frozenset[str]
    """The accounts that a source may name."""


def gateway_of(caller: Caller) -> Gateway:
    """Return the gateway behind a caller, where requirements are the gateway's own words.

    It means its own account, and may name any when it is of the operator account.
    """
    own = frozenset({caller.account_id})
    return Gateway(own, EVERY_ACCOUNT if caller.is_operator else own)


def narrowing_gateway_of(caller: Caller, operator_accounts: frozenset[str]) -> Gateway:
    """Return the gateway behind a caller, where its client may have a say in the requirements.

    Nothing in a request can widen what the gateway means: that is its own account and, for a key of
    the operator account, what its label and the settings add.

    Args:
        caller: The gateway.
        operator_accounts: What the settings add.
    """
    accounts = {caller.account_id}
    if caller.is_operator:
        labels: dict[str, str] = json.loads(caller.match.record.labels or "{}")
        accounts |= operator_accounts | accounts_in(labels.get(ACCOUNTS_LABEL, ""))
    return narrowing_gateway(accounts)


def accounts_in(text: str) -> frozenset[str]:
    """Return the accounts that a label or a setting names: ids separated by commas, or `*`.

    What is neither names no account.
    """
    names = {name.strip() for name in text.split(",")}
    return EVERY_ACCOUNT if "*" in names else frozenset(filter(token_format.is_id, names))


def narrowing_gateway(accounts: Iterable[str]) -> Gateway:
    """Return a gateway that means these accounts, of which a source may choose."""
    reach = frozenset(accounts)
    if ANY_ACCOUNT in reach:
        reach = EVERY_ACCOUNT
    return Gateway(reach, reach)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What all sources ask for together."""

    rule: AccessRule
    accounts: frozenset[str]
    """Accounts that were named; ANY_ACCOUNT may be one of them."""


class Authorizer:
    """Admits or denies the clients of gateways."""

    def __init__(
        self,
        validator: Validator,
        recorder: Recorder,
        clock: Clock,
        logged_faults: MinuteQuota | None = None,
    ) -> None:
        """Create the authorizer; `logged_faults` is that of another one, which flushes it."""
        self._validator = validator
        self._recorder = recorder
        self._clock = clock
        self._logged_faults = logged_faults or MinuteQuota(clock, _FAULTS_LOGGED_A_MINUTE)

    def asking(self, validator: Validator) -> "Authorizer":
        """Return the same authorizer, but for whom it asks about tokens."""
        return Authorizer(validator, self._recorder, self._clock, self._logged_faults)

    def authorize(
        self,
        entry_point: EntryPoint,
        gateway: Gateway,
        asked: Iterable[tuple[str, str]],
        authorization: Sequence[str],
    ) -> Match:
        """Return the key that a token opens, when it meets every requirement.

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
                entry_point, self._questions(entry_point, gateway, asked, authorization)
            )
        except ServiceError as error:
            self._recorder.refused(entry_point, error.reason)
            raise

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how many faults were not logged one by one; called every minute."""
        for entry_point, count in self._logged_faults.collect(everything=everything).items():
            log.warning("requirements_invalid", entry_point=entry_point, not_logged=count)

    def _questions(
        self,
        entry_point: EntryPoint,
        gateway: Gateway,
        asked: Iterable[tuple[str, str]],
        authorization: Sequence[str],
    ) -> list[Question]:
        try:
            requirement = requirement_of(asked)
            scopes = gateway_scopes(gateway.accounts, gateway.may_name, requirement.accounts)
        except OperatorOnly as error:
            self._log_fault(entry_point, ACCOUNT, error.message)
            raise
        except FieldInvalid as error:
            self._log_fault(entry_point, error.field, error.description)
            raise RoleInsufficient(
                "the gateway asks for what no key can have; the log of keybearer says what is wrong"
            ) from error
        token = token_of(authorization)
        if token is None:
            raise CredentialsMissing
        return [Question(Presented(token), scope, requirement.rule) for scope in scopes]

    def _log_fault(self, entry_point: EntryPoint, field: str, why: str) -> None:
        if self._logged_faults.admit(entry_point):
            log.warning("requirement_invalid", entry_point=entry_point, field=field, why=why)

    def _judge(self, entry_point: EntryPoint, questions: list[Question]) -> Match:
        started = self._clock.monotonic()
        for question in questions:
            verdict = self._validator.judge(question)
            if verdict.outcome is not Outcome.NOT_FOUND:
                break  # a key is of one account
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
    """Return the values of IDENTITY_HEADERS, in order; what is not ASCII is percent-encoded."""
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
