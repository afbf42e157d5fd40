"""The audit chain: every tampering is found, and the first broken event is named."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import START, SeededEntropy, at
from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.audit_digests import AuditDigests
from keybearer_service.domain.audit_event import (
    ERASED,
    MISSING,
    Actor,
    AuditRecord,
    FieldChange,
    PersonalText,
    changes_as_json,
    event_from_record,
    event_hash,
    export_head,
    export_line,
)
from keybearer_service.domain.clock import Micros, after
from keybearer_service.offline.verification import CHAIN_BATCH, ChainVerifier
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.audit import AuditEntry, AuditLog, ids_change
from samples import fill, sample_id

EVENTS = 100
KEY = b"audit key of these tests, 32 byt"


class ListedStore:
    """Answers a chain from a list; what the verification asks of a store, and nothing else."""

    def __init__(self, events: Sequence[AuditRecord], texts: dict[bytes, PersonalText]) -> None:
        self._events = events
        self._texts = texts

    @contextmanager
    def read(self) -> Iterator["ListedStore"]:
        yield self

    def audit_head(self) -> tuple[int, bytes]:
        last = max(self._events, key=lambda one: one.seq, default=None)
        return (0, bytes(32)) if last is None else (last.seq, last.hash)

    def audit_base(self) -> None:
        return None

    def personal_texts(self, digests: Sequence[bytes]) -> dict[bytes, PersonalText]:
        return {one: self._texts[one] for one in digests if one in self._texts}

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditRecord]:
        ordered = sorted(self._events, key=lambda one: one.seq)
        return [one for one in ordered if one.seq > after_seq][:limit]


TEXTS: dict[bytes, PersonalText] = {}
"""The personal texts of the chain."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Sequence[AuditRecord]:
    """A chain of a hundred events, written to a real store."""
    log = AuditLog(KEY, SeededEntropy(1))
    store = SqliteStore.create(tmp_path_factory.mktemp("audit") / "store.db")
    fill(store)
    with store.write() as tx:
        for n in range(EVENTS):
            entry = AuditEntry(
                time=at(n),
                account_id="account",
                actor=Actor(type=AuditActorType.KEY, key_id=f"k{n}", user_id="u", user_email="e"),
                action=AuditAction.API_KEY_UPDATED,
                target_type=AuditTargetType.API_KEY,
                target_id=sample_id("key"),
                changes=[FieldChange("name", f"ü{n}", 'a"b,c')],
                request_id=f"r{n}",
                peer="peer",
            )
            log.write(tx, [entry])
    with store.read() as reader:
        records = list(reader.audit_chain(0, EVENTS))
        TEXTS.update(reader.personal_texts([one.personal_digest or b"" for one in records]))
    store.close()
    return records


def broken_at(
    events: Sequence[AuditRecord],
    expect: tuple[int, bytes] | None = None,
    texts: dict[bytes, PersonalText] | None = None,
    key: bytes = KEY,
) -> int | None:
    """Verify a chain; answer the first broken event, None when it is whole."""
    store: Any = ListedStore(events, TEXTS if texts is None else texts)
    report = ChainVerifier(key).verify(store, expect)
    assert (report.broken_seq is None) == (report.problem == "")
    if report.broken_seq is not None:
        assert report.events == report.broken_seq - 1
        assert str(report.broken_seq) in report.problem
    return report.broken_seq


def head_of(chain: Sequence[AuditRecord]) -> tuple[int, bytes]:
    """The head that was noted elsewhere."""
    return chain[-1].seq, chain[-1].hash


def test_an_untouched_chain_is_whole(chain: Sequence[AuditRecord]) -> None:
    """With and without the head that was noted elsewhere."""
    assert len(chain) == EVENTS
    assert broken_at(chain) is None
    assert broken_at(chain, head_of(chain)) is None
    assert broken_at(chain, (50, chain[49].hash)) is None


def test_an_empty_chain_is_whole() -> None:
    """Nothing happened yet."""
    assert broken_at([]) is None
    assert broken_at([], (0, bytes(32))) is None


EDITS: dict[str, Callable[[AuditRecord], AuditRecord]] = {
    "id": lambda one: one._replace(id="other"),
    "time": lambda one: one._replace(time=after(one.time, 1)),
    "account": lambda one: one._replace(account_id="other"),
    "actor type": lambda one: one._replace(actor_type=int(AuditActorType.HOLDER)),
    "actor key": lambda one: one._replace(actor_key_id="other"),
    "actor user": lambda one: one._replace(actor_user_id="other"),
    "actor address": lambda one: one._replace(actor_user_email="other"),
    "action": lambda one: one._replace(action=int(AuditAction.API_KEY_REVOKED)),
    "target type": lambda one: one._replace(target_type=int(AuditTargetType.USER)),
    "target": lambda one: one._replace(target_id="other"),
    "changed field": lambda one: one._replace(changes='[["x","",""]]'),
    "no changes": lambda one: one._replace(changes="[]"),
    "another text of the same changes": lambda one: one._replace(changes=one.changes + " "),
    "request": lambda one: one._replace(request_id="other"),
    "peer": lambda one: one._replace(peer="other"),
    "digest of the row": lambda one: one._replace(target_digest=bytes(32)),
    "digest of texts": lambda one: one._replace(personal_digest=bytes(32)),
    "no digest of the row": lambda one: one._replace(target_digest=None),
    "no digest of texts": lambda one: one._replace(personal_digest=None),
    "form of the first version": lambda one: one._replace(target_digest=None, personal_digest=None),
    "session": lambda one: one._replace(actor_session_id="other"),
    "no session": lambda one: one._replace(
        actor_session_id="" if one.actor_session_id else "planted"
    ),
    "hash": lambda one: one._replace(hash=bytes(32)),
    "shifted text": lambda one: one._replace(request_id=one.request_id + "p", peer="eer"),
}


@pytest.mark.parametrize("name", sorted(EDITS))
def test_an_edit_is_found_at_every_place(chain: Sequence[AuditRecord], name: str) -> None:
    """Whatever field of whichever event is altered, that event is the first broken one."""
    for place in range(EVENTS):
        edited = [*chain[:place], EDITS[name](chain[place]), *chain[place + 1 :]]
        assert broken_at(edited) == place + 1


def test_a_deletion_is_found_at_every_place(chain: Sequence[AuditRecord]) -> None:
    """A missing event is named; a missing last one needs the head that was noted elsewhere."""
    for place in range(EVENTS):
        rest = [*chain[:place], *chain[place + 1 :]]
        assert broken_at(rest, head_of(chain)) == place + 1
        if place + 1 < EVENTS:
            assert broken_at(rest) == place + 1


def test_a_deletion_with_renumbering_is_found(chain: Sequence[AuditRecord]) -> None:
    """Closing the gap in the numbers does not help."""
    for place in range(EVENTS - 1):
        rest = [*chain[:place], *(one._replace(seq=one.seq - 1) for one in chain[place + 1 :])]
        assert broken_at(rest) == place + 1


def test_an_insertion_is_found_at_every_place(chain: Sequence[AuditRecord]) -> None:
    """An event that was slipped in, the later ones renumbered, is the first broken one."""
    for place in range(EVENTS + 1):
        slipped = chain[0]._replace(seq=place + 1, id="slipped")
        later = [one._replace(seq=one.seq + 1) for one in chain[place:]]
        assert broken_at([*chain[:place], slipped, *later]) == place + 1


def test_a_reordering_is_found_at_every_place(chain: Sequence[AuditRecord]) -> None:
    """Two neighbours that changed places break at the first of them."""
    for place in range(EVENTS - 1):
        first, second = chain[place], chain[place + 1]
        swapped = [
            *chain[:place],
            second._replace(seq=first.seq),
            first._replace(seq=second.seq),
            *chain[place + 2 :],
        ]
        assert broken_at(swapped) == place + 1


def test_a_truncation_is_found_at_every_place(chain: Sequence[AuditRecord]) -> None:
    """With the head noted elsewhere, the first event that was cut off is named."""
    for length in range(EVENTS):
        assert broken_at(chain[:length], head_of(chain)) == length + 1


def test_a_chain_that_was_written_anew_is_found(chain: Sequence[AuditRecord]) -> None:
    """Another chain of the same length, whole in itself, is not the one that was noted."""
    other = list(_rechained(chain, KEY))
    assert broken_at(other) is None
    assert broken_at(other, head_of(chain)) == EVENTS


def _rechained(chain: Sequence[AuditRecord], key: bytes) -> Iterator[AuditRecord]:
    previous = bytes(32)
    for one in chain:
        altered = one._replace(peer="somebody else")
        previous = event_hash(key, previous, altered)
        yield altered._replace(hash=previous)


def test_without_the_audit_key_nothing_can_be_forged(chain: Sequence[AuditRecord]) -> None:
    """A chain made with another key is broken from its first event on."""
    assert broken_at(list(_rechained(chain, b"x" * 32))) == 1


def test_the_hash_is_the_documented_one(chain: Sequence[AuditRecord]) -> None:
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
        "",
        "13",
        "4",
        sample_id("key"),
        '[["name","\\u00fc0","a\\"b,c"]]',
        "r0",
        "peer",
    ]
    message = bytes(32) + b"".join(
        len(one).to_bytes(4, "big") + one
        for one in (
            *(field.encode() for field in fields),
            first.target_digest or b"",
            first.personal_digest or b"",
        )
    )
    assert len(first.target_digest or b"") == len(first.personal_digest or b"") == 32
    assert hmac.new(KEY, message, hashlib.sha256).digest() == first.hash


FIXED = AuditRecord(
    id="EventId000000000",
    seq=2,
    time=Micros(1_790_000_000_123_456),
    account_id="Account000000000",
    actor_type=1,
    actor_key_id="KeyId00000000000",
    actor_user_id="UserId0000000000",
    actor_user_email="admin@example.com",
    action=13,
    target_type=4,
    target_id="Target0000000000",
    changes=(
        r'[["name","\u00fc\"\\ \u2028\u0000<\u00e9>","\ud834\udd1e , : b"],["labels","","a=b"]]'
    ),
    request_id="123e4567-e89b-42d3-a456-426614174000",
    peer="192.0.2.1",
    target_digest=None,
    personal_digest=None,
    hash=bytes.fromhex("a94d4201e62114dc9cf8ca2e56bc2c8b2fcd577f90268dbba18447b0d34aab36"),
)
"""An event as a log of the first version holds it."""
FIXED_CHANGES = (
    FieldChange("name", 'ü"\\ \u2028\x00<é>', "\U0001d11e , : b"),
    FieldChange("labels", "", "a=b"),
)
FIXED_KEY = b"an audit key of thirty-two bytes"
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


SECOND = FIXED._replace(
    actor_user_email="",
    action=10,
    target_type=3,
    changes='[["display_name",null,null],["role","ADMIN","DEVELOPER"]]',
    target_digest=bytes(range(32, 64)),
    personal_digest=bytes(range(96)),
    hash=bytes.fromhex("662237a68cc741cfe0ef985fd8d89b4f7fe10c133290b7a7b2b8c5544b284993"),
)
"""An event as a log of the second version holds it, of three personal texts."""
SECOND_TEXTS = {
    text.digest: text
    for text in (
        PersonalText(bytes(range(32)), "UserId0000000000", b"s" * 16, "admin@example.com"),
        PersonalText(bytes(range(32, 64)), "Target0000000000", b"t" * 16, "Old Name"),
        PersonalText(bytes(range(64, 96)), "Target0000000000", None, None, b"erased by whom"),
    )
}
SECOND_LINE = (
    r'{"seq": 2, "id": "EventId000000000", "time_us": 1790000000123456, "account_id": "Account0000'
    r'00000", "actor": {"type": "KEY", "key_id": "KeyId00000000000", "user_id": "UserId0000000000"'
    r', "user_email": "admin@example.com"}, "action": "USER_UPDATED", "target": {"type": "USER", "'
    r'id": "Target0000000000"}, "changes": [{"field": "display_name", "before": "Old Name", "after'
    r'": "erased", "user_id": "Target0000000000"}, {"field": "role", "before": "ADMIN", "after": "'
    r'DEVELOPER"}], "request_id": "123e4567-e89b-42d3-a456-426614174000", "peer": "192.0.2.1", "ta'
    r'rget_digest": "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f", "personal_'
    r'digest": "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728'
    r"292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f50515253545556"
    r'5758595a5b5c5d5e5f", "salts": ["73737373737373737373737373737373", "747474747474747474747474'
    r'74747474", null], "hash": "662237a68cc741cfe0ef985fd8d89b4f7fe10c133290b7a7b2b8c5544b284993"'
    r"}"
)


def test_the_hash_of_an_event_never_changes() -> None:
    """A log that an older version wrote still verifies, byte for byte."""
    assert event_hash(FIXED_KEY, bytes(range(32)), FIXED) == FIXED.hash
    assert event_hash(FIXED_KEY, bytes(32), FIXED._replace(changes="[]")).hex() == (
        "d6f33a2110820f2ce7a4d1229f47c18943ee8010a20da57a527799ad9d70bf05"
    )
    assert event_hash(FIXED_KEY, bytes(range(32)), SECOND) == SECOND.hash


def test_the_stored_json_of_changes_never_changes() -> None:
    """It is hashed as it is stored, and is read back as it was."""
    assert changes_as_json(FIXED_CHANGES) == FIXED.changes
    assert event_from_record(FIXED, {}).changes == FIXED_CHANGES
    assert changes_as_json(()) == "[]"


def test_personal_texts_stand_apart_from_an_event() -> None:
    """The stored changes hold null for them, and reading finds each under its digest."""
    event = event_from_record(SECOND, SECOND_TEXTS)
    assert event.actor.user_email == "admin@example.com"
    assert event.changes == (
        FieldChange("display_name", "Old Name", ERASED, "Target0000000000"),
        FieldChange("role", "ADMIN", "DEVELOPER"),
    )
    assert changes_as_json(event.changes) == SECOND.changes


def test_a_personal_text_that_is_not_there_is_shown_as_missing() -> None:
    """Reading goes on; `check` names the event."""
    event = event_from_record(SECOND, {})
    assert event.actor.user_email == MISSING
    assert event.changes[0].before == MISSING


def test_the_lines_of_an_export_never_change() -> None:
    """Programs that read an export find every field under the name it always had."""
    assert export_line(event_from_record(FIXED, {})) == FIXED_LINE
    assert export_line(event_from_record(SECOND, SECOND_TEXTS)) == SECOND_LINE
    assert export_head(2, FIXED.hash) == (
        '{"head": {"seq": 2, "hash": '
        '"a94d4201e62114dc9cf8ca2e56bc2c8b2fcd577f90268dbba18447b0d34aab36"}}'
    )


def test_an_event_in_the_older_form_is_found_behind_newer_ones() -> None:
    """Older events at the beginning verify; one that an older program added later does not."""
    old = FIXED._replace(seq=1)
    old = old._replace(hash=event_hash(FIXED_KEY, bytes(32), old))
    new = SECOND._replace(seq=2, personal_digest=b"", changes="[]")
    new = new._replace(hash=event_hash(FIXED_KEY, old.hash, new))
    late = old._replace(seq=3)
    late = late._replace(hash=event_hash(FIXED_KEY, new.hash, late))
    assert broken_at([old, new], key=FIXED_KEY) is None
    assert broken_at([old, new, late], key=FIXED_KEY) == 3


def test_a_personal_text_that_was_altered_is_found(chain: Sequence[AuditRecord]) -> None:
    """Another text, another user, a missing row, and one that was erased past keybearer."""
    [(digest, text)] = TEXTS.items()
    forged = {
        "text": text._replace(text="other"),
        "user": text._replace(user_id="other"),
        "salt": text._replace(salt=bytes(16)),
        "erased": text._replace(salt=None, text=None),
        "wrong proof": text._replace(salt=None, text=None, erasure=bytes(32)),
    }
    for one in forged.values():
        assert broken_at(chain, texts={digest: one}) == 1
    assert broken_at(chain, texts={}) == 1


def test_erased_texts_are_counted(chain: Sequence[AuditRecord]) -> None:
    """The chain is whole without them."""
    [(digest, text)] = TEXTS.items()
    proof = AuditDigests(KEY).erasure(digest, text.user_id)
    erased = text._replace(salt=None, text=None, erasure=proof)
    store: Any = ListedStore(chain, {digest: erased})
    report = ChainVerifier(KEY).verify(store)
    assert (report.events, report.erased, report.problem) == (EVENTS, EVENTS, "")


@pytest.mark.parametrize(("count", "listed"), [(0, 0), (1, 1), (1000, 1000), (1001, 0)])
def test_a_cascade_lists_up_to_a_thousand_ids(count: int, listed: int) -> None:
    """Beyond, the count alone, which is always there."""
    ids = [f"id{n}" for n in range(count)]
    changes = {one.field: one.after for one in ids_change("revoked", ids)}
    assert changes["revoked_count"] == str(count)
    assert len([one for one in changes.get("revoked", "").split(",") if one]) == listed


def test_the_chain_is_read_in_parts(tmp_path: Path) -> None:
    """However long it is, it is checked whole, and no part is read together with another."""
    log = AuditLog(KEY, SeededEntropy(2))
    store = SqliteStore.create(tmp_path / "store.db")
    fill(store)
    entry = AuditEntry(
        time=START,
        account_id="a",
        actor=Actor(type=AuditActorType.LOCAL_COMMAND),
        action=AuditAction.PEPPER_ADDED,
        target_type=AuditTargetType.METHOD,
        target_id="t",
    )
    events = CHAIN_BATCH + 7
    with store.write() as tx:
        log.write(tx, [entry] * events)
    told: list[tuple[int, int]] = []
    report = ChainVerifier(KEY).verify(
        store, progress=lambda _, done, total: told.append((done, total))
    )
    store.close()
    assert (report.events, report.head_seq) == (events, events)
    assert told == [(CHAIN_BATCH, events), (events, events)]
