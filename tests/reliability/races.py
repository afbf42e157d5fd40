"""Races in one process: use cases on threads, let go together, with delays swept between them."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from harness import initialise
from keybearer._wire.enums import UserType
from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.container import Container, build_container
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Micros, SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.errors import ServiceError
from keybearer_service.domain.model import RequestRecord, SecretId, User
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.storage import (
    AuditQuery,
    Foreseen,
    Page,
    Store,
    StoreLockedError,
    Writer,
)
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.issuing import Expiration, IssuedKey, NewKey
from keybearer_service.validation.validator import ANY_KEY, Question
from reliability.seeded_bugs import Replaced, StaleReads, store_with
from samples import EVERYWHERE

LONGEST_DELAY_S = 0.005
STEPS = 21
"""Delays go from none to the longest in so many steps, each with each."""
MOST_AT_ONCE = 8
ADMINS_ONLY = AccessRule(role=Role.ADMIN)


class Pauses(threading.local):
    """How long the calling thread waits at the edges of its transactions."""

    before_begin = 0.0
    before_commit = 0.0


class PausingStore:
    """A store that lets each thread be late for its BEGIN and for its COMMIT."""

    def __init__(self, store: SqliteStore, pauses: Pauses) -> None:
        self._store = store
        self._pauses = pauses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        time.sleep(self._pauses.before_begin)
        with self._store.write(foreseen) as tx:
            yield tx
            time.sleep(self._pauses.before_commit)

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        time.sleep(self._pauses.before_begin)
        return self._store.claim_uses(secrets, now)


class ForgetsAttempts:
    """A plant: a store that does not tell which attempt was answered last."""

    def __init__(self, store: PausingStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        with self._store.write(foreseen) as tx:

            def forgetful(user_id: str, request_id: str) -> RequestRecord | None:
                record = tx.request_record(user_id, request_id)
                return None if record is None else replace(record, attempt=-1)

            yield cast("Writer", Replaced(tx, request_record=forgetful))


class Nowhere:
    """A connection without a network."""

    peer = "127.0.0.1"
    is_alive = True
    remaining_s = None


class Arena:
    """An installation whose use cases are raced."""

    def __init__(
        self,
        path: Path,
        seed: int,
        plant: Sequence[str] = (),
        *,
        shared: bool = False,
        bugs: Sequence[str] = (),
    ) -> None:
        """Make it.

        Args:
            path: Where.
            seed: Of the delays.
            plant: Names of reads that are taken before the transaction, or `attempts`.
            shared: Whether a second service has the same file open.
            bugs: Names of wrong stores.
        """
        data_dir, created = initialise(path, SystemClock(), SystemEntropy())
        self._pauses = Pauses()
        self._store, self.container = self._open(data_dir, plant, bugs, shared=shared)
        self.other = self._open(data_dir, plant, bugs, shared=True)[1] if shared else self.container
        """Where tokens are validated."""
        self.admin = created.issued.token
        self.account_id = created.account.id
        self.scope = AccountScope(created.account.id)
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        """How often each way to end was seen: a race that only ever ends one way proves little."""
        self.findings: list[str] = []
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE)
        self._trial = 0

    def _open(
        self, data_dir: DataDir, plant: Sequence[str], bugs: Sequence[str], *, shared: bool
    ) -> tuple[SqliteStore, Container]:
        plain = store_with(list(bugs))(data_dir.database, shared=shared)
        store: Any = PausingStore(plain, self._pauses)
        if "attempts" in plant:
            store = ForgetsAttempts(store)
        elif plant:
            store = StaleReads(store, *plant)
        container = build_container(
            cast("Store", store), Keyring(data_dir.peppers), SystemClock(), SystemEntropy()
        )
        return plain, container

    def close(self) -> None:
        self._threads.shutdown()
        if self.other is not self.container:
            self.other.close()
        self.container.close()

    def call(self, token: str) -> CallContext:
        """Begin a call, as the pipeline does."""
        call = CallContext(
            "/test", ADMINS_ONLY, Nowhere(), lambda: self.container.entropy.base62(16)
        )
        call.caller = self.container.validator.authenticate(Presented(token))
        return call

    def race(self, *actions: Callable[[], Any]) -> list[Any]:
        """Let all actions go at once; answers what each returned, or the refusal it met."""
        self._trial += 1
        barrier = threading.Barrier(len(actions))
        step = LONGEST_DELAY_S / (STEPS - 1)
        swept = [self._trial % STEPS * step, self._trial // STEPS % STEPS * step]

        def run(number: int, action: Callable[[], Any], late: float) -> Any:
            barrier.wait(30)
            self._pauses.before_begin = swept[number] if number < len(swept) else late
            self._pauses.before_commit = late / 5
            while True:
                try:
                    return action()
                except ServiceError as refusal:
                    return refusal
                except StoreLockedError:  # a busy machine; callers would try again too
                    self.seen["waited too long"] += 1

        futures = [
            self._threads.submit(run, number, action, self.random.uniform(0, LONGEST_DELAY_S))
            for number, action in enumerate(actions)
        ]
        return [future.result(60) for future in futures]

    # --- what is raced about ----------------------------------------------------------------------

    @contextmanager
    def setting_up(self) -> Iterator[Any]:
        """Open a change that is no part of the race."""
        self._pauses.before_begin = self._pauses.before_commit = 0.0
        with self.container.mutations.begin_local() as change:
            yield change

    def new_user(self, change: Any, role: Role, account_id: str = "") -> User:
        user = User(
            id=self.container.issuer.new_id(),
            account_id=account_id or self.account_id,
            email=f"{self.container.issuer.new_id()}@example.com".lower(),
            display_name="somebody",
            role=role,
            type=UserType.PERSON,
            create_time=change.now,
            update_time=change.now,
        )
        change.tx.insert_user(user)
        return user

    def new_key(self, change: Any, owner: User, role: Role) -> IssuedKey:
        issued: IssuedKey = self.container.issuer.issue(
            change, self.key_of(owner, role), owner=owner, created_by=owner.id
        )
        return issued

    def key_of(self, owner: User, role: Role) -> NewKey:
        return NewKey(
            name=self.container.issuer.new_id(),
            role=role,
            expiration=Expiration(),
            owner_id=owner.id,
        )

    def newest_event(self, target_id: str) -> int:
        """Return where the newest event about something stands in the order of commits."""
        query = AuditQuery(scope=EVERYWHERE, target_id=target_id)
        with self._store.read() as reader:
            return reader.list_audit_events(query, Page(limit=1)).items[0].seq

    def outcome(self, token: str) -> str:
        question = Question(presented=Presented(token), scope=EVERYWHERE, rule=ANY_KEY)
        return self.other.validator.judge(question).outcome.name
