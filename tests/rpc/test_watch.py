"""WatchInvalidations, sentence by sentence of section 4 of the wire contract, at a real server."""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from backends import append_changes
from fakes import FakeClock, SeededEntropy
from harness import (
    Refusal,
    ReplaceableStore,
    Service,
    Stubs,
    file_of,
    initialise,
    make_app,
    message,
    raising,
    refusal_of,
    running,
    store_of,
)
from keybearer.v1 import account_service_pb2, api_key_service_pb2, user_service_pb2
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.domain.clock import MINUTE, SECOND
from keybearer_service.domain.model import SubjectKind
from keybearer_service.storage import News, StoreLockedError, dbapi
from keybearer_service.watch import hub as watch_module

TIMEOUT_S = 10.0
WATCH = "/keybearer.v1.TokenService/WatchInvalidations"


class Watch:
    """One stream: what is sent and what comes back, one message at a time."""

    def __init__(self, stubs: Stubs) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = stubs.tokens.WatchInvalidations(iter(self._outgoing.get, None))
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self._incoming.put(response)
            self._incoming.put(None)
        except grpc.RpcError as error:
            self._incoming.put(error)

    def send(self, **fields: Any) -> None:
        self._outgoing.put(message(pb.WatchInvalidationsRequest, **fields))

    def half_close(self) -> None:
        self._outgoing.put(None)

    def next(self) -> pb.WatchInvalidationsResponse:
        """Return the next message; an end of the stream is an error here."""
        item = self._incoming.get(timeout=TIMEOUT_S)
        assert isinstance(item, pb.WatchInvalidationsResponse), item
        return item

    def end(self) -> Refusal:
        """Return how the stream ends, passing over what comes before."""
        while True:
            item = self._incoming.get(timeout=TIMEOUT_S)
            if isinstance(item, grpc.RpcError):
                return refusal_of(item)
            assert item is not None, "the stream ended with OK"

    def is_over(self) -> bool:
        """Return whether the end is what comes next."""
        return isinstance(self._incoming.get(timeout=TIMEOUT_S), grpc.RpcError)

    def is_open(self) -> bool:
        """Ping and see whether the stream goes on; a turn after the first pong may end it."""
        for _ in range(2):
            self.send(ping={"sent_at": 1})
            if isinstance(self._incoming.get(timeout=TIMEOUT_S), grpc.RpcError):
                return False
        return True

    def subscribe(self, epoch: str = "", from_revision: int = 0) -> pb.WatchInvalidationsResponse:
        self.send(subscribe={"epoch": epoch, "from_revision": from_revision})
        return self.next()

    def ping(self, sent_at: int = 1) -> tuple[list[pb.WatchInvalidationsResponse], int]:
        """Ping; answer what came before the pong, and the pong's head."""
        self.send(ping={"sent_at": sent_at})
        before: list[pb.WatchInvalidationsResponse] = []
        while True:
            response = self.next()
            if response.WhichOneof("message") == "pong":
                assert response.pong.sent_at == sent_at
                return before, response.pong.head_revision
            before.append(response)


@contextmanager
def watching(stubs: Stubs) -> Iterator[Watch]:
    """Open a stream and cancel it afterwards."""
    stream = Watch(stubs)
    try:
        yield stream
    finally:
        stream.call.cancel()
        stream.half_close()


@pytest.fixture
def watcher(service: Service, admin: Stubs) -> Stubs:
    """A VALIDATOR of the operator account."""
    return service.as_token(admin.create_key(role="ROLE_VALIDATOR").token)


def told(responses: list[pb.WatchInvalidationsResponse]) -> list[tuple[str, Any]]:
    """Name what invalidations are about."""
    found: list[tuple[str, Any]] = []
    for response in responses:
        assert response.WhichOneof("message") == "invalidation", response
        subject = response.invalidation.WhichOneof("subject")
        assert subject is not None
        found.append((subject, getattr(response.invalidation, subject)))
    return found


def head(service: Service) -> tuple[str, int]:
    """Read epoch and revision from the store."""
    with service.app.container.store.read() as reader:
        installation = reader.installation()
    return installation.epoch, installation.revision


def revoke_key(admin: Stubs, key_id: str) -> None:
    """Revoke a key."""
    admin.keys.RevokeApiKey(
        message(api_key_service_pb2.RevokeApiKeyRequest, id=key_id, reason="REVOCATION_REASON_LOST")
    )


def new_account(admin: Stubs, name: str) -> account_service_pb2.CreateAccountResponse:
    """Make a tenant with an administrator."""
    return admin.accounts.CreateAccount(
        account_service_pb2.CreateAccountRequest(
            name=name, admin_email=f"{name}@example.com", admin_display_name=name
        )
    )


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until something that happens on another thread has happened."""
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.005)


# --- opening ------------------------------------------------------------------------------------


def test_hello_names_the_epoch_and_the_head(service: Service, watcher: Stubs) -> None:
    """Without an epoch, the stream starts from now."""
    with watching(watcher) as stream:
        hello = stream.subscribe().hello
        assert (hello.epoch, hello.head_revision) == head(service)
        assert stream.ping()[0] == []


@pytest.mark.parametrize(
    "first", [{"ping": {"sent_at": 1}}, {"usage": {}}, {}], ids=["ping", "usage", "nothing"]
)
def test_anything_but_subscribe_first_is_refused(watcher: Stubs, first: dict[str, Any]) -> None:
    """The first message must be subscribe."""
    with watching(watcher) as stream:
        stream.send(**first)
        end = stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert end.fields


def test_a_second_subscribe_is_refused(watcher: Stubs) -> None:
    """Subscribe is the first message only."""
    with watching(watcher) as stream:
        stream.subscribe()
        stream.send(subscribe={})
        assert stream.end().fields == ["subscribe"]


def test_bytes_that_do_not_parse_are_refused(service: Service, watcher: Stubs) -> None:
    """They get our own error, as everywhere."""
    raw: Any = service.channel().stream_stream(WATCH)
    call = raw(iter([b"\xff\xff"]), metadata=[("authorization", f"Bearer {watcher.token}")])
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert refusal_of(caught.value).fields == ["(message)"]


@pytest.mark.parametrize("role", ["ROLE_DEVELOPER"])
def test_a_developer_may_not_watch(service: Service, admin: Stubs, role: str) -> None:
    """Who may not validate may not watch."""
    with watching(service.as_token(admin.create_key(role=role).token)) as stream:
        stream.send(subscribe={})
        assert stream.end().reason == "ROLE_INSUFFICIENT"


def test_a_stream_without_a_credential_is_refused(service: Service) -> None:
    """It is judged as every call is."""
    with watching(service.as_token("nonsense")) as stream:
        stream.send(subscribe={})
        assert stream.end().reason == "CREDENTIALS_INVALID"


# --- changes ------------------------------------------------------------------------------------


def test_every_kind_of_change_is_told_in_order(service: Service, admin: Stubs) -> None:
    """Keys, owners, accounts, everything; revisions rise strictly."""
    owner = admin.create_user("owner@example.com")
    key = admin.create_key(owner_id=owner.id).api_key
    account = new_account(admin, "tenant").account
    with watching(admin) as stream:
        stream.subscribe()
        admin.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key.id))
        admin.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(id=key.id))
        revoke_key(admin, key.id)
        admin.users.UpdateUser(
            message(
                user_service_pb2.UpdateUserRequest,
                user={"id": owner.id, "role": "ROLE_DEVELOPER"},
                update_mask={"paths": ["role"]},
            )
        )
        admin.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=owner.id))
        admin.accounts.DisableAccount(account_service_pb2.DisableAccountRequest(id=account.id))
        before, pong_head = stream.ping()

    assert told(before) == [
        ("key_id", key.id),
        ("key_id", key.id),
        ("key_id", key.id),
        ("owner_id", owner.id),
        ("owner_id", owner.id),
        ("account_id", account.id),
    ]
    revisions = [response.invalidation.revision for response in before]
    assert revisions == sorted(set(revisions))
    assert revisions[-1] == pong_head == head(service)[1]


def test_a_change_is_told_without_a_ping(admin: Stubs, watcher: Stubs) -> None:
    """A commit of this process wakes the hub."""
    key = admin.create_key().api_key
    with watching(watcher) as stream:
        stream.subscribe()
        revoke_key(admin, key.id)
        assert stream.next().invalidation.key_id == key.id


def test_the_holders_own_revocation_is_told(service: Service, admin: Stubs, watcher: Stubs) -> None:
    """RevokeToken changes a key without a caller."""
    created = admin.create_key()
    with watching(watcher) as stream:
        stream.subscribe()
        admin.tokens.RevokeToken(pb.RevokeTokenRequest(token=created.token))
        assert stream.next().invalidation.key_id == created.api_key.id


@pytest.mark.parametrize("shared", [True, False])
def test_a_commit_of_another_process_is_told(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy, *, shared: bool
) -> None:
    """Other servers' commits are polled for; a local command's are found within a second."""
    with running(tmp_path / "data", clock, entropy, shared=shared) as service:
        admin = service.admin
        with watching(admin) as stream:
            stream.subscribe()
            started = time.monotonic()
            append_many(service, 1)
            assert stream.next().HasField("invalidation")
            taken = time.monotonic() - started
    assert taken < (0.5 if shared else TIMEOUT_S)


@contextmanager
def behind_the_service(service: Service) -> Iterator[dbapi.Connection]:
    """Commit something as another process would."""
    connection = dbapi.connect(str(file_of(service)))
    with connection:
        yield connection
    connection.close()


def append_many(service: Service, count: int) -> None:
    """Commit many changes at once, as another process would."""
    with behind_the_service(service) as connection:
        append_changes(connection, count, service.app.container.clock.now())


BROKEN_HISTORIES = {
    "changes are gone": [
        "DELETE FROM changes WHERE revision < (SELECT revision FROM installation)"
    ],
    "another epoch": ["UPDATE installation SET epoch = 'another'"],
    "the head went back": [
        "UPDATE installation SET revision = 1",
        "DELETE FROM changes WHERE revision > 1",
    ],
}


@pytest.mark.parametrize("name", sorted(BROKEN_HISTORIES))
def test_a_stream_that_cannot_be_told_everything_ends(
    service: Service, watcher: Stubs, name: str
) -> None:
    """Its watcher starts afresh; nothing is told that would leave a gap."""
    with watching(watcher) as stream:
        stream.subscribe()
        stream.ping()
        with behind_the_service(service) as connection:
            append_changes(connection, 3, service.app.container.clock.now())
            for statement in BROKEN_HISTORIES[name]:
                connection.execute(statement)
        stream.send(ping={"sent_at": 2})
        assert stream.end().reason == "STREAM_ENDED"
    with watching(watcher) as stream:
        assert stream.subscribe().HasField("hello")
        assert stream.ping()[0] == []


def _append(service: Service, kind: SubjectKind, subject_id: str, account_id: str) -> None:
    """Commit a change without any call."""
    with service.app.container.store.write() as tx:
        tx.append_change(
            kind=kind,
            subject_id=subject_id,
            account_id=account_id,
            now=service.app.container.clock.now(),
        )


def test_changes_of_other_accounts_are_invisible(service: Service, admin: Stubs) -> None:
    """A tenant learns of its own changes and of `everything`; an operator of all."""
    mine, other = new_account(admin, "mine"), new_account(admin, "other")
    with watching(service.as_token(mine.token)) as tenant, watching(admin) as operator:
        tenant.subscribe()
        operator.subscribe()
        theirs = service.as_token(other.token).create_key().api_key
        own = service.as_token(mine.token).create_key().api_key
        admin.accounts.DisableAccount(
            account_service_pb2.DisableAccountRequest(id=other.account.id)
        )
        _append(service, SubjectKind.EVERYTHING, "", other.account.id)
        assert told(tenant.ping()[0]) == [("key_id", own.id), ("everything", True)]
        assert told(operator.ping()[0]) == [
            ("key_id", theirs.id),
            ("key_id", own.id),
            ("account_id", other.account.id),
            ("everything", True),
        ]


# --- resuming -----------------------------------------------------------------------------------


def test_a_stream_resumes_after_the_revision_it_names(
    service: Service, admin: Stubs, watcher: Stubs
) -> None:
    """Exclusively: exactly what came later is told, then what is new."""
    epoch, revision = head(service)
    keys = [admin.create_key().api_key.id for _ in range(3)]
    with watching(watcher) as stream:
        hello = stream.subscribe(epoch, revision + 1).hello
        assert hello.head_revision == revision + 3
        before, _ = stream.ping()
        assert told(before) == [("key_id", key_id) for key_id in keys[1:]]
        late = admin.create_key().api_key.id
        assert told(stream.ping()[0]) == [("key_id", late)]


def test_a_long_backlog_is_told_completely_and_the_pong_waits_for_it(
    service: Service, watcher: Stubs
) -> None:
    """More than a queue holds is told in parts, in order, and a pong never overtakes it."""
    epoch, revision = head(service)
    count = 3 * watch_module.MAX_QUEUED + 7
    append_many(service, count)
    with watching(watcher) as stream:
        stream.subscribe(epoch, revision)
        before, pong_head = stream.ping()
        found = [response.invalidation.revision for response in before]
        assert found == list(range(revision + 1, revision + count + 1))
        assert pong_head == revision + count


@pytest.mark.parametrize(
    ("epoch", "offset"),
    [("AnotherEpoch", 0), (None, 1), (None, -1_000_000)],
    ids=["another epoch", "the future", "before the beginning"],
)
def test_a_stream_that_cannot_resume_is_reset(
    service: Service, watcher: Stubs, epoch: str | None, offset: int
) -> None:
    """Reset names the epoch and the head to start from."""
    known, revision = head(service)
    with watching(watcher) as stream:
        reset = stream.subscribe(epoch or known, revision + offset).reset
        assert (reset.epoch, reset.head_revision) == (known, revision)
        assert stream.ping()[0] == []


def test_changes_are_kept_ten_minutes_and_a_hundred_thousand_rows(
    service: Service, admin: Stubs, watcher: Stubs, clock: FakeClock
) -> None:
    """What is older and further back is forgotten, and resuming from there is a reset."""
    epoch, revision = head(service)
    kept = 100_000
    append_many(service, kept)

    def starts_with(from_revision: int) -> str | None:
        with watching(watcher) as stream:
            return stream.subscribe(epoch, from_revision).WhichOneof("message")

    admin.create_key()
    service.only_node.housekeeper.flush()
    assert starts_with(0) == "hello", "young, so kept although there are more than 100,000"
    clock.advance(11 * MINUTE)
    admin.create_key()
    service.only_node.housekeeper.flush()
    assert starts_with(0) == "reset", "old, and more than 100,000 back"
    now = head(service)[1]
    assert now == revision + kept + 2
    assert starts_with(now - kept) == "hello", "old, and among the last 100,000"


# --- pongs --------------------------------------------------------------------------------------


def test_the_head_of_a_pong_is_read_after_its_ping_arrived(
    service: Service, admin: Stubs, watcher: Stubs
) -> None:
    """Every change committed before a ping was sent stands before its pong; 200 times."""
    key = admin.create_key().api_key
    with watching(watcher) as stream:
        stream.subscribe()
        for number in range(200):
            method = admin.keys.DisableApiKey if number % 2 == 0 else admin.keys.EnableApiKey
            request: Any = (
                api_key_service_pb2.DisableApiKeyRequest
                if number % 2 == 0
                else api_key_service_pb2.EnableApiKeyRequest
            )
            method(request(id=key.id))
            before, pong_head = stream.ping(number)
            assert told(before) == [("key_id", key.id)]
            assert pong_head == before[0].invalidation.revision


def test_a_ping_that_comes_while_the_head_is_read_waits_for_another_read(
    service: Service, store: ReplaceableStore, watcher: Stubs
) -> None:
    """A change that was committed before the ping, and after that read, stands before its pong."""
    read = store.changes_since
    with watching(watcher) as stream:
        stream.subscribe()
        stream.ping()
        for number in range(20):
            is_read, go_on = threading.Event(), threading.Event()

            def held(
                *arguments: int, is_read: threading.Event = is_read, go_on: threading.Event = go_on
            ) -> News:
                news = read(*arguments)
                is_read.set()
                assert go_on.wait(TIMEOUT_S)
                return news

            with store.replacing(changes_since=held):
                store.wake()
                assert is_read.wait(TIMEOUT_S)
                _append(service, SubjectKind.KEY, f"ElsewhereKey{number:04}", service.account_id)
                stream.send(ping={"sent_at": number})
                watcher.who_am_i()  # so that the ping has arrived, as good as always
                go_on.set()
                change, pong = stream.next(), stream.next()
            assert told([change]) == [("key_id", f"ElsewhereKey{number:04}")]
            assert pong.pong.head_revision == change.invalidation.revision


def test_a_remembered_head_would_be_seen(
    service: Service, store: ReplaceableStore, watcher: Stubs
) -> None:
    """The planted bug: a hub that answers with what it knows instead of reading the store."""
    with watching(watcher) as stream:
        stream.subscribe()
        stream.ping()
        remembered = store.changes_since(*head(service)[1:], 0)
        _append(service, SubjectKind.KEY, "ElsewhereKey0001", service.account_id)
        with store.replacing(changes_since=lambda *_: remembered):
            before, _ = stream.ping()
        assert told(before) == [], "the pong overtook the change, which the test above would see"


def test_no_store_no_pong(store: ReplaceableStore, watcher: Stubs) -> None:
    """A ping that meets a store out of order is never answered; the stream goes on afterwards."""
    tried = threading.Event()

    def fail(*_: Any) -> Any:
        tried.set()
        raise StoreLockedError("locked")

    with watching(watcher) as stream:
        stream.subscribe()
        with store.replacing(changes_since=fail):
            stream.send(ping={"sent_at": 1})
            assert tried.wait(TIMEOUT_S)
            tried.clear()
            assert tried.wait(TIMEOUT_S), "it goes on trying"
        before, _ = stream.ping(2)
        assert before == [], "no pong for the first ping"


def test_a_change_that_could_not_be_read_is_told_once_it_can(
    service: Service, store: ReplaceableStore, watcher: Stubs
) -> None:
    """A store that fails when it is asked for changes must not make them be passed over."""
    failed = threading.Event()

    def fail(*_: Any) -> Any:
        failed.set()
        raise StoreLockedError("locked")

    with watching(watcher) as stream:
        stream.subscribe()
        stream.ping()
        with store.replacing(changes_since=fail):
            _append(service, SubjectKind.KEY, "ElsewhereKey0001", service.account_id)
            assert failed.wait(TIMEOUT_S)
        before, _ = stream.ping()
        assert told(before) == [("key_id", "ElsewhereKey0001")]


def test_a_stream_cannot_be_opened_without_a_store(store: ReplaceableStore, watcher: Stubs) -> None:
    """The status says so; it is no verdict about the credential."""
    failing = raising(StoreLockedError("locked"))
    with store.replacing(changes_since=failing), watching(watcher) as stream:
        stream.send(subscribe={})
        assert stream.end().reason == "STORE_UNAVAILABLE"


# --- the stream's own credential ------------------------------------------------------------------


def _disable(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    admin.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key_id))


def _revoke(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    revoke_key(admin, key_id)


def _rotate(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    admin.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(id=key_id))


def _expire(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    clock.advance(300 * SECOND)


def _demote(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    admin.keys.UpdateApiKey(
        message(
            api_key_service_pb2.UpdateApiKeyRequest,
            api_key={"id": key_id, "role": "ROLE_DEVELOPER"},
            update_mask={"paths": ["role"]},
        )
    )


@pytest.mark.parametrize(
    ("harm", "code", "reason"),
    [
        (_disable, grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        (_revoke, grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        (_rotate, grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        (_expire, grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED"),
        (_demote, grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT"),
    ],
)
def test_a_credential_that_stops_being_valid_ends_the_stream_at_the_next_ping(
    service: Service,
    admin: Stubs,
    clock: FakeClock,
    harm: Callable[[Stubs, str, FakeClock], None],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    """With the status of section 6, and without a pong."""
    created = admin.create_key(role="ROLE_VALIDATOR", ttl=timedelta(minutes=5))
    with watching(service.as_token(created.token)) as stream:
        stream.subscribe()
        assert stream.ping()[0] == []
        harm(admin, created.api_key.id, clock)
        stream.send(ping={"sent_at": 2})
        end = stream.end()
        assert (end.code, end.reason) == (code, reason)


def test_a_stream_opened_with_an_old_secret_ends_with_its_overlap(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Until then it lives, and no longer."""
    created = admin.create_key(role="ROLE_VALIDATOR")
    admin.rotate(created.api_key.id, overlap=timedelta(minutes=5))
    with watching(service.as_token(created.token)) as stream:
        stream.subscribe()
        clock.advance(300 * SECOND - 1)
        assert stream.ping()[0] == []
        clock.advance(1)
        stream.send(ping={"sent_at": 2})
        assert stream.end().reason == "CREDENTIALS_INVALID"


def test_a_ping_in_a_turn_with_changes_is_judged_too(
    store: ReplaceableStore, admin: Stubs, service: Service
) -> None:
    """The change that ends the credential is read in the turn of the ping: no pong."""
    created = admin.create_key(role="ROLE_VALIDATOR")
    began, goes_on = threading.Event(), threading.Event()
    changes_since = store.changes_since

    def held(*arguments: Any) -> Any:
        began.set()
        assert goes_on.wait(TIMEOUT_S)
        return changes_since(*arguments)

    with watching(service.as_token(created.token)) as stream:
        stream.subscribe()
        stream.ping()
        with store.replacing(changes_since=held):
            stream.send(ping={"sent_at": 2})
            assert began.wait(TIMEOUT_S)
            admin.revoke(created.api_key.id)
            goes_on.set()
            assert stream.next().WhichOneof("message") == "invalidation"
            assert stream.is_over()


def test_deleting_the_creator_tells_watchers_of_the_keys_made_for_others(
    service: Service, admin: Stubs
) -> None:
    """Caches forget them at once; else they would stay good for a minute."""
    user = admin.create_user("user@example.com")
    users = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=user.id).token)
    made = users.create_key(owner_id=service.admin_user_id)
    with watching(admin) as stream:
        stream.subscribe()
        admin.delete_user(user.id, revoke_created=True)
        changes, _ = stream.ping()
    told = [change.invalidation for change in changes]
    assert any(
        one.key_id == made.api_key.id
        or one.owner_id == service.admin_user_id
        or one.account_id
        or one.everything
        for one in told
    )


def test_a_silent_stream_is_judged_too(service: Service, admin: Stubs, clock: FakeClock) -> None:
    """Who does not ping does not listen on with a dead key."""
    created = admin.create_key(role="ROLE_VALIDATOR")
    with watching(service.as_token(created.token)) as stream:
        stream.subscribe()
        revoke_key(admin, created.api_key.id)
        clock.advance(6 * SECOND)
        assert stream.end().reason == "CREDENTIALS_INVALID"


def test_a_half_closed_stream_is_told_of_changes(admin: Stubs, watcher: Stubs) -> None:
    """Somebody who only wants to look need not ping."""
    with watching(watcher) as stream:
        stream.subscribe()
        stream.half_close()
        key = admin.create_key().api_key
        assert stream.next().invalidation.key_id == key.id


# --- bounds ---------------------------------------------------------------------------------------


def test_a_stream_that_its_watcher_ends_is_logged(
    watcher: Stubs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, as every call is."""
    with watching(watcher) as stream:
        stream.subscribe()
    shown: list[str] = []

    def lines() -> int:
        shown.append("".join(capsys.readouterr()))
        return sum("call_served" in one and WATCH in one for one in "".join(shown).splitlines())

    eventually(lambda: lines() > 0, "the end was logged")
    assert lines() == 1


def refused_stream(stubs: Stubs) -> Refusal:
    """Open a stream that must be refused."""
    with watching(stubs) as watch:
        watch.send(subscribe={})
        return watch.end()


def test_streams_beyond_the_cap_are_refused_and_a_place_becomes_free(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """RESOURCE_EXHAUSTED, OVERLOADED, with a time to try again."""
    with running(tmp_path / "data", clock, entropy, max_watchers=2) as service:
        _ = service.only_node
        watcher, tenant = service.with_role("ROLE_VALIDATOR"), service.tenant().stubs
        with watching(watcher) as first, watching(tenant) as second:
            first.subscribe()
            second.subscribe()
            end = refused_stream(service.with_role("ROLE_VALIDATOR"))
            assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert end.retry_after is not None
        hub = service.only_node.container.watches
        eventually(lambda: hub.watchers == 0, "the places are free again")
        with watching(watcher) as fourth:
            fourth.subscribe()


def test_neither_a_key_nor_an_account_takes_every_stream(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """Half of the streams for one key, four in five for one account; the others get in."""
    with (
        running(tmp_path / "data", clock, entropy, max_watchers=10) as service,
        contextlib.ExitStack() as streams,
    ):
        _ = service.only_node
        first, second = service.with_role("ROLE_VALIDATOR"), service.with_role("ROLE_VALIDATOR")
        for stubs in [first] * 5 + [second] * 3:
            streams.enter_context(watching(stubs)).subscribe()
        assert "of this key" in refused_stream(first).message
        assert "of this account" in refused_stream(second).message
        streams.enter_context(watching(service.tenant().stubs)).subscribe()


def test_a_refused_stream_leaves_nothing_behind(
    service: Service, no_collector: None, clock: FakeClock
) -> None:
    """Hundreds of streams with a bad token on one connection, and the next call is answered."""
    channel = service.channel([("grpc.use_local_subchannel_pool", 1)])
    bad, good = Stubs(channel, f"kbear1_{'0' * 16}_{'0' * 49}"), Stubs(channel, service.admin_token)
    with futures.ThreadPoolExecutor(20) as clients:
        for refusal in clients.map(refused_stream, [bad] * 300):
            assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert good.who_am_i().valid


def stream_threads() -> list[threading.Thread]:
    """The threads for watch streams, of every service in this process."""
    return [one for one in threading.enumerate() if one.name.startswith("watch-stream")]


def test_two_hundred_parked_streams_do_not_stop_validation(service: Service, admin: Stubs) -> None:
    """They hold no thread of the service, under all interceptors."""
    threads_before = set(stream_threads())
    # A connection carries 100 streams at most; channels alike would share one.
    stubs = [
        Stubs(service.channel([("grpc.use_local_subchannel_pool", 1)]), admin.token)
        for _ in range(4)
    ]
    streams = [Watch(stubs[number % 4]) for number in range(200)]
    with futures.ThreadPoolExecutor(8) as pool:
        assert all(response.HasField("hello") for response in pool.map(Watch.subscribe, streams))
        token = admin.create_key().token
        assert set(pool.map(lambda _: admin.outcome(token), range(50))) == {"VALID"}
    assert service.only_node.container.watches.watchers == 200
    assert set(stream_threads()) <= threads_before
    for stream in streams:
        stream.call.cancel()
        stream.half_close()


@pytest.mark.usefixtures("no_collector")
def test_streams_that_ended_leave_their_places_without_the_garbage_collector(
    service: Service, watcher: Stubs
) -> None:
    """A call that is held by a cycle counts among the 100 of its connection."""
    for number in range(250):
        with watching(watcher) as stream:
            stream.subscribe()
            if number % 2:  # ended by the service, else by the watcher
                stream.send(subscribe={})
                assert stream.end().reason == "FIELD_INVALID"
    eventually(lambda: service.only_node.container.watches.watchers == 0, "all of them have ended")


def test_what_nobody_foresaw_ends_one_stream_and_harms_nobody_else(
    service: Service, admin: Stubs, watcher: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are taken on the thread that serves everybody: it must survive."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    with watching(watcher) as bystander, watching(watcher) as stream:
        bystander.subscribe()
        stream.subscribe()
        with monkeypatch.context() as broken:
            broken.setattr(service.only_node.container.watches, "report", fail)
            stream.send(usage={"items": []})
            end = stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "foresaw" not in end.message
        assert bystander.ping()[0] == []
    assert admin.outcome(admin.create_key().token) == "VALID"


def _stuck(service: Service, watcher: Stubs, more: Iterable[Any]) -> Any:
    """Open a stream that reads its hello and nothing more, and sends more."""
    channel = service.channel([("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)])
    stream: Any = channel.stream_stream(
        WATCH,
        request_serializer=pb.WatchInvalidationsRequest.SerializeToString,
        response_deserializer=pb.WatchInvalidationsResponse.FromString,
    )(
        itertools.chain([message(pb.WatchInvalidationsRequest, subscribe={})], more),
        metadata=(("authorization", f"Bearer {watcher.token}"),),
    )
    assert next(stream).HasField("hello")
    return stream


def test_a_watcher_that_pings_and_does_not_read_is_dropped(
    service: Service, watcher: Stubs
) -> None:
    """What waits for it is bounded, pongs too."""
    ping = message(pb.WatchInvalidationsRequest, ping={"sent_at": 2**60})
    stream = _stuck(service, watcher, itertools.repeat(ping))
    try:
        eventually(lambda: service.only_node.container.watches.watchers == 0, "it was dropped")
    finally:
        stream.cancel()


def test_a_watcher_that_does_not_read_is_dropped_and_the_others_are_not(
    service: Service, watcher: Stubs
) -> None:
    """At 1,000 queued messages; it resumes by revision and misses nothing."""
    epoch, revision = head(service)
    _stuck(service, watcher, [])
    hub = service.only_node.container.watches
    with watching(watcher) as stream:
        stream.subscribe()
        written = 0
        while hub.watchers == 2:
            append_many(service, 500)
            written += 500
            assert written < 200_000, "the stream that does not read was never dropped"
            before, _ = stream.ping()
            assert len(before) == 500
    with watching(watcher) as resumed:
        resumed.subscribe(epoch, revision)
        assert len(resumed.ping()[0]) == written


def test_streams_end_after_a_quarter_of_an_hour(
    service: Service, watcher: Stubs, clock: FakeClock
) -> None:
    """15 min ± 20 %, UNAVAILABLE, to be resumed."""
    with watching(watcher) as stream:
        stream.subscribe()
        clock.advance(12 * MINUTE - SECOND)
        assert stream.ping()[0] == []
        clock.advance(6 * MINUTE + 2 * SECOND)
        end = stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_ENDED")
        assert end.retry_after is not None


def test_the_ages_of_streams_are_spread(service: Service, watcher: Stubs, clock: FakeClock) -> None:
    """So that not all of them come back at once: after 15 minutes some have ended, some have not.

    Ages are drawn: one in half a million runs draws all 20 on the same side of 15 minutes.
    """
    with contextlib.ExitStack() as opened:
        streams = [opened.enter_context(watching(watcher)) for _ in range(20)]
        for stream in streams:
            stream.subscribe()
        clock.advance(15 * MINUTE)
        still_open = [stream.is_open() for stream in streams]
        assert 0 < sum(still_open) < len(streams)


def test_streams_end_when_the_service_stops(
    tmp_path: Any, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """At once, so that a drain with a long grace is quick."""
    data_dir, created = initialise(tmp_path / "data", clock, entropy)
    app = make_app(data_dir, clock, entropy)
    app.start()
    with (
        grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel,
        watching(Stubs(channel, created.issued.token)) as stream,
    ):
        stream.subscribe()
        started = time.monotonic()
        app.stop(grace_s=30)
        assert stream.end().reason == "STREAM_ENDED"
        assert time.monotonic() - started < 10


# --- usage ----------------------------------------------------------------------------------------


def _item(key_id: str, **fields: Any) -> dict[str, Any]:
    fields.setdefault("secret_version", 1)
    fields.setdefault("count", 1)
    return {"key_id": key_id, **fields}


LAST_REPORTED = "TheLastReported1"


def _reported(service: Service, stubs: Stubs, items: list[dict[str, Any]]) -> None:
    """Report uses and wait until they are stored.

    Reports are counted one after the other, so the ones before were once the last one is begun.
    """
    store = store_of(service.only_node)
    is_last_begun = threading.Event()
    look_up = store.lookup_many

    def look_up_and_notice(key_ids: Sequence[str]) -> Any:
        if LAST_REPORTED in key_ids:
            is_last_begun.set()
        return look_up(key_ids)

    with store.replacing(lookup_many=look_up_and_notice), watching(stubs) as stream:
        stream.subscribe()
        stream.send(usage={"items": items})
        stream.send(usage={"items": [_item(LAST_REPORTED)]})
        assert is_last_begun.wait(TIMEOUT_S)
        stream.ping()
    service.flush_uses()


def test_reported_uses_are_counted(
    service: Service, admin: Stubs, watcher: Stubs, clock: FakeClock
) -> None:
    """Several reports add up, and the last use is the latest."""
    key = admin.create_key().api_key
    clock.advance(100 * SECOND)
    now = clock.now() // SECOND
    _reported(
        service,
        watcher,
        [
            _item(key.id, count=3, last_used_time={"seconds": now - 10}),
            _item(key.id, count=4, last_used_time={"seconds": now - 20}),
        ],
    )
    stored = admin.key(key.id)
    assert stored.use_count == 7
    assert stored.last_used_time.seconds == now - 10


def test_forged_usage_is_clamped(
    service: Service, admin: Stubs, watcher: Stubs, clock: FakeClock
) -> None:
    """Times to [create_time, now], counts to 1…1,000,000."""
    clock.advance(1000 * SECOND)
    keys = [admin.create_key().api_key for _ in range(5)]
    created = clock.now() // SECOND
    clock.advance(1000 * SECOND)
    _reported(
        service,
        watcher,
        [
            _item(keys[0].id, count=2**62, last_used_time={"seconds": 253_402_300_799}),
            _item(keys[1].id, count=-5, last_used_time={"seconds": -62_135_596_800}),
            _item(keys[2].id, count=0),
            _item(keys[3].id, last_used_time={"seconds": 2**62, "nanos": -(2**31)}),
            _item(keys[4].id, last_used_time={"seconds": -(2**62), "nanos": 2**31 - 1}),
        ],
    )
    stored = [admin.key(key.id) for key in keys]
    assert [key.use_count for key in stored] == [1_000_000, 1, 1, 1, 1]
    assert [key.last_used_time.seconds for key in stored] == [
        created + 1000,
        created,
        created,
        created + 1000,
        created,
    ]


def test_a_bad_item_never_harms_the_others(
    service: Service, admin: Stubs, watcher: Stubs, clock: FakeClock
) -> None:
    """Unknown, revoked, nonsense: left out; the good one counts."""
    good, revoked = admin.create_key().api_key, admin.create_key().api_key
    revoke_key(admin, revoked.id)
    _reported(
        service,
        watcher,
        [
            _item("nobody"),
            _item("\0" * 5000),
            _item(""),
            _item(revoked.id, count=9),
            _item(good.id, count=2, secret_version=-(2**31)),
        ],
    )
    assert admin.key(good.id).use_count == 2
    assert admin.key(revoked.id).use_count == 0
    assert not admin.key(revoked.id).HasField("last_used_time")


def test_uses_of_keys_of_other_accounts_are_dropped(service: Service, admin: Stubs) -> None:
    """A tenant reports of its own keys, an operator of all."""
    mine, other = new_account(admin, "mine"), new_account(admin, "other")
    own = service.as_token(mine.token).create_key().api_key
    theirs = service.as_token(other.token).create_key().api_key
    items = [_item(own.id), _item(theirs.id)]
    _reported(service, service.as_token(mine.token), items)
    assert [admin.key(own.id).use_count, admin.key(theirs.id).use_count] == [1, 0]
    _reported(service, admin, items)
    assert [admin.key(own.id).use_count, admin.key(theirs.id).use_count] == [2, 1]


def test_no_decision_reads_reported_uses(service: Service, admin: Stubs, watcher: Stubs) -> None:
    """A key that a watcher claims was used can still be issued again when its answer was lost."""
    request = {
        "name": "lost",
        "role": "ROLE_DEVELOPER",
        "request_id": "2b1e7c1e-6a0f-4a34-8df4-0d6b6a1a6a10",
    }
    created = admin.create_key(**request, attempt=1)
    _reported(service, watcher, [_item(created.api_key.id, count=5)])
    again = admin.create_key(**request, attempt=2)
    assert again.replayed
    assert admin.key(created.api_key.id).use_count == 5


def test_uses_of_the_old_secret_are_told_apart(
    service: Service, admin: Stubs, watcher: Stubs, clock: FakeClock
) -> None:
    """Who still uses the old secret is the question of a rotation; forged times stay possible."""
    key = admin.create_key().api_key
    admin.keys.RotateApiKey(
        message(api_key_service_pb2.RotateApiKeyRequest, id=key.id, overlap=timedelta(minutes=10))
    )
    _reported(service, watcher, [_item(key.id, secret_version=1)])
    stored = admin.key(key.id)
    assert stored.old_secret_last_used_time == stored.create_time


def test_more_than_500_items_are_refused(watcher: Stubs) -> None:
    """500 are fine, 501 end the stream."""
    with watching(watcher) as stream:
        stream.subscribe()
        stream.send(usage={"items": [_item("x")] * 500})
        assert stream.ping()[0] == []
        stream.send(usage={"items": [_item("x")] * 501})
        end = stream.end()
        assert (end.code, end.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["usage.items"])
