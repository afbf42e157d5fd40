"""The audit chain: every tampering is found, and the first broken event is named."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fakes import START, SeededEntropy, at
from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.audit_event import (
    Actor,
    AuditEvent,
    FieldChange,
    changes_as_json,
    changes_from_json,
    event_hash,
    export_head,
    export_line,
)
from keybearer_service.domain.clock import Micros, after
from keybearer_service.storage import Reader
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.audit import AuditLog, ids_change
from samples import fill

EVENTS = 100
KEY = b"audit key of these tests, 32 byt"


class ListedReader:
    """Answers a chain from a list; what the verification asks of a Reader, and nothing else."""

    def __init__(self, events: Sequence[AuditEvent]) -> None:
        self._events = events

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditEvent]:
        ordered = sorted(self._events, key=lambda one: one.seq)
        return [one for one in ordered if one.seq > after_seq][:limit]


@pytest.fixture(scope="module")
def log() -> AuditLog:
    """The log under test."""
    return AuditLog(KEY, SeededEntropy(1))


@pytest.fixture(scope="module")
def chain(log: AuditLog, tmp_path_factory: pytest.TempPathFactory) -> Sequence[AuditEvent]:
    """A chain of a hundred events, written to a real store."""
    store = SqliteStore.create(tmp_path_factory.mktemp("audit") / "store.db")
    fill(store)
    with store.write() as tx:
        for n in range(EVENTS):
            log.append(
                tx,
                time=at(n),
                account_id="account",
                actor=Actor(type=AuditActorType.KEY, key_id=f"k{n}", user_id="u", user_email="e"),
                action=AuditAction.API_KEY_UPDATED,
                target_type=AuditTargetType.API_KEY,
                target_id=f"t{n}",
                changes=[FieldChange("name", f"ü{n}", 'a"b,c')],
                request_id=f"r{n}",
                peer="peer",
            )
    with store.read() as reader:
        events = list(log.events(reader))
    store.close()
    return events


def broken_at(
    log: AuditLog, events: Sequence[AuditEvent], expect: tuple[int, bytes] | None = None
) -> int | None:
    """Verify a chain; answer the first broken event, None when it is whole."""
    reader: Any = ListedReader(events)
    checked: Reader = reader
    report = log.verify(checked, expect)
    assert (report.broken_seq is None) == (report.problem == "")
    if report.broken_seq is not None:
        assert report.events == report.broken_seq - 1
        assert str(report.broken_seq) in report.problem
    return report.broken_seq


def head_of(chain: Sequence[AuditEvent]) -> tuple[int, bytes]:
    """The head that was noted elsewhere."""
    return chain[-1].seq, chain[-1].hash


def test_an_untouched_chain_is_whole(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """With and without the head that was noted elsewhere."""
    assert len(chain) == EVENTS
    assert broken_at(log, chain) is None
    assert broken_at(log, chain, head_of(chain)) is None
    assert broken_at(log, chain, (50, chain[49].hash)) is None


def test_an_empty_chain_is_whole(log: AuditLog) -> None:
    """Nothing happened yet."""
    assert broken_at(log, []) is None
    assert broken_at(log, [], (0, bytes(32))) is None


EDITS: dict[str, Callable[[AuditEvent], AuditEvent]] = {
    "id": lambda one: replace(one, id="other"),
    "time": lambda one: replace(one, time=after(one.time, 1)),
    "account": lambda one: replace(one, account_id="other"),
    "actor type": lambda one: replace(one, actor=replace(one.actor, type=AuditActorType.HOLDER)),
    "actor key": lambda one: replace(one, actor=replace(one.actor, key_id="other")),
    "actor user": lambda one: replace(one, actor=replace(one.actor, user_id="other")),
    "actor address": lambda one: replace(one, actor=replace(one.actor, user_email="other")),
    "action": lambda one: replace(one, action=AuditAction.API_KEY_REVOKED),
    "target type": lambda one: replace(one, target_type=AuditTargetType.USER),
    "target": lambda one: replace(one, target_id="other"),
    "changed field": lambda one: replace(one, changes=(FieldChange("x", "", ""),)),
    "no changes": lambda one: replace(one, changes=()),
    "request": lambda one: replace(one, request_id="other"),
    "peer": lambda one: replace(one, peer="other"),
    "hash": lambda one: replace(one, hash=bytes(32)),
    "shifted text": lambda one: replace(one, request_id=one.request_id + "p", peer="eer"),
}


@pytest.mark.parametrize("name", sorted(EDITS))
def test_an_edit_is_found_at_every_place(
    log: AuditLog, chain: Sequence[AuditEvent], name: str
) -> None:
    """Whatever field of whichever event is altered, that event is the first broken one."""
    for place in range(EVENTS):
        edited = [*chain[:place], EDITS[name](chain[place]), *chain[place + 1 :]]
        assert broken_at(log, edited) == place + 1


def test_a_deletion_is_found_at_every_place(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """A missing event is named; a missing last one needs the head that was noted elsewhere."""
    for place in range(EVENTS):
        rest = [*chain[:place], *chain[place + 1 :]]
        assert broken_at(log, rest, head_of(chain)) == place + 1
        if place + 1 < EVENTS:
            assert broken_at(log, rest) == place + 1


def test_a_deletion_with_renumbering_is_found(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """Closing the gap in the numbers does not help."""
    for place in range(EVENTS - 1):
        rest = [*chain[:place], *(replace(one, seq=one.seq - 1) for one in chain[place + 1 :])]
        assert broken_at(log, rest) == place + 1


def test_an_insertion_is_found_at_every_place(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """An event that was slipped in, the later ones renumbered, is the first broken one."""
    for place in range(EVENTS + 1):
        slipped = replace(chain[0], seq=place + 1, id="slipped")
        later = [replace(one, seq=one.seq + 1) for one in chain[place:]]
        assert broken_at(log, [*chain[:place], slipped, *later]) == place + 1


def test_a_reordering_is_found_at_every_place(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """Two neighbours that changed places break at the first of them."""
    for place in range(EVENTS - 1):
        first, second = chain[place], chain[place + 1]
        swapped = [
            *chain[:place],
            replace(second, seq=first.seq),
            replace(first, seq=second.seq),
            *chain[place + 2 :],
        ]
        assert broken_at(log, swapped) == place + 1


def test_a_truncation_is_found_at_every_place(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """With the head noted elsewhere, the first event that was cut off is named."""
    for length in range(EVENTS):
        assert broken_at(log, chain[:length], head_of(chain)) == length + 1


def test_a_chain_that_was_written_anew_is_found(log: AuditLog, chain: Sequence[AuditEvent]) -> None:
    """Another chain of the same length, whole in itself, is not the one that was noted."""
    other = list(_rechained(chain, KEY))
    assert broken_at(log, other) is None
    assert broken_at(log, other, head_of(chain)) == EVENTS


def _rechained(chain: Sequence[AuditEvent], key: bytes) -> Iterator[AuditEvent]:
    previous = bytes(32)
    for one in chain:
        altered = replace(one, peer="somebody else")
        previous = event_hash(key, previous, altered)
        yield replace(altered, hash=previous)


def test_without_the_audit_key_nothing_can_be_forged(
    log: AuditLog, chain: Sequence[AuditEvent]
) -> None:
    """A chain made with another key is broken from its first event on."""
    assert broken_at(log, list(_rechained(chain, b"x" * 32))) == 1


def test_the_hash_is_the_documented_one(chain: Sequence[AuditEvent]) -> None:
    """Worked out here from the documentation alone, so that others can check an export."""
    first = chain[0]
    fields = [
        "1",
        first.id,
        str(START),
        "account",
        "1",
        "k0",
        "u",
        "e",
        "13",
        "4",
        "t0",
        '[["name","\\u00fc0","a\\"b,c"]]',
        "r0",
        "peer",
    ]
    message = bytes(32) + b"".join(
        len(one.encode()).to_bytes(4, "big") + one.encode() for one in fields
    )
    assert hmac.new(KEY, message, hashlib.sha256).digest() == first.hash


FIXED = AuditEvent(
    id="EventId000000000",
    seq=2,
    time=Micros(1_790_000_000_123_456),
    account_id="Account000000000",
    actor=Actor(
        type=AuditActorType.KEY,
        key_id="KeyId00000000000",
        user_id="UserId0000000000",
        user_email="admin@example.com",
    ),
    action=AuditAction.API_KEY_UPDATED,
    target_type=AuditTargetType.API_KEY,
    target_id="Target0000000000",
    changes=(
        FieldChange("name", 'ü"\\ \u2028\x00<é>', "\U0001d11e , : b"),
        FieldChange("labels", "", "a=b"),
    ),
    request_id="123e4567-e89b-42d3-a456-426614174000",
    peer="192.0.2.1",
    hash=bytes.fromhex("a94d4201e62114dc9cf8ca2e56bc2c8b2fcd577f90268dbba18447b0d34aab36"),
)
"""An event as a log of the first version holds it."""
FIXED_KEY = b"an audit key of thirty-two bytes"
FIXED_CHANGES = (
    r'[["name","\u00fc\"\\ \u2028\u0000<\u00e9>","\ud834\udd1e , : b"],["labels","","a=b"]]'
)
FIXED_LINE = (
    r'{"seq": 2, "id": "EventId000000000", "time_us": 1790000000123456, "account_id": '
    r'"Account000000000", "actor": {"type": "KEY", "key_id": "KeyId00000000000", "user_id": '
    r'"UserId0000000000", "user_email": "admin@example.com"}, "action": "API_KEY_UPDATED", '
    r'"target": {"type": "API_KEY", "id": "Target0000000000"}, "changes": [{"field": "name", '
    r'"before": "\u00fc\"\\ \u2028\u0000<\u00e9>", "after": "\ud834\udd1e , : b"}, {"field": '
    r'"labels", "before": "", "after": "a=b"}], "request_id": '
    r'"123e4567-e89b-42d3-a456-426614174000", "peer": "192.0.2.1", "hash": '
    r'"a94d4201e62114dc9cf8ca2e56bc2c8b2fcd577f90268dbba18447b0d34aab36"}'
)


def test_the_hash_of_an_event_never_changes() -> None:
    """A log that an older version wrote still verifies, byte for byte."""
    assert event_hash(FIXED_KEY, bytes(range(32)), FIXED) == FIXED.hash
    assert event_hash(FIXED_KEY, bytes(32), replace(FIXED, changes=())).hex() == (
        "d6f33a2110820f2ce7a4d1229f47c18943ee8010a20da57a527799ad9d70bf05"
    )


def test_the_stored_json_of_changes_never_changes() -> None:
    """It is hashed as it is stored, and is read back as it was."""
    assert changes_as_json(FIXED.changes) == FIXED_CHANGES
    assert changes_from_json(FIXED_CHANGES) == FIXED.changes
    assert changes_as_json(()) == "[]"


def test_the_lines_of_an_export_never_change() -> None:
    """Programs that read an export find every field under the name it always had."""
    assert export_line(FIXED) == FIXED_LINE
    assert export_head(2, FIXED.hash) == (
        '{"head": {"seq": 2, "hash": '
        '"a94d4201e62114dc9cf8ca2e56bc2c8b2fcd577f90268dbba18447b0d34aab36"}}'
    )


@pytest.mark.parametrize(("count", "listed"), [(0, 0), (1, 1), (1000, 1000), (1001, 0)])
def test_a_cascade_lists_up_to_a_thousand_ids(count: int, listed: int) -> None:
    """Beyond, the count alone, which is always there."""
    ids = [f"id{n}" for n in range(count)]
    changes = {one.field: one.after for one in ids_change("revoked", ids, count)}
    assert changes["revoked_count"] == str(count)
    assert len([one for one in changes.get("revoked", "").split(",") if one]) == listed


class ShortPages:
    """A reader that returns at most seven events of the chain at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditEvent]:
        return self._reader.audit_chain(after_seq, min(limit, 7))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def test_the_chain_is_read_in_batches(tmp_path: Path) -> None:
    """However long it is, it is checked whole."""
    log = AuditLog(KEY, SeededEntropy(2))
    store = SqliteStore.create(tmp_path / "store.db")
    fill(store)
    for n in (6, 1, 7):
        with store.write() as tx:
            for _ in range(n):
                log.append(
                    tx,
                    time=START,
                    account_id="a",
                    actor=Actor(type=AuditActorType.LOCAL_COMMAND),
                    action=AuditAction.PEPPER_ADDED,
                    target_type=AuditTargetType.INSTALLATION,
                    target_id="t",
                )
    with store.read() as reader:
        report = log.verify(cast("Reader", ShortPages(reader)))
    store.close()
    assert (report.events, report.head_seq) == (14, 14)
