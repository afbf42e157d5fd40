"""The decision about a token: match the secret, then judge the key. Every door asks here.

The store is read for every verdict; the server keeps none. Only who *calls* is remembered, for as
long as nobody has committed anything.
"""

import hmac
import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import structlog

from keybearer.access import NO_CONTEXT, AccessRule, Decision, Role, decide
from keybearer_service import tokens
from keybearer_service.calls import ANY_ACCOUNT
from keybearer_service.errors import (
    CredentialsExpired,
    CredentialsInvalid,
    OperatorOnly,
    RoleInsufficient,
    ScopeInsufficient,
    ServiceError,
    StoreUnavailable,
)
from keybearer_service.keyring import Keyring, PepperMissingError
from keybearer_service.model import (
    Caller,
    Match,
    Outcome,
    TokenRecord,
    Verdict,
    cache_for_at,
    outcome_at,
)
from keybearer_service.sources import Clock, Entropy
from keybearer_service.storage import Store
from keybearer_service.usage import UsageRecorder

log = structlog.get_logger(__name__)

ANY_KEY = AccessRule()
"""Asks for a valid key and nothing more."""
MAX_REMEMBERED_CALLERS = 1000
"""For each thread; a service has few callers, and forgetting one costs a single read."""
_NOBODY = "0" * tokens.ID_LENGTH

Lookup = Callable[[str], TokenRecord | None]
"""Reads the record of a key by its id."""


class Question(NamedTuple):
    """What is asked about one token."""

    token: str
    account_id: str
    """The account the key must be of, or ANY_ACCOUNT."""
    rule: AccessRule


class Validator:
    """Judges tokens."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        usage: UsageRecorder,
        clock: Clock,
        entropy: Entropy,
        prefixes: frozenset[str],
    ) -> None:
        """Take the store, the peppers, where uses are counted, and the prefixes in use."""
        self._store = store
        self._keyring = keyring
        self._usage = usage
        self._clock = clock
        self._prefixes = prefixes
        self._dummy_mac = tokens.mac_of(entropy.key_bytes(32))
        self._dummy_digest = entropy.key_bytes(32)
        self._memory_key = entropy.key_bytes(32)
        self._memory = threading.local()

    def judge(self, question: Question) -> Verdict:
        """Answer the verdict about one token, and count its use when it is valid.

        Raises:
            StoreError: The store could not be asked; that is never a verdict.
            StoreUnavailable: The row's pepper is missing.
        """
        parsed = tokens.parse(question.token, self._prefixes)
        record, revision = self._store.lookup(_NOBODY if parsed is None else parsed.key_id)
        return self._verdict(question, parsed, record, revision)

    def judge_many(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answer the verdicts about many tokens, in their order, against one snapshot.

        Raises:
            StoreError, StoreUnavailable: As `judge`.
        """
        parsed = [tokens.parse(question.token, self._prefixes) for question in questions]
        records, revision = self._store.lookup_many(
            list({one.key_id for one in parsed if one is not None})
        )
        return [
            self._verdict(question, one, records.get(one.key_id) if one else None, revision)
            for question, one in zip(questions, parsed, strict=True)
        ]

    def authenticate(self, token: str) -> Caller:
        """Answer who calls with this token, and count the use.

        Raises:
            CredentialsExpired: The key has expired.
            CredentialsInvalid: Anything else is wrong with the token.
            StoreError, StoreUnavailable: The store could not be asked.
        """
        now = self._clock.now()
        # Remembered for each thread, because the version is a thread's own view of the commits.
        memory = self._memory
        version = self._store.version()
        if getattr(memory, "version", None) != version or len(memory.callers) > (
            MAX_REMEMBERED_CALLERS
        ):
            memory.version = version
            memory.callers = {}
        callers: dict[bytes, Caller] = memory.callers
        key = blake2b(token.encode(), key=self._memory_key, digest_size=32).digest()
        caller = callers.get(key)
        if caller is None or not caller.match.lives_at(now):
            caller = callers[key] = self._identify(token, now)
        self._usage.add(caller.match, now)
        return caller

    def identify_again(self, caller: Caller, rule: AccessRule) -> tuple[Caller, int]:
        """Answer who a caller is by now, with the revision of the same snapshot.

        Raises:
            ServiceError: The caller may no longer make the call.
            StoreError: The store could not be asked.
        """
        with self._store.read() as reader:
            judge_caller_again(reader.lookup, caller, rule, self._clock.now())
            record = reader.lookup(caller.key_id)
            revision = reader.installation().revision
        if record is None:
            raise CredentialsInvalid
        version = caller.match.secret_version
        is_current = version == record.secret_version
        end = record.expire_time if is_current else record.overlap_end_time
        return caller_of(Match(record, version, end, is_current=is_current)), revision

    def match(self, token: str) -> Match | None:
        """Answer which key and which secret of it a token opens, whatever the key's state."""
        parsed = tokens.parse(token, self._prefixes)
        record, _ = self._store.lookup(_NOBODY if parsed is None else parsed.key_id)
        return self._match(parsed, record)

    def revision(self) -> int:
        """Answer the newest revision."""
        return self._store.lookup(_NOBODY)[1]

    def _verdict(
        self,
        question: Question,
        parsed: tokens.Parsed | None,
        record: TokenRecord | None,
        revision: int,
    ) -> Verdict:
        match = self._match(parsed, record)
        now = self._clock.now()
        if match is None or question.account_id not in (ANY_ACCOUNT, match.record.account_id):
            return Verdict(
                Outcome.NOT_FOUND, revision, cache_for_at(Outcome.NOT_FOUND, None, now), None
            )
        outcome = outcome_at(match.record, question.rule, now)
        if outcome is Outcome.VALID:
            self._usage.add(match, now)
        return Verdict(outcome, revision, cache_for_at(outcome, match.valid_until, now), match)

    def _match(self, parsed: tokens.Parsed | None, record: TokenRecord | None) -> Match | None:
        if parsed is None:
            return None
        if record is None:
            # The same work as for a known id, so that time does not tell which ids exist.
            presented = tokens.digest_by(self._dummy_mac, _NOBODY, parsed.key_id, parsed.secret)
            hmac.compare_digest(presented, self._dummy_digest)
            return None
        presented = self._digest(record, record.pepper_id, parsed)
        if hmac.compare_digest(presented, record.digest):
            return Match(record, record.secret_version, record.expire_time, is_current=True)
        if record.old_digest is None or record.overlap_end_time is None:
            return None
        if record.old_pepper_id != record.pepper_id:
            presented = self._digest(record, record.old_pepper_id or "", parsed)
        if not hmac.compare_digest(presented, record.old_digest):
            return None
        if self._clock.now() >= record.overlap_end_time:
            return None
        return Match(
            record, record.old_secret_version or 0, record.overlap_end_time, is_current=False
        )

    def _digest(self, record: TokenRecord, pepper_id: str, parsed: tokens.Parsed) -> bytes:
        try:
            mac = self._keyring.mac(pepper_id)
        except PepperMissingError as error:
            log.critical("pepper_missing", pepper_id=pepper_id, key_id=record.key_id)
            raise StoreUnavailable from error
        return tokens.digest_by(mac, record.account_id, parsed.key_id, parsed.secret)

    def _identify(self, token: str, now: int) -> Caller:
        match = self.match(token)
        if match is None:
            raise CredentialsInvalid
        outcome = outcome_at(match.record, ANY_KEY, now)
        if outcome is Outcome.EXPIRED:
            raise CredentialsExpired
        if outcome is not Outcome.VALID:
            raise CredentialsInvalid
        return caller_of(match)


def caller_of(match: Match) -> Caller:
    """Name the identity behind a match that was judged VALID."""
    record = match.record
    return Caller(
        key_id=record.key_id,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        role=record.effective_role,
        is_operator=bool(record.account_is_operator),
        match=match,
    )


def judge_caller(caller: Caller, rule: AccessRule) -> None:
    """Judge an authenticated caller by the rule of a method.

    Raises:
        OperatorOnly, RoleInsufficient, ScopeInsufficient: The rule says no.
    """
    decision = decide(rule, caller.role, caller.match.record.scopes.split(), NO_CONTEXT)
    if decision is not Decision.ALLOWED:
        raise denial_of(Outcome[decision.name], rule, caller.role)
    if rule.operator_only and not caller.is_operator:
        raise OperatorOnly("only callers of the operator account may do this")


def judge_caller_again(lookup: Lookup, caller: Caller, rule: AccessRule, now: int) -> Role:
    """Judge a caller by what the store says now; answer the effective role of this moment.

    Args:
        lookup: Reads the caller's record; inside a change, in its transaction.
        caller: Was authenticated before.
        rule: What the caller is judged by.
        now: The moment, in microseconds.

    Raises:
        CredentialsInvalid, CredentialsExpired: The secret that was presented no longer works.
        RoleInsufficient, ScopeInsufficient: The rule says no by now.
    """
    record = lookup(caller.key_id)
    if record is None:
        raise CredentialsInvalid
    version = caller.match.secret_version
    is_old = (
        version == record.old_secret_version
        and record.overlap_end_time is not None
        and now < record.overlap_end_time
    )
    if version != record.secret_version and not is_old:
        raise CredentialsInvalid
    _raise_unless_allowed(outcome_at(record, rule, now), rule, record.effective_role)
    return record.effective_role


def _raise_unless_allowed(outcome: Outcome, rule: AccessRule, role: Role) -> None:
    if outcome is not Outcome.VALID:
        raise denial_of(outcome, rule, role)


def denial_of(outcome: Outcome, rule: AccessRule, role: Role) -> ServiceError:
    """Make the error of an outcome that is not VALID; whatever is not known is a denial too."""
    if outcome is Outcome.ROLE_INSUFFICIENT:
        allowed = rule.only_roles or tuple(one for one in Role if one >= max(rule.role, 1))
        names = ", ".join(one.name for one in allowed)
        return RoleInsufficient(
            f"this needs the role {names}; the key's effective role is {role.name}",
            required_role=names,
            effective_role=role.name,
        )
    if outcome is Outcome.SCOPE_INSUFFICIENT:
        scopes = ", ".join(rule.scopes)
        return ScopeInsufficient(f"this needs the scopes {scopes}", required_scopes=scopes)
    return CredentialsExpired() if outcome is Outcome.EXPIRED else CredentialsInvalid()
