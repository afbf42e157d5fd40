"""Bad input: a clear error and nothing else, whatever is sent.

Random bytes and messages with every field at its extremes go to every method, and mutated tokens
to every place that takes one. Whatever is refused must have changed nothing.
"""

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from backends import dump_database
from fakes import FakeClock, SeededEntropy
from harness import Service, file_of, refused, running
from keybearer._wire.token_format import BASE62
from keybearer.access import method_path
from keybearer.v1 import token_service_pb2
from keybearer_service import endpoints
from keybearer_service.domain.clock import SECOND

PAYLOADS = 10_000
MUTATIONS = 10_000
IN_FLIGHT = 64
ENOUGH = 10
"""Answers that nobody expects; a run with that many has failed and need not go on."""
TIMEOUT_S = 60.0

Code = grpc.StatusCode
ALLOWED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.UNAUTHENTICATED,
    Code.PERMISSION_DENIED,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS,
    Code.ABORTED,
    Code.RESOURCE_EXHAUSTED,
}
METHODS: dict[str, MethodDescriptor] = {
    method_path(method): method
    for one in endpoints.SERVICES
    for method in one.methods
    if not method.client_streaming
}
USAGE = {"last_used_time", "use_count", "secret_used", "old_secret_last_used_time"}
CHANGED_BY_REFUSALS = {"audit_events"}
CALL_REFUSED = 20


# --- what is sent ---------------------------------------------------------------------------------

TEXTS = [
    "",
    " ",
    "\0",
    "a",
    "-",
    "*",
    "0" * 16,
    "%_%",
    "' OR 1=1 --",
    "\u202e",
    "\ufffd",
    "\U0001f511" * 50,
    "a" * 101,
    "x" * 1001,
    "kbear1_" + "0" * 16 + "_" + "0" * 49,
    "../../etc",
    "{}[]",
    "create_time desc",
    "name",
    "11111111-1111-4111-8111-111111111111",
    "a@example.com",
]
NUMBERS = [0, 1, -1, 2, 3, 4, 100, 2**31 - 1, -(2**31)]
LONG_NUMBERS = [*NUMBERS, 2**63 - 1, -(2**63), 253_402_300_800, -62_135_596_801, 10**9]


class Extremes:
    """Makes messages of any type, with every field at one of its extremes."""

    def __init__(self, rng: random.Random, known: Sequence[str]) -> None:
        self._rng = rng
        self._texts = [*TEXTS, *known]
        self._numbers = {
            FieldDescriptor.TYPE_INT64: LONG_NUMBERS,
            FieldDescriptor.TYPE_INT32: NUMBERS,
            FieldDescriptor.TYPE_ENUM: NUMBERS,
        }

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Make a message with about two thirds of its fields set."""
        made = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._rng.random() < 0.35 or depth > 3:
                continue
            self._set(made, field, depth)
        return made

    def _set(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        target: Any = getattr(made, field.name)
        if not field.is_repeated:
            if field.message_type is None:
                setattr(made, field.name, self._value(field))
            else:
                target.CopyFrom(self.message(field.message_type, depth + 1))
            return
        count = self._rng.choice([1, 1, 2, 3, 17, 65, 101])
        if field.message_type is None:
            target.extend(self._value(field) for _ in range(count))
        elif field.message_type.GetOptions().map_entry:
            for _ in range(count):
                target[self._rng.choice(self._texts)] = self._rng.choice(self._texts)
        else:
            target.extend(self.message(field.message_type, depth + 1) for _ in range(count))

    def _value(self, field: FieldDescriptor) -> Any:
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._rng.choice(self._texts)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self._rng.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._rng.randbytes(self._rng.randrange(64))
        return self._rng.choice(self._numbers[field.type])


def random_payload(rng: random.Random, extremes: Extremes, method: MethodDescriptor) -> bytes:
    """Random bytes, a message of extremes, or one of those with bytes changed."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.choice([0, 1, 2, 3, 5, 8, 13, 50, 500, 5000]))
    payload = bytearray(extremes.message(method.input_type).SerializeToString())
    if kind == 1 and payload:
        for _ in range(rng.randrange(1, 4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
    return bytes(payload[: 120 * 1024])


# --- how it is sent -------------------------------------------------------------------------------


class Shots:
    """Many calls at a time over one channel, and what they answered."""

    def __init__(self, service: Service) -> None:
        self._channel: Any = service.channel()
        self._calls: dict[str, Any] = {path: self._channel.unary_unary(path) for path in METHODS}
        self.codes: Counter[Code] = Counter()
        self.texts: set[str] = set()
        self.ok: Counter[str] = Counter()

    def fire(self, shots: Iterator[tuple[str, bytes, str | None]]) -> None:
        """Make every call, a bounded number of them at a time."""
        while batch := list(itertools.islice(shots, IN_FLIGHT)):
            futures = [
                (
                    path,
                    self._calls[path].future(
                        payload,
                        metadata=() if header is None else (("authorization", header),),
                        timeout=TIMEOUT_S,
                    ),
                )
                for path, payload, header in batch
            ]
            for path, future in futures:
                code = future.code()
                self.codes[code] += 1
                if code not in ALLOWED and self.codes[code] > ENOUGH:
                    self.assert_allowed()
                if code is Code.OK:
                    self.ok[path] += 1
                else:
                    self.texts.add(future.details() or "")

    def assert_allowed(self) -> None:
        """Check that nothing was answered that the contract does not know."""
        unexpected = {code: n for code, n in self.codes.items() if code not in ALLOWED}
        assert unexpected == {}, sorted(self.texts)[:20]
        assert not [text for text in self.texts if "Traceback" in text or "Exception" in text]


class Records(logging.Handler):
    """Keeps every line that tells of something unforeseen."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.bad: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or record.levelno >= logging.ERROR or "internal_error" in text:
            self.bad.append(text)


@pytest.fixture
def _quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing unforeseen is logged while a test runs, by us or by a library."""
    records = Records()
    root = logging.getLogger()
    root.addHandler(records)
    yield
    root.removeHandler(records)
    written = capfd.readouterr()
    assert records.bad == []
    assert "Traceback" not in written.out + written.err
    assert "internal_error" not in written.out + written.err


def state_of(service: Service) -> dict[str, list[dict[str, Any]]]:
    """Return every row, without usage, refused calls, and the head, which they move."""
    service.flush_uses()
    tables = dump_database(file_of(service))
    tables["audit_events"] = [
        row for row in tables["audit_events"] if row["action"] != CALL_REFUSED
    ]
    for row in tables["api_keys"]:
        for column in USAGE:
            del row[column]
    return {
        name: rows for name, rows in tables.items() if not name.startswith("_") and name != "head"
    }


@pytest.fixture
def fuzzed(tmp_path: Any, clock: FakeClock, seed: int) -> Iterator[Service]:
    """A service with something in it."""
    with running(tmp_path / "data", clock, SeededEntropy(seed)) as service:
        service.tenant()
        service.admin.create_user("a@example.com")
        service.admin.create_key(scopes=["a"])
        yield service


def known_ids(service: Service) -> list[str]:
    """Ids and a token of things that are there, for messages to name."""
    made = service.admin.create_key(name="named by messages")
    user = service.admin.create_user("named@example.com")
    return [made.api_key.id, made.token, user.id, service.account_id, user.etag]


# --- the tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "Bearer garbage", "of a developer"])
@pytest.mark.usefixtures("_quiet")
def test_payloads_of_callers_who_may_not_call_change_nothing(
    fuzzed: Service, seed: int, header: str | None
) -> None:
    """Every row stays as it is, however the bytes look."""
    rng = random.Random(seed)
    extremes = Extremes(rng, known_ids(fuzzed))
    if header == "of a developer":
        header = f"Bearer {fuzzed.with_role('ROLE_DEVELOPER').token}"
    public = {"/keybearer.v1.TokenService/RevokeToken", "/keybearer.v1.TokenService/RotateSelf"}
    paths = sorted(set(METHODS) - public - {"/keybearer.v1.TokenService/WhoAmI"})
    shots = Shots(fuzzed)
    before = state_of(fuzzed)
    shots.fire(
        (path, random_payload(rng, extremes, METHODS[path]), header)
        for path in (rng.choice(paths) for _ in range(PAYLOADS // 10))
    )
    assert set(shots.codes) <= {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
    assert state_of(fuzzed) == before


@pytest.mark.usefixtures("_quiet")
def test_payloads_of_an_operators_administrator_are_answered_by_the_contract(
    fuzzed: Service, seed: int
) -> None:
    """Only its codes; every change is told by an event, and no more of them than calls were OK.

    The one method left out would end the caller's own token; it has a test of its own.
    """
    rng = random.Random(seed + 1)
    extremes = Extremes(rng, known_ids(fuzzed))
    # Somebody is to stay who may look afterwards, whoever the messages delete.
    header = f"Bearer {fuzzed.admin.create_key(role='ROLE_ADMIN').token}"
    paths = sorted(set(METHODS) - {"/keybearer.v1.TokenService/RotateSelf"})
    shots = Shots(fuzzed)
    before = state_of(fuzzed)
    shots.fire(
        (path, random_payload(rng, extremes, METHODS[path]), header)
        for path in (rng.choice(paths) for _ in range(PAYLOADS))
    )
    shots.assert_allowed()
    assert len(shots.codes) >= 4, shots.codes
    after = state_of(fuzzed)
    events = after["audit_events"][len(before["audit_events"]) :]
    assert after["audit_events"][: len(before["audit_events"])] == before["audit_events"]
    assert len(events) <= sum(shots.ok.values())
    _assert_only_told_changes(before, after, events)


def _assert_only_told_changes(before: Any, after: Any, events: list[dict[str, Any]]) -> None:
    text = repr(events)
    for table in ("accounts", "users", "api_keys"):
        old = {row["id"]: row for row in before[table]}
        for row in after[table]:
            if old.get(row["id"]) != row:
                assert row["id"] in text, (table, row["id"])
        assert set(old) <= {row["id"] for row in after[table]}


@pytest.mark.usefixtures("_quiet")
def test_payloads_to_rotate_oneself_are_answered_by_the_contract(
    fuzzed: Service, seed: int
) -> None:
    """With a new key whenever one has rotated itself."""
    rng = random.Random(seed + 2)
    path = "/keybearer.v1.TokenService/RotateSelf"
    extremes = Extremes(rng, known_ids(fuzzed))
    shots = Shots(fuzzed)
    header = f"Bearer {fuzzed.with_role('ROLE_DEVELOPER').token}"
    for _ in range(PAYLOADS // 50):
        done = shots.ok[path]
        shots.fire(iter([(path, random_payload(rng, extremes, METHODS[path]), header)]))
        if shots.ok[path] > done:
            header = f"Bearer {fuzzed.with_role('ROLE_DEVELOPER').token}"
    shots.assert_allowed()
    assert Code.UNAUTHENTICATED not in shots.codes
    assert shots.ok[path]


def _mutate(rng: random.Random, token: str) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: _with(token, rng.randrange(len(token)), rng.choice(BASE62 + "_- .")),
        lambda: token[: rng.randrange(len(token))],
        lambda: token + rng.choice([" ", "x", "=", token, "\t"]),
        lambda: _without(token, rng.randrange(len(token))),
        lambda: _swapped(token, rng.randrange(len(token) - 1)),
        token.swapcase,
        lambda: token.replace("_", rng.choice(["-", "", "__"])),
        lambda: "".join(rng.sample(token, len(token))),
        lambda: "".join(chr(rng.randrange(33, 127)) for _ in range(rng.randrange(1, 600))),
    ]
    while (mutated := rng.choice(kinds)().strip()) == token or not mutated:
        continue
    return mutated


def _with(text: str, place: int, character: str) -> str:
    return text[:place] + character + text[place + 1 :]


def _without(text: str, place: int) -> str:
    return text[:place] + text[place + 1 :]


def _swapped(text: str, place: int) -> str:
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


@pytest.mark.usefixtures("_quiet")
def test_no_mutated_token_opens_anything(fuzzed: Service, seed: int) -> None:
    """As a credential it is UNAUTHENTICATED, as a question NOT_FOUND, and nothing is changed."""
    rng = random.Random(seed + 3)
    tokens = [fuzzed.admin.create_key(role="ROLE_ADMIN").token for _ in range(3)]
    mutated = [_mutate(rng, rng.choice(tokens)) for _ in range(MUTATIONS)]
    before = state_of(fuzzed)

    shots = Shots(fuzzed)
    path = "/keybearer.v1.TokenService/WhoAmI"
    shots.fire((path, b"", f"Bearer {token}") for token in mutated[: MUTATIONS // 4])
    assert set(shots.codes) == {Code.UNAUTHENTICATED}

    outcomes: Counter[int] = Counter()
    for start in range(MUTATIONS // 4, MUTATIONS, 100):
        request = token_service_pb2.BatchValidateTokensRequest(
            requests=[
                token_service_pb2.ValidateTokenRequest(token=one, account_id="-")
                for one in mutated[start : start + 100]
            ]
        )
        answer = fuzzed.admin.tokens.BatchValidateTokens(request)
        outcomes.update(one.outcome for one in answer.responses)
    assert outcomes == {2: MUTATIONS - MUTATIONS // 4}
    assert state_of(fuzzed) == before
    assert all(fuzzed.admin.outcome(token) == "VALID" for token in tokens)


@pytest.mark.usefixtures("_quiet")
def test_no_mutated_token_revokes_anything(fuzzed: Service, clock: FakeClock, seed: int) -> None:
    """The public method answers OK and does nothing."""
    rng = random.Random(seed + 4)
    token = fuzzed.admin.create_key().token
    before = state_of(fuzzed)
    shots = Shots(fuzzed)
    path = "/keybearer.v1.TokenService/RevokeToken"
    for _ in range(MUTATIONS // 400):
        clock.advance(SECOND)
        requests = [
            token_service_pb2.RevokeTokenRequest(token=_mutate(rng, token)) for _ in range(20)
        ]
        shots.fire((path, one.SerializeToString(), None) for one in requests)
    assert set(shots.codes) == {Code.OK}, shots.texts
    assert state_of(fuzzed) == before


def test_every_extreme_is_sent(seed: int) -> None:
    """The generator reaches every field: a check that cannot fail proves nothing."""
    extremes = Extremes(random.Random(seed), ["known"])
    for path, method in METHODS.items():
        seen: set[str] = set()
        for _ in range(60):
            seen |= {field.name for field, _ in extremes.message(method.input_type).ListFields()}
        members = {
            field.name
            for field in method.input_type.fields
            if field.containing_oneof is None or len(field.containing_oneof.fields) == 1
        }
        assert members <= seen, path


def test_a_moment_at_its_extreme_is_an_error_of_the_field(fuzzed: Service) -> None:
    """The extremes matter: one that is let through would fail inside."""
    bad = Timestamp(seconds=2**63 - 1, nanos=2**31 - 1)
    assert refused(lambda: fuzzed.admin.create_key(expire_time=bad)).fields == ["expire_time"]
