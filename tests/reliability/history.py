"""A driver that changes things through the API, its own history of what was answered, and a judge.

The history lives here, outside the server. A call has one of three ends: acknowledged, unknown (the
connection broke), or refused; the driver only asks for what must be granted, so a refusal is a
finding too. Each writer has users and keys of its own, so its history alone says what the store
must hold; the store is read with plain SQL.
"""

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from harness import Stubs, message, refusal_of
from keybearer._wire.enums import AuditAction
from keybearer.models import Presented
from keybearer.v1 import api_key_service_pb2, user_service_pb2
from keybearer_service.container import open_container
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.model import SubjectKind
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.audit import check
from keybearer_service.storage import dbapi
from keybearer_service.validation.validator import ANY_KEY, Question
from samples import EVERYWHERE

WRITERS = 8
LOST_CONNECTION = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


@dataclass
class KeyFacts:
    """What a key must be."""

    name: str
    owner: str
    id: str = ""
    token: str = ""
    version: int = 1
    state: str = "ACTIVE"


@dataclass
class UserFacts:
    """What a user must be."""

    email: str
    id: str = ""
    role: str = "ROLE_DEVELOPER"
    deleted: bool = False


@dataclass
class Operation:
    """One change asked for."""

    action: AuditAction
    kind: SubjectKind | None
    """What its revision makes stale; None when no verdict can change."""
    subject: KeyFacts | UserFacts
    send: Callable[[], Any]
    apply: Callable[[], None]
    """Make the facts true; called once it is known to have happened."""
    accept: Callable[[Any], None]
    """Take from the answer what only the answer tells."""
    undo: Callable[[], None] = lambda: None


@dataclass
class Writer:
    """One client with users and keys of its own."""

    number: int
    random: random.Random
    admin: str
    keys: list[KeyFacts] = field(default_factory=list)
    users: list[UserFacts] = field(default_factory=list)
    done: list[Operation] = field(default_factory=list)
    """Acknowledged, or found to have happened, in their order."""
    unknown: Operation | None = None
    """The one whose answer never came."""
    refusals: list[str] = field(default_factory=list)
    last_error: grpc.RpcError | None = None
    acknowledged: int = 0
    _count: int = 0

    def run(self, stubs: Stubs, stop: threading.Event, told: Callable[[], None]) -> None:
        """Change things one after the other until told to stop or cut off."""
        while not stop.is_set():
            if not self.step(stubs):
                return
            told()

    def step(self, stubs: Stubs) -> bool:
        """Make one change; answer whether it was acknowledged."""
        operation = self.next_operation(stubs)
        try:
            answer = operation.send()
        except grpc.RpcError as error:
            self.last_error = error
            if error.code() in LOST_CONNECTION:
                self.unknown = operation
            else:
                self.refusals.append(f"{error.code().name} {refusal_of(error).reason}")
            return False
        operation.accept(answer)
        operation.apply()
        self.done.append(operation)
        self.acknowledged += 1
        return True

    # --- what to do next --------------------------------------------------------------------------

    def next_operation(self, stubs: Stubs) -> Operation:
        live = [key for key in self.keys if key.state != "REVOKED"]
        users = [user for user in self.users if not user.deleted]
        choices: list[Callable[[], Operation]] = [lambda: self._create_key(stubs, users)] * 4
        choices += [lambda: self._create_user(stubs)] * (1 if len(users) < 4 else 0)
        if users:
            choices += [lambda: self._change_role(stubs, self.random.choice(users))] * 2
            choices += [lambda: self._delete_user(stubs, self.random.choice(users))]
        if live:
            key = self.random.choice(live)
            choices += [lambda: self._rotate(stubs, key)] * 3
            choices += [lambda: self._switch(stubs, key)] * 3
            choices += [lambda: self._revoke(stubs, key)] * 2
        return self.random.choice(choices)()

    def _name(self) -> str:
        self._count += 1
        return f"w{self.number}-{self._count}"

    def _create_key(self, stubs: Stubs, users: list[UserFacts]) -> Operation:
        owner = self.random.choice([self.admin, *(user.id for user in users)])
        key = KeyFacts(self._name(), owner)

        def accept(answer: api_key_service_pb2.CreateApiKeyResponse) -> None:
            key.id, key.token = answer.api_key.id, answer.token

        return Operation(
            AuditAction.API_KEY_CREATED,
            SubjectKind.KEY,
            key,
            lambda: stubs.create_key(name=key.name, owner_id=owner),
            lambda: self.keys.append(key),
            accept,
        )

    def _rotate(self, stubs: Stubs, key: KeyFacts) -> Operation:
        request = api_key_service_pb2.RotateApiKeyRequest(id=key.id)

        def apply() -> None:
            key.version += 1

        def accept(answer: api_key_service_pb2.RotateApiKeyResponse) -> None:
            key.token = answer.token

        return Operation(
            AuditAction.API_KEY_ROTATED,
            SubjectKind.KEY,
            key,
            lambda: stubs.keys.RotateApiKey(request),
            apply,
            accept,
        )

    def _switch(self, stubs: Stubs, key: KeyFacts) -> Operation:
        to = "DISABLED" if key.state == "ACTIVE" else "ACTIVE"

        def send() -> Any:
            if to == "DISABLED":
                return stubs.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key.id))
            return stubs.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(id=key.id))

        action = AuditAction.API_KEY_DISABLED if to == "DISABLED" else AuditAction.API_KEY_ENABLED
        return Operation(
            action, SubjectKind.KEY, key, send, lambda: setattr(key, "state", to), _nothing
        )

    def _revoke(self, stubs: Stubs, key: KeyFacts) -> Operation:
        request = message(
            api_key_service_pb2.RevokeApiKeyRequest, id=key.id, reason="REVOCATION_REASON_LOST"
        )
        return Operation(
            AuditAction.API_KEY_REVOKED,
            SubjectKind.KEY,
            key,
            lambda: stubs.keys.RevokeApiKey(request),
            lambda: setattr(key, "state", "REVOKED"),
            _nothing,
        )

    def _create_user(self, stubs: Stubs) -> Operation:
        user = UserFacts(f"{self._name()}@example.com")
        return Operation(
            AuditAction.USER_CREATED,
            None,
            user,
            lambda: stubs.create_user(user.email, role=user.role),
            lambda: self.users.append(user),
            lambda answer: setattr(user, "id", answer.id),
        )

    def _change_role(self, stubs: Stubs, user: UserFacts) -> Operation:
        roles = {"ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"} - {user.role}
        role = self.random.choice(sorted(roles))
        request = message(
            user_service_pb2.UpdateUserRequest,
            user={"id": user.id, "role": role},
            update_mask={"paths": ["role"]},
        )
        return Operation(
            AuditAction.USER_UPDATED,
            SubjectKind.OWNER,
            user,
            lambda: stubs.users.UpdateUser(request),
            lambda: setattr(user, "role", role),
            _nothing,
        )

    def _delete_user(self, stubs: Stubs, user: UserFacts) -> Operation:
        request = user_service_pb2.DeleteUserRequest(id=user.id)

        def apply() -> None:
            user.deleted = True
            for key in self.keys:
                if key.owner == user.id:
                    key.state = "REVOKED"

        return Operation(
            AuditAction.USER_DELETED,
            SubjectKind.OWNER,
            user,
            lambda: stubs.users.DeleteUser(request),
            apply,
            _nothing,
        )


def _nothing(_answer: Any) -> None:
    """The answer tells nothing new."""


# --- the judge ------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What comparing the histories with the store found."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not there."""
    halves: list[str] = field(default_factory=list)
    """There in one table and not in another."""
    damage: list[str] = field(default_factory=list)
    """What the store's own check and the audit chain say."""
    applied: int = 0
    """Calls of unknown end that happened."""
    not_applied: int = 0

    @property
    def findings(self) -> list[str]:
        return [
            *(f"lost: {one}" for one in self.lost),
            *(f"half: {one}" for one in self.halves),
            *(f"damage: {one}" for one in self.damage),
        ]


class StoreImage:
    """The tables as they are in the file, read with plain SQL."""

    def __init__(self, database: Path) -> None:
        connection = dbapi.connect(str(database))
        try:
            self.keys = {
                row[0]: (row[0], row[1], row[2], _state(row[3], row[4]), row[5])
                for row in connection.execute(
                    "SELECT name, id, owner_id, disable_time, revoke_time, secret_version"
                    " FROM api_keys"
                )
            }
            self.users = {
                row[0]: (row[0], row[1], row[2], row[3] is not None)
                for row in connection.execute("SELECT email, id, role, delete_time FROM users")
            }
            self.actions: dict[str, list[AuditAction]] = defaultdict(list)
            for target, action in connection.execute(
                "SELECT target_id, action FROM audit_events ORDER BY seq"
            ):
                self.actions[target].append(AuditAction(action))
            self.changes = Counter(connection.execute("SELECT kind, subject_id FROM changes"))
            self.revision, self.highest, self.counted = connection.execute(
                "SELECT (SELECT revision FROM installation), max(revision), count(*) FROM changes"
            ).fetchone()
        finally:
            connection.close()

    def key(self, facts: KeyFacts) -> tuple[Any, ...] | None:
        return self.keys.get(facts.name)

    def user(self, facts: UserFacts) -> tuple[Any, ...] | None:
        return self.users.get(facts.email)

    def row_of(self, subject: KeyFacts | UserFacts) -> tuple[Any, ...] | None:
        return self.key(subject) if isinstance(subject, KeyFacts) else self.user(subject)


def _state(disable_time: int | None, revoke_time: int | None) -> str:
    if revoke_time is not None:
        return "REVOKED"
    return "ACTIVE" if disable_time is None else "DISABLED"


def row_from(subject: KeyFacts | UserFacts) -> tuple[Any, ...]:
    """Return what StoreImage must say of it."""
    if isinstance(subject, KeyFacts):
        return (subject.name, subject.id, subject.owner, subject.state, subject.version)
    roles = {"ROLE_VALIDATOR": 1, "ROLE_DEVELOPER": 2, "ROLE_ADMIN": 3}
    return (subject.email, subject.id, roles[subject.role], subject.deleted)


class Judge:
    """Compares what writers were told with what a data directory holds."""

    def __init__(self, data_dir: DataDir, first: StoreImage) -> None:
        """Take what was there before the first writer began."""
        self._data_dir = data_dir
        self._first = first

    def judge(self, writers: list[Writer]) -> Verdict:
        """Settle every unknown call, then compare everything."""
        verdict = Verdict()
        image = StoreImage(self._data_dir.database)
        for writer in writers:
            self._settle(writer, image, verdict)
            verdict.halves += [f"refused: {refusal}" for refusal in writer.refusals]
            subjects: list[KeyFacts | UserFacts] = [*writer.keys, *writer.users]
            for subject in subjects:
                if image.row_of(subject) != row_from(subject):
                    verdict.lost.append(f"{row_from(subject)} is {image.row_of(subject)}")
        self._compare_traces(writers, image, verdict)
        if not image.revision == image.highest == image.counted:
            verdict.halves.append(
                f"revision {image.revision}, highest {image.highest}, {image.counted} changes"
            )
        self._ask(writers, verdict)
        return verdict

    def _settle(self, writer: Writer, image: StoreImage, verdict: Verdict) -> None:
        operation, writer.unknown = writer.unknown, None
        if operation is None:
            return
        subject = operation.subject
        row = image.row_of(subject)
        before = row_from(subject) if subject.id else None
        if row == before:
            verdict.not_applied += 1
            return
        if row is not None and not subject.id:
            subject.id = row[1]
        operation.apply()
        writer.done.append(operation)
        verdict.applied += 1
        if isinstance(subject, KeyFacts) and operation.action in (
            AuditAction.API_KEY_CREATED,
            AuditAction.API_KEY_ROTATED,
        ):
            subject.token = ""  # its answer got lost

    def _compare_traces(self, writers: list[Writer], image: StoreImage, verdict: Verdict) -> None:
        actions: dict[str, list[AuditAction]] = defaultdict(list)
        changes: Counter[tuple[int, str]] = Counter(self._first.changes)
        for target, known in self._first.actions.items():
            actions[target] += known
        for writer in writers:
            for operation in writer.done:
                actions[operation.subject.id].append(operation.action)
                if operation.kind is not None:
                    changes[operation.kind, operation.subject.id] += 1
        for target in actions.keys() | image.actions.keys():
            if actions[target] != image.actions[target]:
                verdict.halves.append(
                    f"audit of {target}: {_names(image.actions[target])}, not "
                    f"{_names(actions[target])}"
                )
        if changes != image.changes:
            verdict.halves.append(f"changes: {changes - image.changes} {image.changes - changes}")
        known_names = {key.name for writer in writers for key in writer.keys}
        strangers = image.keys.keys() - self._first.keys.keys() - known_names
        verdict.halves += [f"nobody made the key {name}" for name in sorted(strangers)]

    def _ask(self, writers: list[Writer], verdict: Verdict) -> None:
        container = open_container(self._data_dir, SystemClock(), SystemEntropy())
        try:
            verdict.damage += check(container.store, container.keyring.audit_key).findings
            expected = {"ACTIVE": "VALID", "DISABLED": "DISABLED", "REVOKED": "REVOKED"}
            for key in (key for writer in writers for key in writer.keys if key.token):
                question = Question(presented=Presented(key.token), scope=EVERYWHERE, rule=ANY_KEY)
                outcome = container.validator.judge(question).outcome.name
                if outcome != expected[key.state]:
                    verdict.lost.append(f"the token of {key.name} is {outcome}, not {key.state}")
        finally:
            container.close()


def _names(actions: list[AuditAction]) -> str:
    return " ".join(action.name for action in actions)
