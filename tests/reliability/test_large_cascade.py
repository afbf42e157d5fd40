"""The owner of very many keys is deleted: all of them at once, and nobody else stands still."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from backends import append_keys, append_keys_to_postgres
from harness import Service, Stubs, refusal_of, running
from keybearer.v1 import user_service_pb2
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.storage import dbapi
from watch.measurements import note, spread

PATIENCE_S = 120.0
LONGEST_READ_S = 1.0
"""What a check or a read of another one may take meanwhile, on a busy machine."""
LONGEST_CHANGE_S = 4.0
"""Until a change of another one is done or refused: twice the limit of the store."""


@pytest.fixture(params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A running service over each store."""
    on_postgres = request.param == "postgres"
    with running(
        tmp_path / "data", SystemClock(), SystemEntropy(), on_postgres=on_postgres
    ) as service:
        yield service


def fill(service: Service, key_id: str, count: int) -> None:
    """Give the owner of a key many more, behind the service's back."""
    if service.data_dir.url is not None:
        append_keys_to_postgres(service.data_dir.url, count, key_id)
        return
    connection = dbapi.connect(str(service.data_dir.database))
    with connection:
        append_keys(connection, count, key_id)
    connection.close()


class Beside:
    """Repeats a call until it is stopped, and keeps how long each took."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.took: list[float] = []
        self.refused: set[str] = set()
        self._call = call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            began_at = time.monotonic()
            try:
                self._call()
            except grpc.RpcError as error:
                self.refused.add(refusal_of(error).reason)
            self.took.append(time.monotonic() - began_at)


def _validate(stubs: Stubs, token: str) -> Callable[[], object]:
    def call() -> None:
        assert stubs.outcome(token) == "VALID"

    return call


def _delete(
    stubs: Stubs, user_id: str, *, validate_only: bool = False
) -> user_service_pb2.DeleteUserResponse:
    request = user_service_pb2.DeleteUserRequest(id=user_id, validate_only=validate_only)
    return stubs.users.DeleteUser(request, timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize("count", [100_000])
def test_the_owner_of_very_many_keys_is_deleted(service: Service, count: int) -> None:
    """Checks and reads of others go on; a change waits, and is done or refused in time."""
    admin = service.admin
    owner = admin.create_user("owner@example.com")
    first = admin.create_key(owner_id=owner.id)
    kept = admin.create_key()
    fill(service, first.api_key.id, count)
    beside = {
        "check": Beside(_validate(service.admin, kept.token)),
        "read": Beside(partial(service.admin.key, kept.api_key.id)),
        "change": Beside(partial(service.admin.create_key, name="beside")),
    }
    began_at = time.monotonic()
    stubs = service.admin
    try:
        preview = _delete(stubs, owner.id, validate_only=True)
        deleted = _delete(stubs, owner.id)
        took = time.monotonic() - began_at
    finally:
        for one in beside.values():
            one.stop()
    note(f"delete the owner of {count} keys: {took:.1f} s")
    for name, one in beside.items():
        note(f"  {name} meanwhile: {spread(one.took)}, refused {sorted(one.refused)}")
    assert preview.revoked_key_count == deleted.revoked_key_count == count + 1
    assert admin.outcome(first.token) == "REVOKED"
    records, _ = service.app.container.store.lookup_many(
        [f"copy{number:012}" for number in (1, count // 2, count)]
    )
    assert all(one.revoke_time for one in records.values())
    assert len(records) == 3
    assert max(beside["check"].took) <= LONGEST_READ_S
    assert max(beside["read"].took) <= LONGEST_READ_S
    assert max(beside["change"].took) <= LONGEST_CHANGE_S
    assert beside["change"].refused <= {"STORE_UNAVAILABLE"}
