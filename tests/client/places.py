"""Two places to ask about tokens, used alike: FakeKeybearer, and the service itself."""

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import grpc

from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, refusal_of, running
from keybearer import Role
from keybearer.testing import ACCOUNT_ID, START, FakeKeybearer
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.domain.clock import SECOND

METHODS = {
    "ValidateToken": pb.ValidateTokenResponse,
    "BatchValidateTokens": pb.BatchValidateTokensResponse,
    "WhoAmI": pb.WhoAmIResponse,
    "RevokeToken": pb.RevokeTokenResponse,
}
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Issued:
    """A key of a place."""

    token: str
    key_id: str
    account: str
    """`operator` or `tenant`."""
    owner_id: str = ""


class Place(Protocol):
    """Somewhere to ask about tokens."""

    channel: grpc.Channel
    names: dict[str, str]
    """What stands in answers instead of ids, which differ from place to place."""

    def issue(
        self,
        role: Role = Role.DEVELOPER,
        *,
        granted_role: Role | None = None,
        scopes: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        account: str = "operator",
        expires_in: timedelta | None = None,
    ) -> Issued:
        """Create a key with an owner of its own."""
        ...

    def revoke(self, key: Issued) -> None:
        """Revoke a key."""
        ...

    def disable(self, key: Issued) -> None:
        """Disable a key."""
        ...

    def enable(self, key: Issued) -> None:
        """Enable a key."""
        ...

    def rescope(self, key: Issued, scopes: Iterable[str]) -> None:
        """Replace the scopes of a key."""
        ...

    def demote(self, key: Issued, role: Role) -> None:
        """Lower the effective role of a key."""
        ...

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        ...

    def now_micros(self) -> int:
        """Return the time of the place, in microseconds since the epoch."""
        ...

    def account_id(self, account: str) -> str:
        """Return the id of an account; `-`, the empty one and ids of nothing are themselves."""
        ...


class FakePlace:
    """The fake."""

    def __init__(self, fake: FakeKeybearer, channel: grpc.Channel) -> None:
        self._fake = fake
        self.channel = channel
        self._accounts = {"operator": ACCOUNT_ID, "tenant": "TenantAccount001"}
        self.names = {account_id: name for name, account_id in self._accounts.items()}
        self._made = 0

    def issue(
        self,
        role: Role = Role.DEVELOPER,
        *,
        granted_role: Role | None = None,
        scopes: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        account: str = "operator",
        expires_in: timedelta | None = None,
    ) -> Issued:
        self._made += 1
        owner_id = f"Owner{self._made:011}"
        token = self._fake.issue(
            role,
            granted_role=granted_role,
            scopes=scopes,
            labels=labels,
            account_id=self._accounts[account],
            expires_in=expires_in,
            owner_id=owner_id,
            owner_email=f"owner{self._made}@example.com",
        )
        key_id = self._fake.identity_of(token).key_id
        self.names |= {key_id: f"key {self._made}", owner_id: f"owner {self._made}"}
        return Issued(token, key_id, account)

    def revoke(self, key: Issued) -> None:
        self._fake.revoke(key.token)

    def disable(self, key: Issued) -> None:
        self._fake.disable(key.token)

    def enable(self, key: Issued) -> None:
        self._fake.enable(key.token)

    def rescope(self, key: Issued, scopes: Iterable[str]) -> None:
        self._fake.change(key.token, scopes=scopes)

    def demote(self, key: Issued, role: Role) -> None:
        self._fake.change(key.token, role=role)

    def advance(self, by: timedelta) -> None:
        self._fake.advance(by)

    def now_micros(self) -> int:
        passed = self._fake.now - START
        return int(START.timestamp()) * SECOND + passed // timedelta(microseconds=1)

    def account_id(self, account: str) -> str:
        return self._accounts.get(account, account)


class RealPlace:
    """The service."""

    def __init__(self, service: Service, clock: FakeClock) -> None:
        tenant = service.tenant()
        self._admins: dict[str, Stubs] = {"operator": service.admin, "tenant": tenant.stubs}
        self._accounts = {"operator": service.account_id, "tenant": tenant.account_id}
        self.names = {account_id: name for name, account_id in self._accounts.items()}
        self.channel: grpc.Channel = service.channel()
        self._clock = clock
        self._made = 0

    def issue(
        self,
        role: Role = Role.DEVELOPER,
        *,
        granted_role: Role | None = None,
        scopes: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        account: str = "operator",
        expires_in: timedelta | None = None,
    ) -> Issued:
        self._made += 1
        admin = self._admins[account]
        granted = f"ROLE_{(role if granted_role is None else granted_role).name}"
        owner = admin.create_user(f"owner{self._made}@example.com", role=granted)
        life = {"never_expires": True} if expires_in is None else {"ttl": expires_in}
        made = admin.create_key(
            name="test",
            owner_id=owner.id,
            role=granted,
            scopes=list(scopes),
            labels=dict(labels or {}),
            **life,
        )
        key = Issued(made.token, made.api_key.id, account, owner.id)
        if granted_role is not None:
            self.demote(key, role)
        self.names |= {key.key_id: f"key {self._made}", owner.id: f"owner {self._made}"}
        return key

    def revoke(self, key: Issued) -> None:
        self._admins[key.account].revoke(key.key_id)

    def disable(self, key: Issued) -> None:
        self._admins[key.account].disable_key(key.key_id)

    def enable(self, key: Issued) -> None:
        self._admins[key.account].enable_key(key.key_id)

    def rescope(self, key: Issued, scopes: Iterable[str]) -> None:
        self._admins[key.account].update_key(key.key_id, {"scopes": list(scopes)})

    def demote(self, key: Issued, role: Role) -> None:
        self._admins[key.account].update_user(key.owner_id, {"role": f"ROLE_{role.name}"})

    def advance(self, by: timedelta) -> None:
        self._clock.advance(by // timedelta(microseconds=1))

    def now_micros(self) -> int:
        return self._clock.now()

    def account_id(self, account: str) -> str:
        return self._accounts.get(account, account)


@contextmanager
def fake_place(make: Callable[[], FakeKeybearer] = FakeKeybearer) -> Iterator[FakePlace]:
    """Run a fake, and yield it as a place."""
    with make() as fake, grpc.insecure_channel(fake.address) as channel:
        yield FakePlace(fake, channel)


@contextmanager
def real_place(path: Path, seed: int) -> Iterator[RealPlace]:
    """Run a fresh service, and yield it as a place."""
    clock = FakeClock()
    with running(path, clock, SeededEntropy(seed)) as service:
        yield RealPlace(service, clock)


# --- asking ---------------------------------------------------------------------------------------


def bearer(key: Issued | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that presents a key."""
    return () if key is None else (("authorization", f"Bearer {key.token}"),)


def ask(
    place: Place,
    method: str,
    request: Any,
    *,
    caller: Issued | None = None,
    metadata: tuple[tuple[str, str], ...] | None = None,
) -> Any:
    """Make a call and return its answer, without what may differ from place to place.

    Args:
        place: Where.
        method: Of TokenService.
        request: A message, or bytes.
        caller: Whose credential is presented.
        metadata: Instead of it.
    """
    call: Any = place.channel.unary_unary(
        f"/keybearer.v1.TokenService/{method}",
        response_deserializer=METHODS[method].FromString,  # type: ignore[attr-defined]
    )
    content = request if isinstance(request, bytes) else request.SerializeToString()
    sent = bearer(caller) if metadata is None else metadata
    try:
        return plain(place, call(content, metadata=sent, timeout=PATIENCE_S))
    except grpc.RpcError as error:
        return refused_plainly(error)


def refused_plainly(error: grpc.RpcError) -> Any:
    """Return a refusal without its text, which is for people."""
    refusal = refusal_of(error)
    return {
        "code": refusal.code.name,
        "reason": refusal.reason,
        "fields": refusal.fields,
        "metadata": refusal.metadata,
        "retry_after": refusal.retry_after,
    }


def plain(place: Place, message: Any) -> Any:
    """Return a message as plain values: ids by their names, moments counted from now."""
    values: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name in ("revision", "head_revision", "epoch"):
            continue
        if name in ("expire_time", "overlap_end_time"):
            values[name] = value.ToMicroseconds() - place.now_micros()
        elif name == "cache_for":
            values[name] = value.ToMicroseconds()
        elif name == "labels":
            values[name] = dict(value)
        elif name == "scopes":
            values[name] = list(value)
        elif name == "responses":
            values[name] = [plain(place, one) for one in value]
        elif descriptor.message_type is not None:
            values[name] = plain(place, value)
        else:
            values[name] = place.names.get(value, value)
    return values


@dataclass
class Watch:
    """A stream of changes that a test drives; what it says is in `heard`."""

    place: Place
    caller: Issued
    heard: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open the stream."""
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call: Any = self.place.channel.stream_stream(
            "/keybearer.v1.TokenService/WatchInvalidations",
            request_serializer=pb.WatchInvalidationsRequest.SerializeToString,
            response_deserializer=pb.WatchInvalidationsResponse.FromString,
        )
        self._call = call(
            iter(self._queue.get, None), metadata=bearer(self.caller), timeout=PATIENCE_S
        )

    def send(self, **message: Any) -> "Watch":
        """Send a message."""
        self._queue.put(pb.WatchInvalidationsRequest(**message))
        return self

    def hear(self, count: int = 1) -> "Watch":
        """Wait for messages, or for the end."""
        for _ in range(count):
            try:
                response = next(self._call)
            except StopIteration:
                self.heard.append("the end")
            except grpc.RpcError as error:
                self.heard.append(refused_plainly(error))
            else:
                self.heard.append(plain(self.place, response))
        return self

    def close(self) -> list[Any]:
        """End the stream and return what it said."""
        self._queue.put(None)
        self._call.cancel()
        return self.heard
