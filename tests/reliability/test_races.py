"""Nobody creates authority that it does not hold at commit time, and the last admin never goes."""

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import message, running
from keybearer.access import Role
from keybearer.v1 import user_service_pb2
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.errors import ServiceError
from keybearer_service.domain.model import Account
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import IssuedKey
from keybearer_service.usecases.users import UserUpdate
from reliability.races import MOST_AT_ONCE, Arena

PER_COMMIT = 150
LONG_RUN = 10_000
OVER_GRPC = 60
OVER_GRPC_LONG = 400

Trial = Callable[[Arena], None]


def demote_against_create(arena: Arena) -> Iterator[None]:
    """An administrator is demoted while creating an ADMIN key for another one."""
    with arena.setting_up() as change:
        user = arena.new_user(change, Role.ADMIN)
        other = arena.new_user(change, Role.ADMIN)
        token = arena.new_key(change, user, Role.ADMIN).token
    demotion = UserUpdate(paths=frozenset({"role"}), role=Role.DEVELOPER)
    while True:
        with arena.setting_up() as change:
            change.tx.update_user(user)  # an administrator again
        created, demoted = arena.race(
            lambda: arena.container.keys.create(
                arena.call(token), arena.scope, arena.key_of(other, Role.ADMIN), None
            ),
            lambda: arena.container.users.update(arena.call(arena.admin), user.id, demotion),
        )
        assert not isinstance(demoted, ServiceError), demoted
        if isinstance(created, ServiceError):
            arena.seen[created.reason] += 1
        elif arena.newest_event(created.key.id) < arena.newest_event(user.id):
            arena.seen["created first"] += 1
        else:
            arena.findings.append(f"{created.key.id} was created by a demoted caller")
        yield


def delete_against_mint(arena: Arena) -> Iterator[None]:
    """A user is deleted while keys of that user are created, rotated and enabled."""
    while True:
        _delete_against_mint(arena)
        yield


def _delete_against_mint(arena: Arena) -> None:
    with arena.setting_up() as change:
        owner = arena.new_user(change, Role.DEVELOPER)
        rotated = arena.new_key(change, owner, Role.DEVELOPER).key
        disabled = arena.new_key(change, owner, Role.DEVELOPER).key
        change.tx.update_api_key(replace(disabled, disable_time=change.now))
    keys, call = arena.container.keys, partial(arena.call, arena.admin)
    new = arena.key_of(owner, Role.DEVELOPER)
    results = arena.race(
        lambda: arena.container.users.delete(
            call(), owner.id, validate_only=False, revoke_created=False
        ),
        lambda: keys.enable(call(), disabled.id),
        lambda: keys.create(call(), arena.scope, new, None),
        lambda: keys.rotate(call(), rotated.id, 0, None),
    )
    assert not isinstance(results[0], ServiceError), results[0]
    for name, result in zip(("enabled", "created", "rotated"), results[1:], strict=True):
        arena.seen[result.reason if isinstance(result, ServiceError) else name] += 1
        if isinstance(result, IssuedKey) and arena.outcome(result.token) != "REVOKED":
            arena.findings.append(f"{result.key.id}, {name}, lives on")
    with arena.container.store.read() as reader:
        alive = reader.unrevoked_keys(owner_id=owner.id, limit=9).ids
    arena.findings += [f"{key} of a deleted user is not revoked" for key in alive]


def admins_against_each_other(arena: Arena) -> Iterator[None]:
    """Administrators of an account demote and delete each other and themselves."""
    update = UserUpdate(paths=frozenset({"role"}), role=Role.DEVELOPER)
    for number in itertools.count(2):
        size = 2 + number % (MOST_AT_ONCE - 1)
        with arena.setting_up() as change:
            account = Account(
                id=arena.container.issuer.new_id(), name="tenant", create_time=change.now
            )
            change.tx.insert_account(account)
            admins = [arena.new_user(change, Role.ADMIN, account.id) for _ in range(size)]
            tokens = [arena.new_key(change, admin, Role.ADMIN).token for admin in admins]

        def act(who: int, whom: str, *, deleting: bool, tokens: list[str] = tokens) -> Any:
            call = arena.call(tokens[who])
            if deleting:
                return arena.container.users.delete(
                    call, whom, validate_only=False, revoke_created=False
                )
            return arena.container.users.update(call, whom, update)

        distance = arena.random.choice([0, 0, 1])  # oneself, or the next one
        results = arena.race(
            *(
                partial(
                    act,
                    who,
                    admins[(who + distance) % size].id,
                    deleting=arena.random.random() < 0.5,
                )
                for who in range(size)
            )
        )
        for result in results:
            arena.seen[result.reason if isinstance(result, ServiceError) else "done"] += 1
        with arena.container.store.read() as reader:
            if reader.live_admins(AccountScope(account.id)) < 1:
                arena.findings.append(f"{size} administrators removed each other")
        yield


def duplicates_of_create(arena: Arena) -> Iterator[None]:
    """Tries of one request arrive in every order, one by one and at once; the last one counts."""
    with arena.setting_up() as change:
        owner = arena.new_user(change, Role.DEVELOPER)
    orders = [order for tries in (2, 3, 4) for order in itertools.permutations(range(tries))]
    for number in itertools.count():
        order = orders[number // 2 % len(orders)]
        new = arena.key_of(owner, Role.DEVELOPER)
        request_id = arena.container.issuer.new_id()

        def send(attempt: int, new: Any = new, request_id: str = request_id) -> Any:
            request = IdempotencyKey(request_id, attempt, b"body")
            return arena.container.keys.create(arena.call(arena.admin), arena.scope, new, request)

        tries = [partial(send, attempt) for attempt in order]
        if number % 2:
            answers = arena.race(*tries)
        else:
            answers = [answer for one in tries for answer in arena.race(one)]
        for answer in answers:
            arena.seen[answer.reason if isinstance(answer, ServiceError) else "issued"] += 1
        last = answers[order.index(max(order))]
        if isinstance(last, ServiceError) or arena.outcome(last.token) != "VALID":
            arena.findings.append(f"{order}: the last answer is of no use")
        if len({answer.key.id for answer in answers if isinstance(answer, IssuedKey)}) != 1:
            arena.findings.append(f"{order}: more than one key")
        yield


@contextmanager
def arena_for(path: Path, seed: int, plant: tuple[str, ...] = ()) -> Iterator[Arena]:
    """Open an arena and print what was seen in it."""
    arena = Arena(path, seed, plant)
    try:
        yield arena
    finally:
        arena.close()
        sys.stdout.write(
            f"KEYBEARER_TEST_SEED={seed} {dict(arena.seen)}, {len(arena.findings)} findings\n"
        )


RACES = [
    pytest.param(demote_against_create, {"created first", "ROLE_INSUFFICIENT"}, id="demote-create"),
    pytest.param(
        delete_against_mint,
        {"created", "rotated", "enabled", "RESOURCE_NOT_FOUND", "KEY_REVOKED"},
        id="delete-mint",
    ),
    pytest.param(admins_against_each_other, {"done", "LAST_ADMIN"}, id="last-admin"),
    pytest.param(duplicates_of_create, {"issued", "REPLAY_IMPOSSIBLE"}, id="duplicates"),
]


def run(
    path: Path,
    seed: int,
    race: Callable[[Arena], Iterator[None]],
    ends: set[str],
    trials: int,
) -> None:
    """Run trials of a race: no finding, and every way to end was seen."""
    with arena_for(path, seed) as arena:
        for _ in itertools.islice(race(arena), trials):
            pass
    assert arena.findings == []
    assert ends <= arena.seen.keys()


@pytest.mark.parametrize(("race", "ends"), RACES)
def test_races(
    tmp_path: Path, seed: int, race: Callable[[Arena], Iterator[None]], ends: set[str]
) -> None:
    """However two changes meet, the outcome is that of one order of them."""
    run(tmp_path / "data", seed, race, ends, PER_COMMIT)


@pytest.mark.slow
@pytest.mark.parametrize(("race", "ends"), RACES)
def test_races_ten_thousand_times(
    tmp_path: Path, seed: int, race: Callable[[Arena], Iterator[None]], ends: set[str]
) -> None:
    """However two changes meet, the outcome is that of one order of them."""
    run(tmp_path / "data", seed, race, ends, LONG_RUN)


@pytest.mark.parametrize(
    ("race", "plant"),
    [
        pytest.param(demote_against_create, ("lookup",), id="judged-before"),
        pytest.param(delete_against_mint, ("user", "api_key"), id="read-before"),
        pytest.param(admins_against_each_other, ("live_admins",), id="counted-before"),
        pytest.param(duplicates_of_create, ("attempts",), id="attempts-forgotten"),
    ],
)
def test_planted_bugs_are_caught(
    tmp_path: Path,
    seed: int,
    race: Callable[[Arena], Iterator[None]],
    plant: tuple[str, ...],
) -> None:
    """A check that is made before its transaction, or not at all, is found out."""
    with arena_for(tmp_path / "data", seed, plant) as arena:
        for _ in itertools.islice(race(arena), 2000):
            if arena.findings:
                break
    assert arena.findings


def demote_and_create_over_grpc(path: Path, trials: int) -> Counter[str]:
    """Race a demotion against a create over the network; answers how often each end was seen."""
    seen: Counter[str] = Counter()
    with running(path, SystemClock(), SystemEntropy()) as service:
        admin = service.admin
        user = admin.create_user("racer@example.com")
        racer = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=user.id).token)

        def set_role(role: str) -> None:
            admin.users.UpdateUser(
                message(
                    user_service_pb2.UpdateUserRequest,
                    user={"id": user.id, "role": role},
                    update_mask={"paths": ["role"]},
                )
            )

        for trial in range(trials):
            set_role("ROLE_ADMIN")
            barrier = threading.Barrier(2)

            late = trial // 2 % 20 * 0.0001

            def demote(barrier: threading.Barrier, late: float) -> None:
                barrier.wait(30)
                time.sleep(late)
                set_role("ROLE_DEVELOPER")

            thread = threading.Thread(target=demote, args=(barrier, late if trial % 2 else 0))
            thread.start()
            barrier.wait(30)
            time.sleep(0 if trial % 2 else late)
            try:
                key = racer.create_key(role="ROLE_ADMIN", owner_id=service.admin_user_id).api_key
            except grpc.RpcError as error:
                seen[error.code().name] += 1
                key = None
            thread.join()
            if key is not None:
                with service.app.container.store.read() as reader:
                    newest = {event.target_id: event.seq for event in reader.audit_chain(0, 10**6)}
                assert newest[key.id] < newest[user.id], "created by a demoted caller"
                seen["created first"] += 1
    sys.stdout.write(f"{dict(seen)}\n")
    return seen


def test_a_demotion_against_a_create_over_grpc(tmp_path: Path) -> None:
    """The same race over a real connection."""
    assert demote_and_create_over_grpc(tmp_path / "data", OVER_GRPC)["PERMISSION_DENIED"]


@pytest.mark.slow
def test_many_demotions_against_creates_over_grpc(tmp_path: Path) -> None:
    """The same race over a real connection, many times."""
    seen = demote_and_create_over_grpc(tmp_path / "data", OVER_GRPC_LONG)
    assert seen.keys() == {"PERMISSION_DENIED", "created first"}
