"""Moves an installation from its file to a database on a server of its own.

1. The file, its key files and the audit log are checked, and the database must be empty.
2. The file is marked: from here on nobody serves it or writes to it.
3. One transaction copies every row into the database,
4. compares what is there with the file, and checks the audit log there,
5. draws a new epoch and records the move. Its commit is what makes the database the installation.
6. The file is marked as moved.

So at no moment both can be served. A move that is killed before its commit has left nothing in the
database, and one that is killed after it has left a mark to be made: `move` again does either. The
mark and the audit event have the same id, by which it knows.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_digests import Subject
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.offline.audit import check_store, verify_audit
from keybearer_service.offline.epochs import begin_epoch
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import (
    Departure,
    FileStore,
    OnStep,
    Reader,
    ServerStore,
    Snapshots,
    StoreUnusableError,
    Waiting,
    Writer,
)
from keybearer_service.usecases.audit import AuditLog
from keybearer_service.usecases.mutations import Mutations

MOVE_ID_LENGTH: Final = 16
_MOVE_ID: Final = "move_id"


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of a move."""

    epoch: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """Moves one installation."""

    data_dir: DataDir
    target: str
    """The URL of the database."""
    open_file: Callable[[], FileStore]
    """Opens the file, also when it is marked."""
    open_target: Callable[[], ServerStore]
    """Makes the tables, and opens the database."""
    clock: Clock
    entropy: Entropy

    def move(self, on_step: OnStep) -> Moved:
        """Move the installation, or end a move to the same database that was broken off.

        Raises:
            LocalError: It was moved already, it is being moved elsewhere, it is damaged, or the
                database holds something.
            DataDirError, KeyringError, StoreError: One of the two cannot be used.
        """
        with self.data_dir.locked(), closing(self.open_file()) as file:
            departure = file.departure
            if departure is not None:
                self._assert_to_be_ended(departure)
            with closing(self.open_target()) as target:
                if departure is None:
                    _assert_empty(target)
                    keyring = self._checked_keyring(file, on_step)
                    departure = Departure(self.entropy.base62(MOVE_ID_LENGTH), self.target)
                    file.mark(departure)
                    moved = self._copy(target, keyring, departure, on_step)
                else:
                    moved = _arrived(target, departure) or self._copy(
                        target, self._checked_keyring(file, on_step), departure, on_step
                    )
            file.mark(replace(departure, is_done=True))
            return moved

    def abandon(self) -> None:
        """Remove the mark from the file, so that it can be served again.

        Raises:
            LocalError: There is no move to abandon, or the database holds an installation.
            DataDirError, StoreError: One of the two cannot be used.
        """
        with self.data_dir.locked(), closing(self.open_file()) as file:
            departure = file.departure
            if departure is None:
                raise LocalError(f"{self.data_dir.database} is not being moved")
            self._assert_to_be_ended(departure)
            with closing(self.open_target()) as target:
                _assert_empty(target)
            file.mark(None)

    def _assert_to_be_ended(self, departure: Departure) -> None:
        if departure.is_done:
            raise LocalError(
                f"{self.data_dir.database} was moved to {departure.target} already; the "
                "installation is there: give that as --database"
            )
        if departure.target != self.target:
            raise LocalError(
                f"{self.data_dir.database} is being moved to {departure.target}; end or abandon "
                "that with --to and this URL first"
            )

    def _checked_keyring(self, file: FileStore, on_step: OnStep) -> Keyring:
        keyring = Keyring(self.data_dir.peppers)
        on_step("databases checked", 0, 1)
        damage = check_store(file)
        if damage:
            raise LocalError(f"{self.data_dir.database} is damaged: {damage[0]}; run `check`")
        with file.read() as reader:
            keyring.verify(reader.peppers(), lambda one: reader.live_secrets(one, self.clock.now()))
        _verify(file, keyring, on_step)
        return keyring

    def _copy(
        self, target: ServerStore, keyring: Keyring, departure: Departure, on_step: OnStep
    ) -> Moved:
        mutations = Mutations(target, AuditLog(keyring.audit_key, self.entropy), self.clock)
        with target.receive(self.data_dir.database, on_step) as tx:
            events = _verify(_Within(tx), keyring, on_step)
            keys = tx.key_count()
            counts = {"api_keys": keys, "audit_events": events}
            with mutations.local_in(tx) as mutation:
                epoch = begin_epoch(
                    mutation,
                    self.entropy,
                    AuditAction.INSTALLATION_MOVED,
                    (
                        FieldChange(_MOVE_ID, "", departure.move_id),
                        *(FieldChange(name, "", str(count)) for name, count in counts.items()),
                    ),
                )
        return Moved(epoch, keys)


class _Within:
    """Reads what a transaction has written and not yet committed."""

    def __init__(self, tx: Writer) -> None:
        self._tx = tx

    @contextmanager
    def read(self, caller: Waiting | None = None) -> Iterator[Reader]:  # noqa: ARG002 - nobody calls
        """Read in the transaction."""
        yield self._tx


def _verify(store: Snapshots, keyring: Keyring, on_step: OnStep) -> int:
    """Check the audit log; return how many events it has.

    Raises:
        LocalError: It is broken.
    """
    report, head_findings = verify_audit(store, keyring.audit_key, None, progress=on_step)
    problem = report.problem or "; ".join(head_findings)
    if problem:
        raise LocalError(f"audit: {problem}; run `keybearer-server check`")
    return report.events


def _assert_empty(target: ServerStore) -> None:
    # A write, which waits for the transaction of a move that was killed to end, one way or the
    # other, and whose commit a server that was replaced does not get.
    with target.write() as tx:
        if _is_installation(tx):
            raise LocalError("the database holds an installation already")


def _is_installation(reader: Reader) -> bool:
    try:
        reader.installation()
    except StoreUnusableError:
        return False
    return True


def _arrived(target: ServerStore, departure: Departure) -> Moved | None:
    """Return what a move that was broken off has done; None when it has not committed.

    Raises:
        LocalError: The database holds an installation of another kind.
    """
    with target.write() as tx:  # as above
        if not _is_installation(tx):
            return None
        installation = tx.installation()
        subject = Subject(AuditTargetType.INSTALLATION, installation.operator_account_id)
        event = tx.last_event(subject, AuditAction.INSTALLATION_MOVED)
        if event is None or departure.move_id not in event.changes:
            raise LocalError("the database holds another installation")
        return Moved(installation.epoch, tx.key_count())
