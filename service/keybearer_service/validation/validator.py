"""The decision about a token: match the secret, then judge the key. Every entry point comes here.

The store is read for every verdict; the server keeps none. Only who *calls* is remembered, until
the next commit, and only where that costs less to notice than to look the caller up.
"""

import hmac
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import NamedTuple, Protocol

import structlog

from keybearer._wire.denial import denial_of as wire_denial_of
from keybearer._wire.enums import Outcome
from keybearer.access import AccessRule, Context, Decision, Role, decide
from keybearer.models import Presented
from keybearer_service.domain import token_format
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    CredentialsExpired,
    CredentialsInvalid,
    OperatorOnly,
    RoleInsufficient,
    ScopeInsufficient,
    ServiceError,
    StoreUnavailable,
)
from keybearer_service.domain.model import Moment
from keybearer_service.domain.verdict import (
    Caller,
    Match,
    TokenRecord,
    Verdict,
    cache_for_at,
    outcome_at,
)
from keybearer_service.installation.keyring import Keyring, PepperMissingError
from keybearer_service.storage import Reader

log = structlog.get_logger(__name__)

ANY_KEY = AccessRule()
"""Asks for a valid key and nothing more."""
MAX_REMEMBERED_CALLERS = 1000
"""For each thread; a service has few callers, and forgetting one costs a single read."""
MAX_TRIES = 5
"""How often a token is judged whose secret is issued again meanwhile. Twice is enough, unless the
change that does it fails."""
NOBODY = "0" * token_format.ID_LENGTH
"""The id of no key: what is ill-formed is looked up under it, for the revision."""


class Question(NamedTuple):
    """One token and the rule to judge it by."""

    presented: Presented
    scope: AccountScope
    """The accounts that the key may be of."""
    rule: AccessRule


class Lookups(Protocol):
    """Reads keys; a `Store` does."""

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        """Return a key's record and the moment; see `Store.lookup`."""
        ...

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        """Return the known ones of many keys and the moment; see `Store.lookup_many`."""
        ...

    def caller_version(self) -> int | None:
        """Return a number that every commit changes; see `Store.caller_version`."""
        ...

    def read(self) -> AbstractContextManager[Reader]:
        """Open a snapshot; see `Store.read`."""
        ...


class Uses(Protocol):
    """Counts uses; a `UsageRecorder` does."""

    def add(self, match: Match, now: Micros) -> bool:
        """Count one use; see `UsageRecorder.add`."""
        ...

    def add_all(self, matches: Sequence[Match], now: Micros) -> bool:
        """Count uses that are answered together; see `UsageRecorder.add_all`."""
        ...


class Validator:
    """Judges tokens."""

    def __init__(
        self,
        store: Lookups,
        keyring: Keyring,
        usage: Uses,
        clock: Clock,
        entropy: Entropy,
        prefixes: frozenset[str],
    ) -> None:
        """Create a validator for tokens with the prefixes in use."""
        self._store = store
        self._keyring = keyring
        self._usage = usage
        self._clock = clock
        self._entropy = entropy
        self._prefixes = prefixes
        self._dummy_mac = token_format.mac_of(entropy.key_bytes(32))
        self._dummy_digest = entropy.key_bytes(32)
        self._memory_key = entropy.key_bytes(32)
        self._memory = threading.local()

    def reading(self, lookups: Lookups, uses: Uses) -> "Validator":
        """Return the same validator, but for where it looks keys up and where it counts uses."""
        return Validator(lookups, self._keyring, uses, self._clock, self._entropy, self._prefixes)

    def judge(self, question: Question) -> Verdict:
        """Return the verdict about one token, and count its use when it is valid.

        Raises:
            StoreError: The store cannot be read; an outage is never a verdict. Or the secret is
                young, and the store is busy with what may be issuing it again.
            StoreUnavailable: The row's pepper is missing.
        """
        parsed = token_format.parse(question.presented.token, self._prefixes)
        for _ in range(MAX_TRIES):
            record, moment = self._store.lookup(NOBODY if parsed is None else parsed.key_id)
            now = self._clock.now()
            verdict = self._verdict(question, parsed, record, moment, now)
            match = verdict.match
            if verdict.outcome is not Outcome.VALID or match is None or self._usage.add(match, now):
                return verdict
        raise StoreUnavailable

    def judge_many(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return the verdicts about many tokens, in their order, of one snapshot.

        A token whose row names a pepper that is missing is UNSPECIFIED, which is no verdict; the
        others are judged all the same.

        Raises:
            StoreError: As `judge`.
            StoreUnavailable: The store is busy with what may be issuing one of the secrets again.
        """
        parsed = [
            token_format.parse(question.presented.token, self._prefixes) for question in questions
        ]
        key_ids = list({one.key_id for one in parsed if one is not None})
        for _ in range(MAX_TRIES):
            records, moment = self._store.lookup_many(key_ids)
            now = self._clock.now()
            verdicts = [
                self._verdict_if_any(
                    question, one, records.get(one.key_id) if one else None, moment, now
                )
                for question, one in zip(questions, parsed, strict=True)
            ]
            used = [
                verdict.match
                for verdict in verdicts
                if verdict.outcome is Outcome.VALID and verdict.match is not None
            ]
            if self._usage.add_all(used, now):
                return verdicts
        raise StoreUnavailable

    def authenticate(self, presented: Presented) -> Caller:
        """Return who calls with this credential, and count the use.

        Raises:
            CredentialsExpired: The key has expired.
            CredentialsInvalid: Anything else is wrong with the token.
            StoreError, StoreUnavailable: The store cannot be read, or is busy with what may be
                issuing this secret again.
        """
        for _ in range(MAX_TRIES):
            now = self._clock.now()
            caller = self._identify(presented, now)
            if self._usage.add(caller.match, now):
                return caller
        raise StoreUnavailable

    def identify(self, presented: Presented) -> Caller:
        """Return who calls with this credential; it counts no use, and reads the store alone.

        Raises:
            CredentialsExpired, CredentialsInvalid, StoreError, StoreUnavailable: As `authenticate`.
        """
        return self._identify(presented, self._clock.now())

    def count(self, caller: Caller) -> bool:
        """Count the use of a caller's key; return False when the caller is to be identified again.

        Raises:
            StoreError: As `UsageRecorder.add`.
        """
        return self._usage.add(caller.match, self._clock.now())

    def identify_again(
        self, caller: Caller, rule: AccessRule, context: Context
    ) -> tuple[Caller, Moment]:
        """Return who a caller is by now, with the moment of the same snapshot.

        Raises:
            ServiceError: The caller may no longer make the call.
            StoreError: The store cannot be read.
        """
        record, moment = self._store.lookup(caller.key_id)
        match = judge_caller_again(record, caller, rule, self._clock.now(), context)
        return caller_of(match), moment

    def is_well_formed(self, token: str) -> bool:
        """Return whether a token has the form of one of ours, whatever it opens."""
        return token_format.parse(token, self._prefixes) is not None

    def match(self, token: str) -> Match | None:
        """Return the key and the secret of it that a token opens, whatever the key's state."""
        return self._match_at(token, self._clock.now())

    def _match_at(self, token: str, now: Micros) -> Match | None:
        parsed = token_format.parse(token, self._prefixes)
        record, _ = self._store.lookup(NOBODY if parsed is None else parsed.key_id)
        return self._match(parsed, record, now)

    def revision(self) -> int:
        """Return the newest revision."""
        return self._store.lookup(NOBODY)[1].revision

    def _verdict(
        self,
        question: Question,
        parsed: token_format.Parsed | None,
        record: TokenRecord | None,
        moment: Moment,
        now: Micros,
    ) -> Verdict:
        match = self._match(parsed, record, now)
        if match is None or not question.scope.covers(match.record.account_id):
            return Verdict(
                Outcome.NOT_FOUND, moment, cache_for_at(Outcome.NOT_FOUND, None, now), None
            )
        outcome = outcome_at(match.record, question.rule, now, question.presented)
        return Verdict(outcome, moment, cache_for_at(outcome, match.valid_until, now), match)

    def _verdict_if_any(
        self,
        question: Question,
        parsed: token_format.Parsed | None,
        record: TokenRecord | None,
        moment: Moment,
        now: Micros,
    ) -> Verdict:
        try:
            return self._verdict(question, parsed, record, moment, now)
        except StoreUnavailable:
            return Verdict(Outcome.UNSPECIFIED, moment, 0, None)

    def _match(
        self, parsed: token_format.Parsed | None, record: TokenRecord | None, now: Micros
    ) -> Match | None:
        if parsed is None:
            return None
        if record is None:
            # The same work as for a known id, so that the time it takes does not show which exist.
            presented = token_format.digest_by(
                self._dummy_mac, NOBODY, parsed.key_id, parsed.secret
            )
            hmac.compare_digest(presented, self._dummy_digest)
            return None
        presented = self._digest(record, record.pepper_id, parsed)
        if hmac.compare_digest(presented, record.digest):
            return record.secret_of(record.secret_version, now)
        if record.old_digest is None or record.old_secret_version is None:
            return None
        if record.old_pepper_id != record.pepper_id:
            presented = self._digest(record, record.old_pepper_id or "", parsed)
        if not hmac.compare_digest(presented, record.old_digest):
            return None
        return record.secret_of(record.old_secret_version, now)

    def _digest(self, record: TokenRecord, pepper_id: str, parsed: token_format.Parsed) -> bytes:
        try:
            mac = self._keyring.mac(pepper_id)
        except PepperMissingError as error:
            if not self._is_retired(pepper_id):
                log.critical("pepper_missing", pepper_id=pepper_id, key_id=record.key_id)
                raise StoreUnavailable from error
            # No secret was live under it when it was retired, and none is issued under it since.
            mac = self._dummy_mac
        return token_format.digest_by(mac, record.account_id, parsed.key_id, parsed.secret)

    def _is_retired(self, pepper_id: str) -> bool:
        if not self._keyring.is_retired(pepper_id):
            with self._store.read() as reader:
                self._keyring.learn(reader.peppers())
        return self._keyring.is_retired(pepper_id)

    def _identify(self, presented: Presented, now: Micros) -> Caller:
        # Callers are remembered for each thread: the version is the thread's own view of commits.
        memory = self._memory
        version = self._store.caller_version()
        if version is None:
            return self._identify_afresh(presented, now)
        if getattr(memory, "version", None) != version or len(memory.callers) > (
            MAX_REMEMBERED_CALLERS
        ):
            memory.version = version
            memory.callers = {}
        callers: dict[bytes, Caller] = memory.callers
        key = blake2b(presented.token.encode(), key=self._memory_key, digest_size=32).digest()
        caller = callers.get(key)
        if caller is None or not caller.match.lives_at(now):
            caller = callers[key] = self._identify_afresh(presented, now)
        return caller

    def _identify_afresh(self, presented: Presented, now: Micros) -> Caller:
        match = self._match_at(presented.token, now)
        if match is None:
            raise CredentialsInvalid
        outcome = outcome_at(match.record, ANY_KEY, now, presented)
        if outcome is Outcome.EXPIRED:
            raise CredentialsExpired
        if outcome is not Outcome.VALID:
            raise CredentialsInvalid
        return caller_of(match)


def caller_of(match: Match, session_id: str = "", auth_time: Micros | None = None) -> Caller:
    """Return the identity behind a match that was judged VALID.

    Args:
        match: The secret that was proven.
        session_id: The session that calls, when it was proven to that one.
        auth_time: When the person behind that session last proved who they are.
    """
    record = match.record
    return Caller(
        key_id=record.key_id,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        role=record.effective_role,
        is_operator=bool(record.account_is_operator),
        match=match,
        session_id=session_id,
        auth_time=auth_time,
    )


def judge_caller(caller: Caller, rule: AccessRule, context: Context) -> None:
    """Judge an authenticated caller by the rule of a method.

    Raises:
        OperatorOnly, RoleInsufficient, ScopeInsufficient: The rule says no.
    """
    decision = decide(rule, caller.role, caller.match.record.scopes.split(), context)
    if decision is not Decision.ALLOWED:
        raise denial_of(Outcome[decision.name], rule, caller.role)
    if rule.operator_only and not caller.is_operator:
        raise OperatorOnly("only callers of the operator account may do this")


def judge_caller_again(
    record: TokenRecord | None,
    caller: Caller,
    rule: AccessRule,
    now: Micros,
    context: Context,
) -> Match:
    """Judge a caller by what the store says now; return its key and secret as they are now.

    Args:
        record: The caller's record; inside a change, as its transaction reads it.
        caller: Who was authenticated before.
        rule: The access rule of the call.
        now: The moment, in microseconds.
        context: Where the call comes from.

    Raises:
        CredentialsInvalid, CredentialsExpired: The secret that was presented no longer works.
        RoleInsufficient, ScopeInsufficient: The rule says no by now.
    """
    return match_of(record, caller.match.secret_version, rule, now, context)


def match_of(
    record: TokenRecord | None, secret_version: int, rule: AccessRule, now: Micros, context: Context
) -> Match:
    """Judge a secret that was proven before by what the store says now.

    Args:
        record: The record of its key; None when there is none any more.
        secret_version: Which secret of the key it is.
        rule: The access rule of the call.
        now: The moment, in microseconds.
        context: Where the call comes from.

    Raises:
        CredentialsInvalid, CredentialsExpired, RoleInsufficient, ScopeInsufficient: As
            `judge_caller_again`.
    """
    match = None if record is None else record.secret_of(secret_version, now)
    if match is None:
        raise CredentialsInvalid
    outcome = outcome_at(match.record, rule, now, context)
    if outcome is not Outcome.VALID:
        raise denial_of(outcome, rule, match.record.effective_role)
    return match


_DENIALS: dict[str, type[RoleInsufficient | ScopeInsufficient]] = {
    RoleInsufficient.reason: RoleInsufficient,
    ScopeInsufficient.reason: ScopeInsufficient,
}


def denial_of(outcome: Outcome, rule: AccessRule, role: Role) -> ServiceError:
    """Return the error for an outcome that is not VALID; an unknown outcome is a denial too."""
    denial = wire_denial_of(outcome, rule, role)
    error = _DENIALS.get(denial.reason)
    if error is not None:
        return error(denial.message, **denial.metadata)
    return CredentialsExpired() if outcome is Outcome.EXPIRED else CredentialsInvalid()
