"""The one way to change anything: the change, its audit event and its revision, together.

A change begins only while its caller waits for it. It judges the caller once more inside the
transaction and reads the time there, so that the order of times is the order of commits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import CoveredRow, Subject
from keybearer_service.domain.audit_event import Actor, FieldChange
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.errors import AuthorityExceeded, CallAbandoned, SignInAgain
from keybearer_service.domain.model import SubjectKind
from keybearer_service.domain.session import SIGN_IN_COUNTS_FOR
from keybearer_service.domain.verdict import Caller, Match
from keybearer_service.storage import Foreseen, Reader, Store, Writer
from keybearer_service.usecases.access import reach_of, scope_of_holder, scope_of_nobody
from keybearer_service.usecases.audit import AuditEntry, AuditLog
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.validation.sessions import judge_again


class Mutation:
    """An open change. Valid inside the block of `Mutations.begin` only."""

    def __init__(
        self,
        tx: Writer,
        audit: AuditLog,
        actor: Actor,
        now: Micros,
        *,
        role: Role,
        scope: AccountScope,
        call: CallContext | None,
    ) -> None:
        self.tx = tx
        self.now = now
        self.actor = actor
        self.role = role
        """The highest role that this change may grant: the caller's effective role at `now`."""
        self.scope = scope
        """The accounts whose things the actor may touch by their ids."""
        self._audit = audit
        self._call = call
        self._entries: list[AuditEntry] = []
        self._revisions: list[int] = []

    def record(
        self,
        action: AuditAction,
        *,
        account_id: str,
        target_type: AuditTargetType,
        target_id: str,
        changes: Sequence[FieldChange] = (),
        request_id: str = "",
        also: Sequence[Subject] = (),
        revoked: Sequence[CoveredRow] | None = None,
        found_by: Sequence[str] = (),
    ) -> None:
        """Have an audit event of this change written at its end: see `AuditEntry`."""
        call = self._call
        entry = AuditEntry(
            time=self.now,
            account_id=account_id,
            actor=self.actor,
            action=action,
            target_type=target_type,
            target_id=target_id,
            changes=changes,
            request_id=request_id or ("" if call is None else call.request_id),
            peer="" if call is None else call.peer,
            also=also,
            revoked=revoked,
            found_by=found_by,
        )
        self._entries.append(entry)

    def invalidate(self, kind: SubjectKind, subject_id: str, account_id: str) -> None:
        """Advance the revision and record which verdicts it makes stale."""
        revision = self.tx.append_change(
            kind=kind, subject_id=subject_id, account_id=account_id, now=self.now
        )
        self._revisions.append(revision)

    def erase_texts(self, user_id: str) -> int:
        """Erase a user's address and names from the audit log; return how many texts that were."""
        return self._audit.erase_texts(self.tx, user_id)

    def finish(self) -> None:
        """Write the events, which hold digests of the rows as this change leaves them."""
        if self._entries:
            self._audit.write(self.tx, self._entries, revisions=self._revisions)

    def assert_signed_in_lately(self) -> None:
        """Raise unless the caller may hand out a secret or authority now.

        A person must have signed in within SIGN_IN_COUNTS_FOR; a key always may.

        Raises:
            SignInAgain: The person must sign in again first.
        """
        caller = None if self._call is None else self._call.caller
        auth_time = None if caller is None else caller.auth_time
        if auth_time is not None and self.now >= auth_time + SIGN_IN_COUNTS_FOR:
            raise SignInAgain

    def assert_may_grant(self, role: Role) -> None:
        """Raise unless the caller holds at least this role at this moment.

        Raises:
            AuthorityExceeded: `role` is above the caller's effective role.
        """
        if role > self.role:
            raise AuthorityExceeded(
                f"role: {role.name} is more than the {self.role.name} the caller holds",
                requested_role=role.name,
                effective_role=self.role.name,
            )


class Mutations:
    """Opens changes."""

    def __init__(self, store: Store, audit: AuditLog, clock: Clock) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock

    @contextmanager
    def begin(self, call: CallContext, foreseen: Foreseen = ()) -> Iterator[Mutation]:
        """Open a change for a caller.

        Args:
            call: The call.
            foreseen: What the block is going to read.

        Raises:
            CallAbandoned: The caller no longer waits.
            ServiceError: The caller may no longer make this call.
        """
        with self._store.write(self._foreseen(call, foreseen)) as tx:
            if not call.is_alive:
                raise CallAbandoned
            now = self._clock.now()
            role = judge_again(tx, call.identity, call.rule, now, call).record.effective_role
            mutation = Mutation(
                tx, self._audit, call.actor, now, role=role, scope=reach_of(call), call=call
            )
            yield mutation
            mutation.finish()

    def _foreseen(self, call: CallContext, foreseen: Foreseen) -> Foreseen:
        caller = call.identity
        yield lambda reader: reader.lookup(caller.key_id)
        if caller.session_id:
            yield lambda reader: reader.session(caller.session_id)
        yield from foreseen
        yield from self._audit.foreseen(call.actor)

    @contextmanager
    def begin_sign_in(
        self, call: CallContext, identify: Callable[[Reader, Micros], Caller]
    ) -> Iterator[Mutation]:
        """Open a change for a person whom a provider has named.

        Args:
            call: The sign-in; its caller is set.
            identify: Returns who that is here, judged by what the transaction reads.

        Raises:
            CallAbandoned: The caller no longer waits.
            Exception: What `identify` raises.
        """
        with self._store.write() as tx:
            if not call.is_alive:
                raise CallAbandoned
            now = self._clock.now()
            caller = call.caller = identify(tx, now)
            mutation = Mutation(
                tx,
                self._audit,
                call.actor,
                now,
                role=caller.role,
                scope=reach_of(call),
                call=call,
            )
            yield mutation
            mutation.finish()

    @contextmanager
    def begin_for_provider(self, call: CallContext) -> Iterator[Mutation]:
        """Open a change that a provider has asked for. It may grant nothing."""
        with self._store.write() as tx:
            if not call.is_alive:
                raise CallAbandoned
            mutation = Mutation(
                tx,
                self._audit,
                Actor(type=AuditActorType.PROVIDER),
                self._clock.now(),
                role=Role.UNSPECIFIED,
                scope=scope_of_nobody(),
                call=call,
            )
            yield mutation
            mutation.finish()

    @contextmanager
    def begin_for_holder(self, call: CallContext, match: Match) -> Iterator[Mutation]:
        """Open a change for somebody who proved to hold a token. It may grant nothing."""
        with self._store.write() as tx:
            if not call.is_alive:
                raise CallAbandoned
            actor = Actor(type=AuditActorType.HOLDER, key_id=match.record.key_id)
            mutation = Mutation(
                tx,
                self._audit,
                actor,
                self._clock.now(),
                role=Role.UNSPECIFIED,
                scope=scope_of_holder(match),
                call=call,
            )
            yield mutation
            mutation.finish()

    @contextmanager
    def begin_local(self) -> Iterator[Mutation]:
        """Open a change for a command on the data directory, which may grant anything."""
        with self._store.write() as tx, self.local_in(tx) as mutation:
            yield mutation

    @contextmanager
    def local_in(self, tx: Writer) -> Iterator[Mutation]:
        """Open the same in a write transaction of the caller, who commits it."""
        mutation = Mutation(
            tx,
            self._audit,
            Actor(type=AuditActorType.LOCAL_COMMAND),
            self._clock.now(),
            role=Role.ADMIN,
            scope=AccountScope.of_installation("a command on the data directory"),
            call=None,
        )
        yield mutation
        mutation.finish()
