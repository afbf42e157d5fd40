"""A test for every "must" of `keybearer_service.storage`; every backend runs them all."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from backends import Backend, Dump
from fakes import START, at
from keybearer._wire.enums import (
    ApiKeyState,
    AuditAction,
    AuditActorType,
    AuditTargetType,
    RevocationReason,
    UserType,
    members_of,
)
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import AuditBase, BaseRow, Head, Subject
from keybearer_service.domain.audit_event import ERASED, PersonalText
from keybearer_service.domain.clock import DAY, HOUR, MINUTE, SECOND, Micros
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Pepper,
    RequestRecord,
    SecretId,
    SubjectKind,
    Use,
    User,
)
from keybearer_service.domain.session import Session
from keybearer_service.storage import (
    NEVER,
    UNUSED,
    AccountQuery,
    AuditQuery,
    EmailConflictError,
    Found,
    KeyQuery,
    News,
    Page,
    ReadAbandonedError,
    Reader,
    SortKey,
    Store,
    StoreClosedError,
    StoreConflictError,
    StoreLockedError,
    StoreUnusableError,
    UserQuery,
    Writer,
)
from samples import (
    EVERYWHERE,
    PEPPER,
    Filling,
    add_keys,
    fill,
    sample_account,
    sample_event,
    sample_id,
    sample_identity,
    sample_installation,
    sample_invitation,
    sample_key,
    sample_secret,
    sample_session,
    sample_user,
)

T = TypeVar("T")
ACCT = sample_id("acct")
OWN = AccountScope(ACCT)
FOREIGN = AccountScope(sample_id("other"))
USER = sample_id("user")
KEY = sample_id("key")
ALL = Page(limit=1000)
USAGE_COLUMNS = {"last_used_time", "use_count", "secret_used", "old_secret_last_used_time"}


def read_key(store: Store, key_id: str = KEY) -> ApiKey:
    """Read a key that is there."""
    with store.read() as reader:
        key = reader.api_key(EVERYWHERE, key_id)
    assert key is not None
    return key


def keys_query(**changes: Any) -> KeyQuery:
    """Ask for all keys of the one account."""
    return replace(KeyQuery(scope=OWN, now=START), **changes)


def listed(store: Store, query: KeyQuery) -> list[str]:
    """Return the names of the keys that meet a query."""
    with store.read() as reader:
        return [key.name for key in reader.list_api_keys(query, ALL).items]


def changed_columns(before: Dump, after: Dump) -> dict[str, set[str]]:
    """Return the columns that differ, by table; the number of rows must be the same.

    The counts of keys follow from the other tables, and are left out.
    """
    found: dict[str, set[str]] = {}
    assert before.keys() == after.keys()
    for table, rows in before.items():
        assert len(rows) == len(after[table]), table
        columns = {
            column
            for old, new in zip(rows, after[table], strict=True)
            for column in old
            if old[column] != new[column]
        }
        if columns and table != "key_counts":
            found[table] = columns
    return found


# --- reading: unknown ids and what is there -------------------------------------------------------


def test_an_empty_store_has_no_installation(store: Store) -> None:
    """`installation` refuses a database that was never initialised."""
    with store.read() as reader, pytest.raises(StoreUnusableError):
        reader.installation()


NEEDS_AN_INSTALLATION: dict[str, Callable[[Store], object]] = {
    "lookup": lambda store: store.lookup(KEY),
    "lookup_many": lambda store: store.lookup_many([]),
    "changes_since": lambda store: store.changes_since(0, 1),
}


@pytest.mark.parametrize("name", sorted(NEEDS_AN_INSTALLATION))
def test_an_empty_store_has_no_revision(store: Store, name: str) -> None:
    """What is read together with the revision is refused as long as there is none."""
    for _ in range(2):
        with pytest.raises(StoreUnusableError):
            NEEDS_AN_INSTALLATION[name](store)


UNKNOWN: dict[str, Callable[[Reader], object]] = {
    "lookup": lambda reader: reader.lookup("nothing"),
    "account": lambda reader: reader.account(EVERYWHERE, "nothing"),
    "user": lambda reader: reader.user(EVERYWHERE, "nothing"),
    "user_by_email": lambda reader: reader.user_by_email(OWN, "nobody@example.com"),
    "api_key": lambda reader: reader.api_key(EVERYWHERE, "nothing"),
    "request_record": lambda reader: reader.request_record(USER, "nothing"),
    "session": lambda reader: reader.session("nothing"),
}


OUT_OF_SCOPE: dict[str, Callable[[Reader], object]] = {
    "account": lambda reader: reader.account(FOREIGN, ACCT),
    "user": lambda reader: reader.user(FOREIGN, USER),
    "user_by_email": lambda reader: reader.user_by_email(FOREIGN, "user@example.com"),
    "api_key": lambda reader: reader.api_key(FOREIGN, KEY),
}


@pytest.mark.parametrize("name", sorted(OUT_OF_SCOPE))
def test_what_is_out_of_scope_is_none(store: Store, filled: Filling, name: str) -> None:
    """A thing of an account that the scope does not cover is read as if it did not exist."""
    assert filled.user.email == "user@example.com"
    with store.read() as reader:
        assert OUT_OF_SCOPE[name](reader) is None


def test_lists_and_counts_keep_to_their_scope(store: Store, filled: Filling) -> None:
    """Lists of another account are empty, those of every account hold everything."""
    with store.write() as tx:
        tx.append_audit(sample_event(1))
    found = {}
    for scope in (OWN, FOREIGN, EVERYWHERE):
        with store.read() as reader:
            found[scope] = (
                len(reader.list_accounts(AccountQuery(scope=scope), ALL).items),
                len(reader.list_users(UserQuery(scope=scope), ALL).items),
                len(reader.list_api_keys(KeyQuery(scope=scope, now=START), ALL).items),
                len(reader.list_audit_events(AuditQuery(scope=scope), ALL).items),
                reader.live_admins(scope),
            )
    assert found == {OWN: (1,) * 5, FOREIGN: (0,) * 5, EVERYWHERE: (1,) * 5}


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_what_is_unknown_is_none(store: Store, filled: Filling, name: str) -> None:
    """Every reading by id returns None for an unknown one."""
    with store.read() as reader:
        assert UNKNOWN[name](reader) is None


def test_an_unknown_key_has_no_secrets(store: Store, filled: Filling) -> None:
    """`secrets_of` is for keys that exist."""
    with store.read() as reader, pytest.raises(KeyError):
        reader.secrets_of("nothing")


def test_a_key_shows_its_owner_as_the_owner_is_now(store: Store, filled: Filling) -> None:
    """The owner's role is read with the key, not kept with it."""
    with store.write() as tx:
        tx.update_user(replace(filled.user, role=Role.VALIDATOR))
    assert read_key(store).owner_role is Role.VALIDATOR


def test_the_installation_is_one_row(backend: Backend, filled: Filling) -> None:
    """Writing it again replaces it."""
    changed = sample_installation(epoch="another", retired_prefixes=("old1", "old2"))
    with backend.store.write() as tx:
        tx.put_installation(changed)
    with backend.store.read() as reader:
        assert reader.installation() == changed
    assert len(backend.dump()["installation"]) == 1


def test_what_was_written_is_read(store: Store, filled: Filling) -> None:
    """Accounts, users and keys come back as they went in."""
    with store.read() as reader:
        assert reader.account(EVERYWHERE, ACCT) == filled.account
        assert reader.user(EVERYWHERE, USER) == filled.user
        assert reader.api_key(EVERYWHERE, KEY) == replace(
            filled.key,
            owner_email=filled.user.email,
            owner_role=filled.user.role,
            created_by_email=filled.user.email,
        )
        assert reader.secrets_of(KEY) == (sample_secret(), None)
        assert reader.key_count() == 1


def test_every_field_of_a_key_is_kept(store: Store, filled: Filling) -> None:
    """A key with every field set comes back whole."""
    key = sample_key(
        "full",
        name="näme %_'\"",
        description="text",
        scopes=("a.*", "b:c"),
        labels={"team": "ü", "env": ""},
        expire_time=at(DAY),
        disable_time=at(1),
        revoke_time=at(2),
        revoked_by=USER,
        revocation_reason=RevocationReason.LOST,
        revocation_note="note",
        row_version=7,
        secret_version=3,
    )
    add_keys(store, key)
    assert read_key(store, key.id) == replace(
        key,
        owner_email=filled.user.email,
        owner_role=filled.user.role,
        created_by_email=filled.user.email,
    )


def test_a_deleted_user_is_answered_by_id(store: Store, filled: Filling) -> None:
    """`user` answers deleted ones too."""
    with store.write() as tx:
        tx.update_user(replace(filled.user, delete_time=at(1)))
    with store.read() as reader:
        user = reader.user(EVERYWHERE, USER)
    assert user is not None
    assert user.delete_time == at(1)


def test_a_deleted_user_is_not_found_by_address(store: Store, filled: Filling) -> None:
    """`user_by_email` skips deleted ones, and finds the live one that has the address now."""
    with store.write() as tx:
        tx.update_user(replace(filled.user, delete_time=at(1)))
    with store.read() as reader:
        assert reader.user_by_email(OWN, filled.user.email) is None
    with store.write() as tx:
        tx.insert_user(sample_user("second", email=filled.user.email))
    with store.read() as reader:
        found = reader.user_by_email(OWN, filled.user.email)
    assert found is not None
    assert found.id == sample_id("second")


def test_addresses_are_compared_exactly(store: Store, filled: Filling) -> None:
    """Whoever wants no difference of case folds it before."""
    with store.read() as reader:
        assert reader.user_by_email(OWN, filled.user.email) == filled.user
        assert reader.user_by_email(OWN, filled.user.email.upper()) is None


def test_two_live_users_of_an_account_never_share_an_address(store: Store, filled: Filling) -> None:
    """The store itself refuses the second, whatever a use case believed."""
    with pytest.raises(EmailConflictError), store.write() as tx:
        tx.insert_user(sample_user("second", email=filled.user.email))
    with store.read() as reader:
        assert reader.user(EVERYWHERE, sample_id("second")) is None


def test_a_deleted_user_cannot_come_back_to_an_address_that_is_taken(
    store: Store, filled: Filling
) -> None:
    """The address of a deleted user is free, and stays with whoever took it."""
    with store.write() as tx:
        tx.update_user(replace(filled.user, delete_time=START))
        tx.insert_user(sample_user("second", email=filled.user.email))
    with pytest.raises(EmailConflictError), store.write() as tx:
        tx.update_user(filled.user)


def test_users_of_two_accounts_may_share_an_address(store: Store, filled: Filling) -> None:
    """An address is unique within one account."""
    other = sample_id("other")
    with store.write() as tx:
        tx.insert_account(sample_account("other"))
        tx.insert_user(sample_user("foreign", account_id=other, email=filled.user.email))
    with store.read() as reader:
        assert reader.user_by_email(AccountScope(other), filled.user.email) is not None


def test_ids_are_case_sensitive(store: Store, filled: Filling) -> None:
    """Two ids that differ in case are two things."""
    add_keys(store, sample_key("KEY", name="upper"))
    assert read_key(store, KEY).name == "key"
    assert read_key(store, sample_id("KEY")).name == "upper"
    with store.read() as reader:
        assert reader.lookup(sample_id("Key")) is None
        assert reader.user(EVERYWHERE, sample_id("USER")) is None
        assert reader.account(EVERYWHERE, sample_id("ACCT")) is None


def test_a_request_of_another_user_is_not_known(store: Store, filled: Filling) -> None:
    """Request records belong to one user."""
    record = RequestRecord(
        user_id=USER,
        request_id="r",
        body_hash=b"h",
        attempt=1,
        key_id=KEY,
        secret_version=1,
        create_time=START,
    )
    with store.write() as tx:
        tx.put_request_record(record)
    with store.read() as reader:
        assert reader.request_record(USER, "r") == record
        assert reader.request_record(sample_id("other"), "r") is None


def test_a_request_record_replaces_the_one_before(store: Store, filled: Filling) -> None:
    """A replay overwrites what is remembered of its request."""
    first = RequestRecord(
        user_id=USER,
        request_id="r",
        body_hash=b"h",
        attempt=1,
        key_id=KEY,
        secret_version=1,
        create_time=START,
    )
    second = replace(first, attempt=2, secret_version=2)
    with store.write() as tx:
        tx.put_request_record(first)
        tx.put_request_record(second)
    with store.read() as reader:
        assert reader.request_record(USER, "r") == second


def test_changes_are_in_rising_order_and_after_the_revision(store: Store, filled: Filling) -> None:
    """A watcher reads on from where it was."""
    with store.write() as tx:
        revisions = [
            tx.append_change(kind=SubjectKind.KEY, subject_id=f"k{n}", account_id=ACCT, now=START)
            for n in range(5)
        ]
    assert revisions == [1, 2, 3, 4, 5]
    assert [one.revision for one in store.changes_since(2, 2).changes] == [3, 4]
    news = store.changes_since(0, 100)
    assert [one.subject_id for one in news.changes] == ["k0", "k1", "k2", "k3", "k4"]
    assert news[:3] == ("epoch", 5, 1)
    assert news.changes[0] == (1, START, ACCT, SubjectKind.KEY, "k0")
    assert store.changes_since(5, 100).changes == []
    assert store.changes_since(9, 100) == ("epoch", 5, 1, [])
    assert store.changes_since(0, 0) == ("epoch", 5, 1, [])


def test_the_oldest_change_of_an_empty_table_is_the_next_one(store: Store, filled: Filling) -> None:
    """Without history a watcher can resume from the head alone."""
    news = store.changes_since(0, 100)
    assert tuple(news) == ("epoch", 0, 1, [])
    assert [news.continues(revision) for revision in (-1, 0, 1)] == [False, True, False]


def test_news_tell_which_revisions_can_be_continued(backend: Backend, filled: Filling) -> None:
    """From the one before the oldest change to the head itself."""
    backend.append_changes(5, START)
    backend.execute("DELETE FROM changes WHERE revision <= 2")
    news = backend.store.changes_since(0, 1)
    assert (news.oldest, news.head) == (3, 5)
    assert [one for one in range(8) if news.continues(one)] == [2, 3, 4, 5]


def test_news_are_of_one_snapshot(store: Store, filled: Filling) -> None:
    """While somebody commits, the changes always reach to the head and begin at the oldest."""
    stop = threading.Event()
    torn: list[News] = []

    def look() -> None:
        while not stop.is_set():
            news = store.changes_since(0, 10_000)
            if [one.revision for one in news.changes] != list(range(1, news.head + 1)):
                torn.append(news)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(150):
        with store.write() as tx:
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    stop.set()
    thread.join()
    assert torn == []


def test_the_audit_head_of_an_empty_log_is_zero(store: Store, filled: Filling) -> None:
    """The chain begins at 0 and 32 zero bytes."""
    with store.read() as reader:
        assert reader.audit_head() == (0, bytes(32))


def test_audit_events_come_back_whole_and_in_order(store: Store, filled: Filling) -> None:
    """The chain is read in its order, in batches."""
    events = [sample_event(seq) for seq in range(1, 6)]
    with store.write() as tx:
        for event in events:
            tx.append_audit(event)
    with store.read() as reader:
        assert list(reader.audit_chain(0, 3)) == events[:3]
        assert list(reader.audit_chain(3, 100)) == events[3:]
        assert reader.audit_head() == (5, events[-1].hash)


def test_an_audit_seq_that_exists_is_refused(store: Store, filled: Filling) -> None:
    """No event ever takes another one's place."""
    with store.write() as tx:
        tx.append_audit(sample_event(1))
    second = sample_event(1, id=sample_id("second"))
    with pytest.raises(StoreConflictError), store.write() as tx:
        tx.append_audit(second)
    with store.read() as reader:
        assert list(reader.audit_chain(0, 10)) == [sample_event(1)]


def test_a_personal_text_is_found_by_its_digest_and_by_its_user(
    store: Store, filled: Filling
) -> None:
    """Another user's text, and a text that no event mentions, is not found."""
    text = PersonalText(b"digest", USER, b"salt", "user@example.com")
    with store.write() as tx:
        tx.insert_personal_text(text)
    with store.read() as reader:
        assert reader.personal_texts([b"digest", b"other", b"digest"]) == {b"digest": text}
        assert reader.personal_texts([]) == {}
        assert reader.personal_digest(USER, text.text or "") == b"digest"
        assert reader.personal_digest(USER, "User@example.com") is None
        assert reader.personal_digest(sample_id("other"), text.text or "") is None


def test_erasing_a_personal_text_leaves_its_digest_and_its_user(
    backend: Backend, filled: Filling
) -> None:
    """And touches no other text."""
    store = backend.store
    texts = [PersonalText(one, USER, b"salt", one.decode()) for one in (b"a", b"b")]
    with store.write() as tx:
        for text in texts:
            tx.insert_personal_text(text)
        tx.insert_personal_text(PersonalText(b"c", sample_id("other"), b"salt", "c"))
    before = backend.dump()
    with store.write() as tx:
        tx.erase_personal_text(b"a", b"proof")
    with store.read() as reader:
        found = list(reader.personal_texts_of(USER))
        assert found == [PersonalText(b"a", USER, None, None, b"proof"), texts[1]]
        assert reader.personal_digest(USER, "a") is None
        assert list(reader.personal_texts_of(KEY)) == []
    changed = changed_columns(before, backend.dump())
    assert changed == {"personal_texts": {"salt", "text", "erasure"}}


def test_erasing_a_user_writes_over_the_address_and_the_name(
    backend: Backend, filled: Filling
) -> None:
    """Of this user alone, with a new version of the row."""
    with backend.store.write() as tx:
        tx.insert_user(sample_user("other"))
    before = backend.dump()
    with backend.store.write() as tx:
        tx.erase_user(USER, at(5))
    with backend.store.read() as reader:
        user = reader.user(EVERYWHERE, USER)
        assert user == replace(
            filled.user,
            email=ERASED,
            display_name=ERASED,
            update_time=at(5),
            row_version=filled.user.row_version + 1,
        )
    assert changed_columns(before, backend.dump()) == {
        "users": {"email", "display_name", "update_time", "row_version"}
    }


def test_events_of_the_first_version_with_a_users_texts_are_counted(
    store: Store, filled: Filling
) -> None:
    """About the user, by the user, or with the address; not those that hold digests."""
    old = {"target_digest": None, "personal_digest": None, "target_id": "x"}
    with store.write() as tx:
        tx.append_audit(sample_event(1, **{**old, "target_id": USER}))
        tx.append_audit(sample_event(2, **old, actor_user_id=USER))
        address = f'[["admin_email","","{filled.user.email}"]]'
        tx.append_audit(sample_event(3, **old, changes=address))
        tx.append_audit(sample_event(4, **old))
        tx.append_audit(sample_event(5, target_id=USER))
    with store.read() as reader:
        assert reader.events_with_texts(filled.user) == 3


def test_the_head_is_one_row(store: Store, filled: Filling) -> None:
    """None before the first, then the last one written."""
    with store.read() as reader:
        assert reader.head() is None
    for seq in (1, 2):
        with store.write() as tx:
            tx.put_head(Head(1, seq, b"hash", 7, b"mac"))
    with store.read() as reader:
        assert reader.head() == Head(1, 2, b"hash", 7, b"mac")


LEFT_OUT = {
    "api_keys": {"last_used_time", "use_count", "old_secret_last_used_time", "secret_used"},
    "installation": {"id", "revision"},
    "peppers": {"is_announced"},
}
SUBJECTS = {
    "accounts": Subject(AuditTargetType.ACCOUNT, ACCT),
    "users": Subject(AuditTargetType.USER, USER),
    "api_keys": Subject(AuditTargetType.API_KEY, KEY),
    "installation": Subject(AuditTargetType.INSTALLATION, ACCT),
    "peppers": Subject(AuditTargetType.INSTALLATION, PEPPER),
}


@pytest.mark.parametrize("table", sorted(SUBJECTS))
def test_a_covered_row_holds_every_column_but_those_of_usage(
    backend: Backend, filled: Filling, table: str
) -> None:
    """A column that a later step adds is covered too, or stands among the exceptions here."""
    [row] = backend.dump()[table]
    with backend.store.read() as reader:
        covered = reader.covered_row(SUBJECTS[table])
    assert covered is not None
    assert covered.table == table
    left_out = LEFT_OUT.get(table, set())
    assert covered.columns == {name: row[name] for name in row if name not in left_out}


@pytest.mark.parametrize("table", ["accounts", "users", "api_keys", "peppers"])
def test_covered_rows_come_in_the_order_of_their_ids(
    store: Store, filled: Filling, table: str
) -> None:
    """In parts, each behind the last id of the one before."""
    with store.write() as tx:
        tx.insert_account(sample_account("b"))
        tx.insert_user(sample_user("b"))
        tx.insert_api_key(sample_key("b"), sample_secret())
        tx.insert_pepper(Pepper(id="b", check=b"check", create_time=START))
    with store.read() as reader:
        every = reader.covered_rows(table, "", 10)
        ids = [str(row.columns["id"]) for row in every]
        assert ids == sorted(ids)
        assert [
            *reader.covered_rows(table, "", 1),
            *reader.covered_rows(table, ids[0], 10),
        ] == every
        assert list(reader.covered_rows(table, ids[1], 10)) == []
        subject = Subject(SUBJECTS[table].kind, ids[0])
        assert every[0] == reader.covered_row(subject)


def test_the_last_event_about_a_subject_is_found(store: Store, filled: Filling) -> None:
    """Of its kind alone, and of one action where one is asked for."""
    created, deleted = int(AuditAction.USER_CREATED), int(AuditAction.USER_DELETED)
    kind, other = AuditTargetType.USER, AuditTargetType.INSTALLATION
    about = {"target_id": USER, "target_type": int(kind)}
    with store.write() as tx:
        tx.append_audit(sample_event(1, **about, action=created))
        tx.append_audit(sample_event(2, **about, action=deleted))
        tx.append_audit(sample_event(3, **about, action=created))
        tx.append_audit(sample_event(4, target_id=USER, target_type=int(other)))
    with store.read() as reader:
        found = [
            reader.last_event(Subject(kind, USER)),
            reader.last_event(Subject(other, USER)),
            reader.last_event(Subject(kind, USER), AuditAction.USER_DELETED),
        ]
        assert [None if one is None else one.seq for one in found] == [3, 4, 2]
        assert reader.last_event(Subject(kind, KEY)) is None
        assert reader.last_event(Subject(kind, USER), AuditAction.USER_ERASED) is None


@pytest.mark.parametrize("action", ["ACCOUNT_CREATED", "INSTALLATION_CREATED"])
def test_the_event_that_created_an_account_is_found(
    store: Store, filled: Filling, action: str
) -> None:
    """Whatever happened to the account later."""
    with store.write() as tx:
        tx.append_audit(sample_event(1, target_id=ACCT, action=int(AuditAction[action])))
        tx.append_audit(sample_event(2, target_id=ACCT, action=int(AuditAction.ACCOUNT_DISABLED)))
    with store.read() as reader:
        event = reader.creation_event(ACCT)
        assert event is not None
        assert event.seq == 1
        assert reader.creation_event(USER) is None


def test_targets_without_rows_are_found(store: Store, filled: Filling) -> None:
    """Accounts, users and keys that events of the range are about, each once."""
    kinds = (AuditTargetType.ACCOUNT, AuditTargetType.USER, AuditTargetType.API_KEY)
    with store.write() as tx:
        for seq, kind in enumerate((*kinds, *kinds, AuditTargetType.METHOD), start=1):
            tx.append_audit(sample_event(seq, target_id="gone", target_type=int(kind)))
        tx.append_audit(sample_event(8))
    with store.read() as reader:
        assert set(reader.targets_without_rows(0, 8)) == {Subject(one, "gone") for one in kinds}
        assert len(reader.targets_without_rows(0, 8)) == len(kinds)
        assert list(reader.targets_without_rows(0, 1)) == [Subject(kinds[0], "gone")]
        assert list(reader.targets_without_rows(6, 8)) == []


def test_no_row_is_covered_where_there_is_none(store: Store, filled: Filling) -> None:
    """An unknown id, and what has no row at all."""
    with store.read() as reader:
        for kind in AuditTargetType:
            assert reader.covered_row(Subject(kind, "unknown")) is None


def test_live_admins_leaves_out_the_deleted_the_lower_and_the_foreign(
    store: Store, filled: Filling
) -> None:
    """Only undeleted ADMINs of the account count."""
    with store.write() as tx:
        tx.insert_account(sample_account("other"))
        tx.insert_user(sample_user("dev", role=Role.DEVELOPER))
        tx.insert_user(sample_user("gone", delete_time=START))
        tx.insert_user(sample_user("foreign", account_id=sample_id("other")))
        tx.insert_user(sample_user("second"))
    with store.read() as reader:
        assert reader.live_admins(OWN) == 2


def test_unrevoked_keys_are_counted_by_owner_and_by_creator(store: Store, filled: Filling) -> None:
    """The plan of a deletion: what a user owns, and what the user made for others."""
    with store.write() as tx:
        tx.insert_user(sample_user("other"))
    other = sample_id("other")
    add_keys(
        store,
        sample_key("own2"),
        sample_key("dead", revoke_time=START),
        sample_key("made", owner_id=other),
        sample_key("mine", owner_id=other, created_by=other),
    )
    with store.read() as reader:
        owned = reader.unrevoked_keys(owner_id=USER, limit=10)
        made = reader.unrevoked_keys(created_by=USER, not_owner_id=USER, limit=10)
        limited = reader.unrevoked_keys(owner_id=USER, limit=1)
    assert set(owned.ids) == {KEY, sample_id("own2")}
    assert made.ids == (sample_id("made"),)
    assert (limited.count, len(limited.ids)) == (2, 1)


def test_an_account_knows_how_many_keys_and_users_it_has(store: Store, filled: Filling) -> None:
    """Unrevoked keys and live users, whichever way they come, go and come back."""
    other = sample_account("other")
    guest = sample_user("guest", account_id=other.id)
    sizes: list[list[tuple[int, int]]] = []

    def counts(reader: Reader, account_id: str) -> tuple[int, int]:
        return reader.unrevoked_key_count(account_id), reader.live_user_count(account_id)

    def look() -> None:
        with store.read() as reader:
            sizes.append([counts(reader, one) for one in (ACCT, other.id)])

    with store.write() as tx:
        tx.insert_account(other)
        tx.insert_user(guest)
        for name, owner in (("b", USER), ("c", USER), ("d", guest.id)):
            account_id = ACCT if owner == USER else other.id
            key = sample_key(name, owner_id=owner, account_id=account_id, expire_time=START)
            tx.insert_api_key(key, sample_secret())
        tx.insert_api_key(sample_key("dead", revoke_time=START), sample_secret())
        assert counts(tx, ACCT) == (3, 1)
    look()
    with store.write() as tx:
        tx.update_api_key(replace(filled.key, name="renamed"))
        tx.update_api_key(sample_key("b", revoke_time=START))
        tx.update_user(replace(guest, delete_time=START))
    store.add_uses([Use(KEY, 1, START, 1)])
    look()
    with store.write() as tx:
        for created_by in (USER, guest.id):
            tx.revoke_keys(
                created_by=created_by,
                reason=RevocationReason.CREATOR_DELETED,
                revoked_by="",
                now=START,
            )
        tx.update_user(guest)
    look()
    assert sizes == [[(3, 1), (1, 1)], [(2, 1), (1, 0)], [(0, 1), (0, 1)]]
    with store.read() as reader:
        assert counts(reader, "unknown") == (0, 0)
    assert list(store.check()) == []


def test_peppers_are_newest_first_with_their_live_secrets(store: Store, filled: Filling) -> None:
    """A pepper is needed by what can still open a key: old secrets of a rotation, disabled keys."""
    with store.write() as tx:
        tx.insert_pepper(Pepper(id="pepper02", check=b"c2", create_time=START))
        for name, changes in {
            "dead": {"revoke_time": START},
            "expired": {"expire_time": START},
            "expiring": {"expire_time": at(1)},
            "disabled": {"disable_time": START},
        }.items():
            tx.insert_api_key(sample_key(name, **changes), sample_secret())
        rotated = replace(filled.key, secret_version=2, overlap_end_time=at(DAY))
        tx.replace_secret(rotated, sample_secret(2)._replace(pepper_id="pepper02"), sample_secret())
    with store.read() as reader:
        ids = [one.id for one in reader.peppers()]
        needed = [[reader.live_secrets(one, now) for one in ids] for now in (START, at(1), at(DAY))]
        assert ids == ["pepper02", PEPPER]
        assert needed == [[1, 3], [1, 2], [1, 1]]
        assert reader.live_secrets("unknown", START) == 0


def test_a_retired_pepper_says_since_when(store: Store, filled: Filling) -> None:
    """Retiring marks, it does not remove."""
    with store.write() as tx:
        tx.retire_pepper(PEPPER, at(5))
    with store.read() as reader:
        assert [one.retire_time for one in reader.peppers()] == [at(5)]


# --- lists ----------------------------------------------------------------------------------------


def test_a_list_of_users_holds_one_account(store: Store, filled: Filling) -> None:
    """Users of other accounts are not in it."""
    with store.write() as tx:
        tx.insert_account(sample_account("other"))
        tx.insert_user(sample_user("foreign", account_id=sample_id("other")))
    with store.read() as reader:
        assert [one.id for one in reader.list_users(UserQuery(scope=OWN), ALL).items] == [USER]


def test_a_list_of_keys_holds_one_account(store: Store, filled: Filling) -> None:
    """Keys of other accounts are not in it."""
    other = sample_id("other")
    with store.write() as tx:
        tx.insert_account(sample_account("other"))
        tx.insert_user(sample_user("foreign", account_id=other))
    add_keys(
        store,
        sample_key("far", account_id=other, owner_id=sample_id("foreign")),
    )
    assert listed(store, keys_query()) == ["key"]
    assert listed(store, keys_query(scope=AccountScope(other))) == ["far"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("%", ["a%b"]),
        ("_", ["a_b"]),
        ("a%", ["a%b"]),
        ("A_B", ["a_b"]),
        ("\\", ["a\\b"]),
        ("", ["a%b", "a\\b", "a_b", "axb", "key"]),
    ],
)
def test_percent_and_underscore_in_names_are_literal(
    store: Store, filled: Filling, wanted: str, found: list[str]
) -> None:
    """What looks like a pattern is text, and case does not matter for ASCII."""
    add_keys(store, *(sample_key(f"k{n}", name=f"a{c}b") for n, c in enumerate("%_x\\")))
    query = keys_query(name_contains=wanted, order_by="name", descending=False)
    assert listed(store, query) == found


def test_names_are_compared_without_case_for_ascii_alone(store: Store, filled: Filling) -> None:
    """`Ä` and `ä` differ, `A` and `a` do not; of accounts and addresses too."""
    add_keys(store, sample_key("k1", name="STRÄSSE"))
    with store.write() as tx:
        tx.insert_account(sample_account("street", name="STRÄSSE"))
        tx.insert_user(sample_user("street", email="STRÄSSE@example.com"))

    def found(part: str) -> list[list[str]]:
        with store.read() as reader:
            accounts = reader.list_accounts(
                AccountQuery(scope=EVERYWHERE, name_contains=part), ALL
            ).items
            users = reader.list_users(UserQuery(scope=OWN, email_contains=part), ALL).items
        return [
            listed(store, keys_query(name_contains=part)),
            [one.name for one in accounts],
            [one.email for one in users],
        ]

    assert found("trÄs") == [["STRÄSSE"], ["STRÄSSE"], ["STRÄSSE@example.com"]]
    assert found("strä") == [[], [], []]


@pytest.mark.parametrize("descending", [False, True])
def test_names_are_ordered_by_code_point(
    store: Store, filled: Filling, *, descending: bool
) -> None:
    """Neither by a language's rules nor by units of UTF-16."""
    names = ["A", "B", "Z", "a", "z", "Ä", "é", "中", "\ufb00", "\U0001f600"]
    add_keys(store, *(sample_key(f"n{n}", name=name) for n, name in enumerate(names[::-1])))
    query = keys_query(order_by="name", descending=descending)
    expected = sorted([*names, "key"], reverse=descending)
    assert listed(store, query) == expected
    with store.read() as reader:
        page = reader.list_api_keys(query, Page(limit=1000, after=("z", "~"))).items
    assert [one.name for one in page] == [
        one for one in expected if (one <= "z" if descending else one > "z")
    ]


def _many_keys() -> list[ApiKey]:
    """Keys with ties in every order, and absent times among them."""
    return [
        sample_key(
            f"m{n:02}",
            name=f"name{n % 4}",
            create_time=at(n % 3),
            expire_time=None if n % 3 == 0 else at(DAY) + n % 2,
        )
        for n in range(24)
    ]


SORT: dict[str, Callable[[ApiKey], SortKey]] = {
    "create_time": lambda key: (key.create_time, key.id),
    "expire_time": lambda key: (NEVER if key.expire_time is None else key.expire_time, key.id),
    "name": lambda key: (key.name, key.id),
    "last_used_time": lambda key: (
        UNUSED if key.last_used_time is None else key.last_used_time,
        key.id,
    ),
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("order", sorted(SORT))
@pytest.mark.parametrize("size", [1, 2, 7])
def test_pages_are_complete_and_ordered_while_keys_are_inserted(
    store: Store, filled: Filling, order: str, size: int, *, descending: bool
) -> None:
    """Every key that was there is listed once, in order, whatever comes between the pages."""
    add_keys(store, *_many_keys())
    store.add_uses([Use(sample_id(f"m{n:02}"), 1, at(SECOND + n % 3), 1) for n in range(0, 24, 2)])
    with store.read() as reader:
        there = {key.id: key for key in reader.list_api_keys(keys_query(), ALL).items}
    query = keys_query(order_by=order, descending=descending)
    seen: list[ApiKey] = []
    after: SortKey | None = None
    for number in range(60):
        with store.read() as reader:
            page = reader.list_api_keys(query, Page(limit=size, after=after)).items
        if not page:
            break
        assert len(page) <= size
        seen.extend(page)
        after = SORT[order](page[-1])
        # Before, between and after everything that is there, in each order.
        if number < 8:
            add_keys(
                store,
                sample_key(
                    f"new{number}{'zA'[number % 2]}",
                    name=f"name{number % 5}",
                    create_time=at(number % 4) - 1,
                    expire_time=(None, at(DAY), at(2 * DAY))[number % 3],
                ),
            )
    assert [one.id for one in seen] == [
        one.id for one in sorted(seen, key=SORT[order], reverse=descending)
    ]
    assert len({one.id for one in seen}) == len(seen)
    assert set(there) <= {one.id for one in seen}


@pytest.mark.parametrize("descending", [False, True])
def test_absent_times_stand_at_one_end(store: Store, filled: Filling, *, descending: bool) -> None:
    """Never-expiring keys come after all others, never-used ones before, in rising order."""
    add_keys(store, sample_key("soon", expire_time=at(DAY)))
    store.add_uses([Use(sample_id("soon"), 1, at(SECOND), 1)])
    for order, rising in (
        ("expire_time", ["soon", "key"]),
        ("last_used_time", ["key", "soon"]),
    ):
        found = listed(store, keys_query(order_by=order, descending=descending))
        assert found == (rising[::-1] if descending else rising), order


def test_ties_are_ordered_by_id(store: Store, filled: Filling) -> None:
    """Equal values are ordered by id, with its case, so that a page has one continuation."""
    add_keys(store, *(sample_key(f"t{n}", name="same") for n in (3, "a", 1, "Z", 2)))
    with store.read() as reader:
        query = keys_query(order_by="name", descending=False, name_contains="same")
        found = [one.id for one in reader.list_api_keys(query, ALL).items]
    assert found == sorted(found)


def paged_under_inserts(
    store: Store,
    read_page: Callable[[Reader, Page], Sequence[Account | User]],
    insert: Callable[[Writer, int], object],
) -> list[str]:
    """Return the ids on all pages of two, with an insert after each page."""
    seen: list[Account | User] = []
    after: SortKey | None = None
    for number in range(20):
        with store.read() as reader:
            page = read_page(reader, Page(limit=2, after=after))
        if not page:
            break
        seen.extend(page)
        after = (page[-1].create_time, page[-1].id)
        with store.write() as tx:
            insert(tx, number)
    return [one.id for one in seen]


def test_accounts_are_listed_newest_first_and_stable_under_inserts(
    store: Store, filled: Filling
) -> None:
    """An account made between two pages moves nothing."""
    with store.write() as tx:
        for n in range(6):
            tx.insert_account(sample_account(f"a{n}", create_time=at(n // 2)))
    ids = paged_under_inserts(
        store,
        lambda reader, page: reader.list_accounts(AccountQuery(scope=EVERYWHERE), page).items,
        lambda tx, n: tx.insert_account(sample_account(f"b{n}", create_time=at(9))),
    )
    assert ids == [sample_id(name) for name in ("a5", "a4", "a3", "a2", "acct", "a1", "a0")]


def test_users_are_listed_newest_first_and_stable_under_inserts(
    store: Store, filled: Filling
) -> None:
    """A user made between two pages moves nothing."""
    with store.write() as tx:
        for n in range(6):
            tx.insert_user(sample_user(f"u{n}", create_time=at(n // 2)))
    ids = paged_under_inserts(
        store,
        lambda reader, page: reader.list_users(UserQuery(scope=OWN), page).items,
        lambda tx, n: tx.insert_user(sample_user(f"b{n}", create_time=at(9))),
    )
    assert ids == [sample_id(name) for name in ("u5", "u4", "u3", "u2", "user", "u1", "u0")]


def test_audit_events_are_paged_while_others_are_written(store: Store, filled: Filling) -> None:
    """A page begins where the one before ended, whatever was appended meanwhile."""
    with store.write() as tx:
        for seq in range(1, 6):
            tx.append_audit(sample_event(seq))
    query = AuditQuery(scope=OWN)
    with store.read() as reader:
        first = reader.list_audit_events(query, Page(limit=2)).items
    with store.write() as tx:
        tx.append_audit(sample_event(6))
    with store.read() as reader:
        after = (first[-1].time, first[-1].seq)
        second = reader.list_audit_events(query, Page(limit=10, after=after)).items
    assert [one.seq for one in [*first, *second]] == [5, 4, 3, 2, 1]


def test_accounts_are_found_by_a_part_of_their_name(store: Store, filled: Filling) -> None:
    """Case does not matter, and `%` means itself."""
    with store.write() as tx:
        tx.insert_account(sample_account("b", name="50% Off"))
    with store.read() as reader:
        for wanted, found in (("% oFF", ["50% Off"]), ("", ["50% Off", "acct"]), ("a%", [])):
            query = AccountQuery(scope=EVERYWHERE, name_contains=wanted)
            assert sorted(one.name for one in reader.list_accounts(query, ALL).items) == found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ["dev", "machine", "user"]),
        ({"roles": (Role.DEVELOPER,)}, ["dev"]),
        ({"roles": (Role.DEVELOPER, Role.ADMIN)}, ["dev", "machine", "user"]),
        ({"types": (UserType.SERVICE_ACCOUNT,)}, ["machine"]),
        ({"email_contains": "DEV@"}, ["dev"]),
        ({"email_contains": "_"}, []),
        ({"show_deleted": True}, ["dev", "gone", "machine", "user"]),
        ({"show_deleted": True, "roles": (Role.VALIDATOR,)}, ["gone"]),
    ],
)
def test_users_are_filtered(
    store: Store, filled: Filling, changes: dict[str, Any], found: list[str]
) -> None:
    """Each filter narrows, all of them together."""
    with store.write() as tx:
        tx.insert_user(sample_user("dev", role=Role.DEVELOPER))
        tx.insert_user(sample_user("machine", type=UserType.SERVICE_ACCOUNT))
        tx.insert_user(sample_user("gone", role=Role.VALIDATOR, delete_time=START))
    with store.read() as reader:
        users: Sequence[User] = reader.list_users(UserQuery(scope=OWN, **changes), ALL).items
    assert sorted(one.display_name for one in users) == found


NOW = at(HOUR)
STATES: dict[str, dict[str, Any]] = {
    "active": {},
    "active, expires later": {"expire_time": NOW + 1},
    "disabled": {"disable_time": START},
    "disabled, expires later": {"disable_time": START, "expire_time": NOW + 1},
    "expired": {"expire_time": NOW},
    "expired and disabled": {"expire_time": NOW - 1, "disable_time": START},
    "revoked": {"revoke_time": START},
    "revoked and all else": {
        "revoke_time": START,
        "expire_time": START,
        "disable_time": START,
    },
}


@pytest.mark.parametrize("state", members_of(ApiKeyState))
def test_the_filter_by_state_agrees_with_the_model(
    store: Store, filled: Filling, state: ApiKeyState
) -> None:
    """The statement finds exactly the keys that the model says are in the state."""
    keys = [sample_key(f"s{n}", name=name, **STATES[name]) for n, name in enumerate(STATES)]
    add_keys(store, *keys)
    expected = {key.name for key in [*keys, filled.key] if key.state_at(NOW) is state}
    assert expected
    assert set(listed(store, keys_query(now=NOW, states=(state,)))) == expected


def test_several_states_are_united(store: Store, filled: Filling) -> None:
    """A key in one of the states is listed."""
    add_keys(
        store, *(sample_key(f"s{n}", name=name, **STATES[name]) for n, name in enumerate(STATES))
    )
    query = keys_query(now=NOW, states=(ApiKeyState.REVOKED, ApiKeyState.ACTIVE))
    assert len(listed(store, query)) == 2 + 2 + 1


def test_keys_are_filtered_by_owner_expiry_and_last_use(store: Store, filled: Filling) -> None:
    """`expires_before` and `unused_since` are exclusive; never used and created before counts."""
    with store.write() as tx:
        tx.insert_user(sample_user("other"))
    add_keys(
        store,
        sample_key("old", create_time=at(-DAY), expire_time=at(DAY)),
        sample_key("foreign", owner_id=sample_id("other"), create_time=at(-DAY)),
        sample_key("used", create_time=at(-DAY)),
    )
    store.add_uses([Use(sample_id("used"), 1, START, 1)])
    assert listed(store, keys_query(owner_id=sample_id("other"))) == ["foreign"]
    assert listed(store, keys_query(expires_before=at(DAY))) == []
    assert listed(store, keys_query(expires_before=at(DAY) + 1)) == ["old"]
    assert set(listed(store, keys_query(unused_since=START))) == {"old", "foreign"}
    assert set(listed(store, keys_query(unused_since=at(1)))) == {
        "old",
        "foreign",
        "used",
        "key",
    }


def test_audit_events_are_filtered_newest_first(store: Store, filled: Filling) -> None:
    """Actor (key or user), target, action and time each narrow; None asks for every account."""
    with store.write() as tx:
        tx.append_audit(sample_event(1, target_id="t"))
        tx.append_audit(
            sample_event(2, actor_type=int(AuditActorType.KEY), actor_key_id="k", actor_user_id="u")
        )
        tx.append_audit(sample_event(3, action=int(AuditAction.USER_CREATED)))
        tx.append_audit(sample_event(4, account_id="other"))

    def seqs(**changes: Any) -> list[int]:
        query = AuditQuery(**{"scope": OWN, **changes})
        with store.read() as reader:
            return [one.seq for one in reader.list_audit_events(query, ALL).items]

    assert seqs() == [3, 2, 1]
    assert seqs(scope=EVERYWHERE) == [4, 3, 2, 1]
    assert seqs(actor_id="k") == seqs(actor_id="u") == [2]
    assert seqs(target_id="t") == [1]
    assert seqs(actions=(AuditAction.USER_CREATED,)) == [3]
    assert seqs(after=at(1)) == [3, 2]
    assert seqs(before=at(3)) == [2, 1]
    assert seqs(after=at(1), before=at(3)) == [2]


def test_an_event_is_found_by_everything_that_it_is_about(store: Store, filled: Filling) -> None:
    """By each id beside its target too, in order, within the scope, the filters and the page."""
    with store.write() as tx:
        tx.append_audit(sample_event(1, target_id="a"))
        tx.append_audit(sample_event(2, target_id="owner"), ("a", "b"))
        tx.append_audit(sample_event(3, target_id="a"))
        tx.append_audit(sample_event(4, target_id="owner", account_id="other"), ("a",))
        tx.append_audit(sample_event(5, target_id="a", action=AuditAction.USER_CREATED))

    def seqs(target_id: str, page: Page = ALL, **changes: Any) -> list[int]:
        query = AuditQuery(**{"scope": OWN, "target_id": target_id, **changes})
        with store.read() as reader:
            return [one.seq for one in reader.list_audit_events(query, page).items]

    assert seqs("a") == [5, 3, 2, 1]
    assert seqs("b") == [2]
    assert seqs("owner") == [2]
    assert seqs("a", scope=EVERYWHERE) == [5, 4, 3, 2, 1]
    assert seqs("a", actions=(AuditAction.API_KEY_CREATED,), after=at(1)) == [3, 2]
    assert seqs("a", Page(limit=2, after=(at(5), 5))) == [3, 2]


def walked(read_page: Callable[[Page], Found[T]], key: Callable[[T], SortKey]) -> list[T]:
    """Return what pages of three hold together, of a list that looks at few rows for each."""
    items: list[T] = []
    after: SortKey | None = None
    for _ in range(500):
        found = read_page(Page(limit=3, after=after, looked_at=7))
        items.extend(found.items)
        if len(found.items) == 3:
            after = key(found.items[-1])
        elif found.rest is None:
            return items
        else:
            after = found.rest
    raise AssertionError("the list does not end")


def fill_with_variety(store: Store) -> None:
    """Insert keys, users and events of every kind, with many equal values to sort by."""
    chance = random.Random(1)
    with store.write() as tx:
        for n in range(40):
            tx.insert_user(
                sample_user(
                    f"u{n:02}",
                    role=chance.choice((Role.VALIDATOR, Role.ADMIN)),
                    type=chance.choice((UserType.PERSON, UserType.SERVICE_ACCOUNT)),
                    create_time=at(n % 3),
                    delete_time=chance.choice((None, None, START)),
                )
            )
            tx.insert_account(sample_account(f"b{n:02}", create_time=at(n % 3)))
            tx.append_audit(
                sample_event(
                    n + 1,
                    id=sample_id(f"e{n:02}"),
                    # As after a clock that was set back.
                    time=at(chance.randrange(5)),
                    account_id=chance.choice((ACCT, ACCT, "other")),
                    actor_key_id=chance.choice("kl"),
                    actor_user_id=chance.choice("uv"),
                    action=chance.choice((AuditAction.USER_CREATED, AuditAction.API_KEY_ROTATED)),
                    target_id=chance.choice("st"),
                ),
                chance.choice(((), (), ("also",), ("t", "also"))),
            )
    add_keys(
        store,
        *(
            sample_key(
                f"v{n:02}",
                name=f"name {n % 4}",
                owner_id=sample_id(chance.choice(("user", "u01", "u02"))),
                create_time=at(n % 5),
                expire_time=chance.choice((None, NOW - 1, NOW, NOW + 1)),
                disable_time=chance.choice((None, None, START)),
                revoke_time=chance.choice((None, None, START)),
            )
            for n in range(80)
        ),
    )
    store.add_uses([Use(sample_id(f"v{n:02}"), 1, at(SECOND + n % 3), 1) for n in range(0, 80, 3)])


KEY_FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "owner": {"owner_id": sample_id("u01")},
    "no owner": {"owner_id": "nobody"},
    **{state.name: {"states": (state,)} for state in members_of(ApiKeyState)},
    "live": {"states": (ApiKeyState.ACTIVE, ApiKeyState.DISABLED)},
    "dead": {"states": (ApiKeyState.EXPIRED, ApiKeyState.REVOKED)},
    "name": {"name_contains": "e 3"},
    "no name": {"name_contains": "none"},
    "expires": {"expires_before": NOW + 1},
    "unused": {"unused_since": at(SECOND + 1)},
    "all": {
        "owner_id": sample_id("user"),
        "states": (ApiKeyState.ACTIVE, ApiKeyState.REVOKED),
        "name_contains": "n",
        "expires_before": NOW + 2,
        "unused_since": at(SECOND + 2),
    },
}


@pytest.mark.parametrize("order", sorted(SORT))
@pytest.mark.parametrize("name", KEY_FILTERS)
def test_pages_that_end_early_put_together_are_the_whole_list(
    store: Store, filled: Filling, name: str, order: str
) -> None:
    """Of keys, by whatever filter and order: every match comes once, in order."""
    fill_with_variety(store)
    for descending in (False, True):
        query = keys_query(order_by=order, descending=descending, now=NOW, **KEY_FILTERS[name])
        with store.read() as reader:
            whole = reader.list_api_keys(query, ALL)
            pages = walked(partial(reader.list_api_keys, query), SORT[order])
        assert whole.rest is None
        assert pages == whole.items
        assert pages == sorted(pages, key=SORT[order], reverse=descending)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"show_deleted": True},
        {"roles": (Role.VALIDATOR,)},
        {"roles": (Role.ADMIN, Role.VALIDATOR)},
        {"types": (UserType.PERSON,), "show_deleted": True},
        {"email_contains": "u1"},
        {"email_contains": "nobody"},
    ],
)
def test_pages_of_users_that_end_early_are_the_whole_list(
    store: Store, filled: Filling, changes: dict[str, Any]
) -> None:
    """By whatever filter: every match comes once."""
    fill_with_variety(store)
    query = UserQuery(scope=OWN, **changes)
    with store.read() as reader:
        whole = reader.list_users(query, ALL)
        pages = walked(partial(reader.list_users, query), lambda one: (one.create_time, one.id))
    assert whole.rest is None
    assert pages == whole.items


@pytest.mark.parametrize("wanted", ["", "b1", "nothing"])
def test_pages_of_accounts_that_end_early_are_the_whole_list(
    store: Store, filled: Filling, wanted: str
) -> None:
    """Every match comes once."""
    fill_with_variety(store)
    query = AccountQuery(scope=EVERYWHERE, name_contains=wanted)
    with store.read() as reader:
        whole = reader.list_accounts(query, ALL)
        pages = walked(partial(reader.list_accounts, query), lambda one: (one.create_time, one.id))
    assert whole.rest is None
    assert pages == whole.items


@pytest.mark.parametrize("scope", [OWN, EVERYWHERE], ids=["an account", "every account"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actor_id": "k"},
        {"actor_id": "u"},
        {"actor_id": "nobody"},
        {"target_id": "t"},
        {"target_id": "also"},
        {"target_id": "nothing"},
        {"actions": (AuditAction.USER_CREATED,)},
        {"actions": (AuditAction.USER_CREATED, AuditAction.API_KEY_ROTATED)},
        {"actions": (AuditAction.API_KEY_REVOKED,)},
        {"after": at(1), "before": at(4)},
        {"after": at(5)},
        {"actor_id": "k", "target_id": "t", "actions": (AuditAction.USER_CREATED,), "after": at(0)},
    ],
)
def test_pages_of_audit_events_that_end_early_are_the_whole_list(
    store: Store, filled: Filling, scope: AccountScope, changes: dict[str, Any]
) -> None:
    """By whatever filter: every match comes once, the newest first also after a clock went back."""
    fill_with_variety(store)
    query = AuditQuery(scope=scope, **changes)
    with store.read() as reader:
        whole = reader.list_audit_events(query, ALL)
        pages = walked(partial(reader.list_audit_events, query), lambda one: (one.time, one.seq))
    assert whole.rest is None
    assert pages == whole.items
    assert pages == sorted(pages, key=lambda one: (one.time, one.seq), reverse=True)


def test_a_page_looks_at_no_more_rows_than_it_may(store: Store, filled: Filling) -> None:
    """Without a hit among them it is empty, and says where the list goes on."""
    fill_with_variety(store)
    query = keys_query(order_by="name", descending=False, name_contains="none")
    with store.read() as reader:
        names = [key.name for key in reader.list_api_keys(keys_query(order_by="name"), ALL).items]
        found = reader.list_api_keys(query, Page(limit=3, looked_at=7))
    assert found.items == []
    assert found.rest is not None
    assert found.rest[0] == sorted(names)[6]


@pytest.mark.parametrize(("count", "has_more"), [(0, True), (80, True), (81, False), (99, False)])
def test_an_account_has_more_keys_than_a_count(
    store: Store, filled: Filling, count: int, *, has_more: bool
) -> None:
    """Those of the one account alone, in whatever state."""
    fill_with_variety(store)
    with store.read() as reader:
        assert reader.has_more_keys_than(OWN, count) is has_more
        assert not reader.has_more_keys_than(FOREIGN, 0)


@dataclass(frozen=True)
class Caller:
    """Somebody who waits for what is read, or no longer."""

    is_alive: bool
    remaining_s: float | None = None


def read_long(store: Store, caller: Caller) -> int:
    """Read for some thousandths of a second: a list that looks at very many rows."""
    query = keys_query(name_contains="nothing")
    with store.read(caller) as reader:
        return len(reader.list_api_keys(query, Page(limit=3, looked_at=1_000_000)).items)


def test_what_is_read_ends_when_its_caller_has_gone(backend: Backend, filled: Filling) -> None:
    """The store is as usable afterwards as before, for those who still wait."""
    backend.append_keys(30_000)
    with pytest.raises(ReadAbandonedError):
        read_long(backend.store, Caller(is_alive=False))
    assert read_long(backend.store, Caller(is_alive=True)) == 0
    assert read_key(backend.store).name == filled.key.name


def test_deleted_events_are_gone_with_everything_that_finds_them(
    backend: Backend, filled: Filling
) -> None:
    """Up to the seq that is named, and no others."""
    store = backend.store
    with store.write() as tx:
        for seq in range(1, 5):
            tx.append_audit(sample_event(seq), (f"subject{seq}",))
        assert tx.first_event_since(at(3)) == 3
        assert tx.first_event_since(at(5)) is None
        assert tx.delete_audit_events(2) == 2
    with store.read() as reader:
        assert [one.seq for one in reader.audit_chain(0, 10)] == [3, 4]
    assert [row["seq"] for row in backend.dump()["audit_event_subjects"]] == [3, 4]


def test_the_base_of_the_log_is_one_row(store: Store, filled: Filling) -> None:
    """None as long as nothing was pruned; then the last one that was written."""
    with store.read() as reader:
        assert reader.audit_base() is None
    bases = [AuditBase(1, seq, bytes([seq]) * 32, b"r" * 32, b"m" * 32) for seq in (1, 2)]
    for base in bases:
        with store.write() as tx:
            tx.put_audit_base(base)
    with store.read() as reader:
        assert reader.audit_base() == bases[-1]


def test_base_rows_are_replaced_and_come_in_order(store: Store, filled: Filling) -> None:
    """One for each kind and id."""
    rows = [BaseRow(kind, name, 1, b"d") for kind in (0, 3, 4) for name in ("a", "b")]
    with store.write() as tx:
        for row in reversed(rows):
            tx.put_base_row(row._replace(seq=9))
            tx.put_base_row(row)
    with store.read() as reader:
        assert reader.base_row(3, "b") == rows[3]
        assert reader.base_row(5, "a") is None
        assert list(reader.base_rows((-1, ""), 100)) == rows
        assert list(reader.base_rows((0, "b"), 2)) == rows[2:4]


def test_a_base_row_can_be_deleted(store: Store, filled: Filling) -> None:
    """The one of that kind and id; without one nothing happens."""
    row = BaseRow(4, "a", 1, b"d")
    with store.write() as tx:
        tx.put_base_row(row)
        tx.put_base_row(row._replace(kind=3))
        tx.delete_base_row(4, "a")
        tx.delete_base_row(4, "a")
    with store.read() as reader:
        assert list(reader.base_rows((-1, ""), 10)) == [row._replace(kind=3)]


def test_a_pruned_key_finds_the_last_event_that_says_so(store: Store, filled: Filling) -> None:
    """No other action, and no event that is about other keys."""
    action = int(AuditAction.API_KEYS_PRUNED)
    with store.write() as tx:
        tx.append_audit(sample_event(1, action=action), ("one", "two"))
        tx.append_audit(sample_event(2, action=action), ("two",))
        tx.append_audit(sample_event(3, action=action), ("three",))
        tx.append_audit(sample_event(4), ("two", "four"))
    with store.read() as reader:
        found = [reader.pruning_event(one) for one in ("one", "two", "four", "five")]
    assert [None if one is None else one.seq for one in found] == [1, 2, None, None]


def test_only_revoked_keys_are_deleted(backend: Backend, filled: Filling) -> None:
    """With the rows as they were, and with everything that counts their uses."""
    store = backend.store
    names = ("a", "b", "kept")
    add_keys(store, *(sample_key(name) for name in (*names, "live")))
    ids = {name: sample_id(name) for name in (*names, "live")}
    store.add_uses([Use(one, 1, at(1), 1) for one in ids.values()])
    with store.write() as tx:
        for name in names:
            tx.update_api_key(sample_key(name, revoke_time=at(2), update_time=at(2)))
    with store.read() as reader:
        before = {str(row.columns["id"]): row for row in reader.covered_rows("api_keys", "", 9)}
    with store.write() as tx:
        deleted = tx.delete_revoked_keys([ids["live"], ids["b"], ids["a"], "nothing"])
        assert tx.delete_revoked_keys([]) == []
    assert list(deleted) == [before[ids["a"]], before[ids["b"]]]
    with store.read() as reader:
        left = {str(row.columns["id"]) for row in reader.covered_rows("api_keys", "", 9)}
        assert reader.lookup(ids["a"]) is None
        assert reader.unrevoked_key_count(ACCT) == 2
    assert left == {filled.key.id, ids["live"], ids["kept"]}
    assert store.check() == []


# --- writing --------------------------------------------------------------------------------------


def test_nothing_is_visible_before_it_commits(backend: Backend, filled: Filling) -> None:
    """Neither another thread's reader nor another process sees a write that is open."""
    other = backend.open_another()
    with backend.store.write() as tx:
        tx.insert_api_key(sample_key("new"), sample_secret())
        assert backend.store.lookup(sample_id("new"))[0] is None
        assert other.lookup(sample_id("new"))[0] is None
    assert backend.store.lookup(sample_id("new"))[0] is not None
    assert other.lookup(sample_id("new"))[0] is not None


def test_a_block_that_raises_changes_nothing(backend: Backend, filled: Filling) -> None:
    """Every kind of write is undone together."""
    before = backend.dump()
    with suppress(LookupError), backend.store.write() as tx:
        tx.insert_account(sample_account("more"))
        tx.insert_user(sample_user("more"))
        tx.insert_api_key(sample_key("more"), sample_secret())
        tx.update_api_key(replace(filled.key, name="other"))
        tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
        tx.append_audit(sample_event(1))
        raise LookupError
    assert backend.dump() == before


def test_a_block_sees_its_own_writes(store: Store, filled: Filling) -> None:
    """What was written before in the same block is read."""
    with store.write() as tx:
        tx.update_user(replace(filled.user, display_name="renamed"))
        tx.insert_api_key(sample_key("new"), sample_secret())
        user, key = tx.user(OWN, USER), tx.api_key(OWN, sample_id("new"))
    assert user is not None
    assert user.display_name == "renamed"
    assert key is not None


FORESEEN: dict[str, Callable[[Reader], object]] = {
    "revision": lambda reader: reader.revision(),
    "installation": lambda reader: reader.installation(),
    "lookup": lambda reader: reader.lookup(KEY),
    "account": lambda reader: reader.account(OWN, ACCT),
    "user": lambda reader: reader.user(OWN, USER),
    "user_by_email": lambda reader: reader.user_by_email(OWN, "late@example.com"),
    "api_key": lambda reader: reader.api_key(OWN, KEY),
    "secrets_of": lambda reader: reader.secrets_of(KEY),
    "unrevoked_key_count": lambda reader: reader.unrevoked_key_count(ACCT),
    "live_user_count": lambda reader: reader.live_user_count(ACCT),
    "request_record": lambda reader: reader.request_record(USER, "request"),
    "peppers": lambda reader: reader.peppers(),
    "audit_head": lambda reader: reader.audit_head(),
    "head": lambda reader: reader.head(),
    "personal_digest": lambda reader: reader.personal_digest(USER, "text"),
    "covered_row": lambda reader: reader.covered_row(Subject(AuditTargetType.API_KEY, KEY)),
}


def change_all_that_is_foreseen(tx: Writer, filling: Filling) -> None:
    """Write what each of FORESEEN reads."""
    tx.update_account(replace(filling.account, name="renamed"))
    tx.update_user(replace(filling.user, display_name="renamed"))
    tx.insert_user(sample_user("late"))
    changed = replace(filling.key, name="renamed", secret_version=2)
    tx.replace_secret(changed, sample_secret(2, "second"), sample_secret())
    tx.update_api_key(changed)
    tx.insert_api_key(sample_key("late"), sample_secret())
    tx.put_request_record(
        RequestRecord(
            user_id=USER,
            request_id="request",
            body_hash=b"body",
            attempt=1,
            key_id=KEY,
            secret_version=1,
            create_time=START,
        )
    )
    tx.retire_pepper(PEPPER, START)
    tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    tx.append_audit(sample_event(1))
    tx.put_head(Head(1, 1, b"hash", 1, b"mac"))
    tx.insert_personal_text(PersonalText(b"digest", USER, b"salt", "text"))


def test_what_is_foreseen_is_read_like_everything_else(backend: Backend, filled: Filling) -> None:
    """It is what the writer before has committed, and later what the block has written."""
    foreseen = list(FORESEEN.values())
    other = backend.open_another()
    began = threading.Event()
    seen: dict[str, list[object]] = {name: [] for name in FORESEEN}

    def write() -> None:
        began.set()
        with other.write(foreseen) as tx:
            for name, read in FORESEEN.items():
                seen[name].append(read(tx))
            tx.update_api_key(replace(filled.key, name="again", secret_version=2, row_version=9))
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
            for name, read in FORESEEN.items():
                seen[name].append(read(tx))

    thread = threading.Thread(target=write)
    with backend.store.write(foreseen) as tx:
        thread.start()
        assert began.wait(10)
        before = {name: read(tx) for name, read in FORESEEN.items()}
        change_all_that_is_foreseen(tx, filled)
        after = {name: read(tx) for name, read in FORESEEN.items()}
        assert [name for name in FORESEEN if before[name] == after[name]] == []
    thread.join()
    assert {name: values[0] for name, values in seen.items()} == after
    with backend.store.read() as reader:
        stored = {name: read(reader) for name, read in FORESEEN.items()}
    assert {name: values[1] for name, values in seen.items()} == stored
    changed = {name for name, values in seen.items() if values[0] != values[1]}
    assert {"revision", "installation", "lookup", "api_key", "covered_row"} <= changed


def test_a_write_waits_before_its_block_runs(backend: Backend, filled: Filling) -> None:
    """While another process writes, a block does not begin; then it runs once and sees it all."""
    other = backend.open_another()
    waits = threading.Event()
    seen: list[int] = []

    def write() -> None:
        waits.set()
        with other.write() as tx:
            seen.append(tx.key_count())

    thread = threading.Thread(target=write)
    with backend.store.write() as tx:
        thread.start()
        assert waits.wait(10)
        thread.join(0.05)
        assert seen == []
        tx.insert_api_key(sample_key("new"), sample_secret())
    thread.join()
    assert seen == [2]


def test_a_write_that_waited_too_long_has_not_run(backend: Backend, filled: Filling) -> None:
    """A conflict is raised in the place of the block, which may then be begun again."""
    impatient = backend.open_another(busy_timeout_s=0.05)
    ran: list[str] = []

    def write() -> None:
        with impatient.write() as tx:
            ran.append("block")
            tx.insert_api_key(sample_key("late"), sample_secret())

    with backend.store.write():
        for _ in range(3):
            with pytest.raises(StoreLockedError):
                write()
    assert ran == []
    write()
    assert ran == ["block"]
    assert read_key(backend.store, sample_id("late")).name == "late"


def test_a_block_that_raises_leaves_the_store_usable(store: Store, filled: Filling) -> None:
    """The next write begins afresh."""
    for _ in range(3):
        with suppress(LookupError), store.write():
            raise LookupError
    add_keys(store, sample_key("next"))
    assert read_key(store, sample_id("next")).name == "next"


@pytest.mark.parametrize("stores", [1, 2])
def test_two_writers_never_lose_each_others_update(
    backend: Backend, filled: Filling, stores: int
) -> None:
    """Writers that read, add one and write, in threads and over two stores, lose nothing."""
    used = [backend.store, *(backend.open_another() for _ in range(stores - 1))]
    rounds = 40
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def count(store: Store) -> None:
        start.wait()
        try:
            for _ in range(rounds):
                with store.write() as tx:
                    key = tx.api_key(EVERYWHERE, KEY)
                    assert key is not None
                    tx.update_api_key(replace(key, row_version=key.row_version + 1))
                    tx.append_change(
                        kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START
                    )
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=count, args=(used[n % stores],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert read_key(backend.store).row_version == 1 + 4 * rounds
    with backend.store.read() as reader:
        assert reader.installation().revision == 4 * rounds
        revisions = [one.revision for one in backend.store.changes_since(0, 1000).changes]
    assert revisions == list(range(1, 4 * rounds + 1))


# --- sessions -------------------------------------------------------------------------------------


def read_session(store: Store) -> Session:
    """Read the session that is there."""
    with store.read() as reader:
        session = reader.session(sample_session().id)
    assert session is not None
    return session


def test_a_session_is_read_as_it_was_inserted(store: Store, filled: Filling) -> None:
    """Every field of it."""
    with store.write() as tx:
        tx.insert_session(sample_session())
        assert tx.session(sample_session().id) == sample_session()
    assert read_session(store) == sample_session()


def test_a_session_is_seen_later_and_never_earlier(store: Store, filled: Filling) -> None:
    """Of two processes that write at once the later time stays."""
    with store.write() as tx:
        tx.insert_session(sample_session())
        tx.see_session(sample_session().id, at(MINUTE))
        tx.see_session(sample_session().id, at(SECOND))
        tx.see_session("nothing", at(HOUR))
    assert read_session(store) == sample_session(last_seen_time=at(MINUTE))


def test_a_session_ends_once(store: Store, filled: Filling) -> None:
    """The first end stays."""
    with store.write() as tx:
        tx.insert_session(sample_session())
        tx.end_session(sample_session().id, at(SECOND))
        tx.end_session(sample_session().id, at(MINUTE))
        tx.end_session("nothing", at(HOUR))
    assert read_session(store) == sample_session(end_time=at(SECOND))


def test_sessions_of_a_scope_are_listed_newest_first(store: Store, filled: Filling) -> None:
    """Since a moment, of a user when one is named, at most so many; ended ones are left out."""
    with store.write() as tx:
        tx.insert_user(sample_user("other"))
        made: list[dict[str, Any]] = [{}, {"user_id": sample_id("other")}, {}, {"end_time": at(9)}]
        for number, changes in enumerate(made, start=1):
            one = sample_session(id=sample_id(f"s{number}"), create_time=at(number), **changes)
            tx.insert_session(one)
    with store.read() as reader:

        def found(scope: AccountScope, since: int = 1, limit: int = 9, **wanted: str) -> list[str]:
            listed = reader.sessions(scope, since=at(since), limit=limit, **wanted)
            return [one.id.rstrip("0")[:2] for one in listed]

        assert found(OWN) == ["s3", "s2", "s1"]
        assert found(EVERYWHERE) == ["s3", "s2", "s1"]
        assert found(FOREIGN) == []
        assert found(OWN, since=2) == ["s3", "s2"]
        assert found(OWN, limit=1) == ["s3"]
        assert found(OWN, user_id=sample_id("other")) == ["s2"]


def test_sessions_older_than_a_day_are_pruned(store: Store, filled: Filling) -> None:
    """As many as may be at a time; younger ones stay, however they ended."""
    with store.write() as tx:
        for number in range(3):
            tx.insert_session(sample_session(id=sample_id(f"old{number}")))
        tx.insert_session(sample_session(create_time=at(1), end_time=at(2)))
    assert store.prune(at(DAY), 2) == 0
    assert [store.prune(at(DAY + 1), 2) for _ in range(3)] == [2, 1, 0]
    assert read_session(store).end_time == at(2)


ISSUER = "https://id.example.com"


def test_sessions_are_found_by_what_the_provider_calls_them(store: Store, filled: Filling) -> None:
    """By subject, by the provider's session, or by both; those that were ended are left out."""
    named = [("alice", "s1"), ("alice", "s2"), ("bob", "s1")]
    ids = [sample_id(f"person{number}") for number in range(3)]
    with store.write() as tx:
        tx.insert_session(sample_session())
        for number, (subject, session) in enumerate(named):
            person = {"key_id": "", "issuer": ISSUER, "subject": subject}
            tx.insert_session(
                sample_session(
                    **person, id=ids[number], provider_session=session, create_time=at(number)
                )
            )

    def found(issuer: str = ISSUER, **what: str) -> list[str]:
        with store.read() as reader:
            return [one.id for one in reader.sessions_at(issuer, **what)]

    assert found(subject="alice") == ids[:2]
    assert found(provider_session="s1") == [ids[0], ids[2]]
    assert found(subject="alice", provider_session="s2") == [ids[1]]
    assert found() == []
    assert found("", subject="alice") == []
    assert found("https://x.example.com", subject="bob") == []
    with store.write() as tx:
        tx.end_session(ids[0], at(MINUTE))
    assert found(subject="alice") == [ids[1]]


def test_an_identity_goes_with_its_user(store: Store, filled: Filling) -> None:
    """And only with that one."""
    with store.write() as tx:
        tx.insert_identity(sample_identity())
        tx.delete_identity(sample_id("nobody"))
        assert tx.identity(ISSUER, "alice") == sample_identity()
        assert tx.identity_of(USER) == sample_identity()
        assert tx.identity(ISSUER, "Alice") is None
        assert tx.identity("https://x.example.com", "alice") is None
        tx.delete_identity(USER)
    with store.read() as reader:
        assert reader.identity_of(USER) is None
        assert reader.identity(ISSUER, "alice") is None


def test_an_invitation_takes_the_place_of_the_one_before(store: Store, filled: Filling) -> None:
    """A user has one; it goes three days after it was made, or when it is deleted."""
    second = sample_invitation(id=sample_id("second"), create_time=at(1))
    with store.write() as tx:
        tx.put_invitation(sample_invitation())
        tx.put_invitation(second)
        assert tx.invitation(sample_invitation().id) is None
        assert tx.invitation(second.id) == tx.invitation_of(USER) == second
    store.prune(at(72 * HOUR + 1), 10)
    with store.read() as reader:
        assert reader.invitation_of(USER) == second
    assert store.prune(at(72 * HOUR + 2), 10) == 1
    with store.write() as tx:
        assert tx.invitation_of(USER) is None
        tx.put_invitation(second)
        tx.delete_invitation(USER)
        assert tx.invitation(second.id) is None


def test_a_value_is_used_once_until_its_moment(store: Store, filled: Filling) -> None:
    """The kinds do not know each other; a prune takes what is over."""
    with store.write() as tx:
        assert tx.use_once("a", "value", now=at(0), until=at(MINUTE))
        assert not tx.use_once("a", "value", now=at(1), until=at(HOUR))
        assert tx.use_once("b", "value", now=at(1), until=at(HOUR))
        assert tx.use_once("a", "other", now=at(1), until=at(HOUR))
        assert tx.use_once("a", "value", now=at(MINUTE), until=at(2 * MINUTE))
    assert store.prune(at(2 * MINUTE), 10) == 1
    assert store.prune(at(HOUR), 1) == 1
    assert store.prune(at(HOUR), 10) == 1


def test_a_person_is_judged_as_a_key_that_grants_admin(store: Store, filled: Filling) -> None:
    """With the role, the deletion and the account of now; an unknown user has no record."""
    with store.write() as tx:
        record, key = tx.person_record(USER), tx.lookup(KEY)
        assert record is not None
        assert key is not None
        assert (record.key_id, record.owner_id, record.account_id) == ("", USER, ACCT)
        assert record.role == Role.ADMIN
        assert record.owner_role == key.owner_role
        assert record.owner_email == key.owner_email
        assert record.account_is_operator == key.account_is_operator
        assert record.secret_of(0, at(100 * DAY)) is not None
        assert tx.person_record(sample_id("nobody")) is None


def test_who_can_administer_an_account_is_known(store: Store, filled: Filling) -> None:
    """A key of an administrator that works, or an administrator's identity."""
    boss = sample_user("boss", email="boss@example.com", role=Role.ADMIN)
    key = sample_key("master", owner_id=boss.id, role=Role.ADMIN, expire_time=at(HOUR))
    with store.write() as tx:
        tx.insert_user(boss)
        tx.insert_api_key(key, sample_secret())
    with store.write() as tx:
        others = tx.has_admin_key(ACCT, at(0), but_of=boss.id)
        assert tx.has_admin_key(ACCT, at(0))
        assert tx.has_admin_key(ACCT, at(0), but=[key.id]) == others
        assert tx.has_admin_key(ACCT, at(HOUR)) == others
        assert not tx.has_admin_key(sample_id("another"), at(0))
        identity = sample_identity(user_id=boss.id)
        assert not tx.has_admin_identity(ACCT, identity.issuer)
        tx.insert_identity(identity)
        assert tx.has_admin_identity(ACCT, identity.issuer)
        assert not tx.has_admin_identity(ACCT, "https://another.example.com")
        assert not tx.has_admin_identity(ACCT, identity.issuer, but=boss.id)
        tx.update_api_key(replace(key, disable_time=at(1)))
        assert tx.has_admin_key(ACCT, at(0)) == others
        tx.update_user(replace(boss, role=Role.DEVELOPER))
        assert not tx.has_admin_identity(ACCT, identity.issuer)


TAKEN: dict[str, Callable[[Writer], None]] = {
    "account": lambda tx: tx.insert_account(sample_account("acct", name="other")),
    "user": lambda tx: tx.insert_user(sample_user("user", email="other@example.com")),
    "key": lambda tx: tx.insert_api_key(sample_key("key", name="other"), sample_secret()),
    "pepper": lambda tx: tx.insert_pepper(Pepper(id=PEPPER, check=b"other", create_time=START)),
    "audit event": lambda tx: tx.append_audit(sample_event(2, id=sample_event(1).id)),
    "personal text": lambda tx: tx.insert_personal_text(
        PersonalText(b"digest", "other", b"salt", "other")
    ),
    "session": lambda tx: tx.insert_session(sample_session(user_agent="other")),
    "identity": lambda tx: tx.insert_identity(sample_identity(user_id=sample_id("second"))),
    "user of an identity": lambda tx: tx.insert_identity(sample_identity(subject="bob")),
}


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_an_id_that_is_taken_is_a_conflict(backend: Backend, filled: Filling, name: str) -> None:
    """Inserting never replaces a row, and the block goes no further than its next read."""
    with backend.store.write() as tx:
        tx.append_audit(sample_event(1))
        tx.insert_personal_text(PersonalText(b"digest", USER, b"salt", "text"))
        tx.insert_session(sample_session())
        tx.insert_user(sample_user("second", email="second@example.com"))
        tx.insert_identity(sample_identity())
    before = backend.dump()
    with pytest.raises(StoreConflictError) as caught, backend.store.write() as tx:  # noqa: PT012
        tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
        with pytest.raises(StoreConflictError):  # noqa: PT012 - at once, or where it reads next
            TAKEN[name](tx)
            tx.key_count()
        TAKEN[name](tx)
    assert not isinstance(caught.value, EmailConflictError)
    with pytest.raises(StoreConflictError), backend.store.write() as tx:
        TAKEN[name](tx)  # or at the end of the block
    assert backend.dump() == before


def test_updating_an_account_writes_its_name_and_state(backend: Backend, filled: Filling) -> None:
    """Everything else of it stays."""
    before = backend.dump()
    with backend.store.write() as tx:
        tx.update_account(
            Account(
                id=ACCT,
                name="renamed",
                create_time=at(9),
                disable_time=START,
                is_operator=True,
                row_version=2,
            )
        )
    assert changed_columns(before, backend.dump()) == {
        "accounts": {"name", "disable_time", "row_version"}
    }


def test_updating_a_user_writes_what_may_change(backend: Backend, filled: Filling) -> None:
    """Account, address, type and creation stay."""
    before = backend.dump()
    with backend.store.write() as tx:
        tx.update_user(
            sample_user(
                account_id=sample_id("other"),
                email="other@example.com",
                display_name="renamed",
                role=Role.VALIDATOR,
                type=UserType.SERVICE_ACCOUNT,
                create_time=at(9),
                update_time=at(8),
                delete_time=at(7),
                row_version=2,
            )
        )
    assert changed_columns(before, backend.dump()) == {
        "users": {"display_name", "role", "update_time", "delete_time", "row_version"}
    }


def test_updating_a_key_touches_no_usage_and_no_secret(backend: Backend, filled: Filling) -> None:
    """A whole key that was read before a use is written back without undoing the use."""
    stale = read_key(backend.store)
    backend.store.add_uses([Use(KEY, 1, at(SECOND), 5)])
    before = backend.dump()
    with backend.store.write() as tx:
        tx.update_api_key(
            replace(
                stale,
                name="renamed",
                update_time=at(2 * SECOND),
                row_version=2,
                use_count=0,
                last_used_time=None,
                secret_used=False,
                secret_version=9,
                secret_create_time=Micros(1),
            )
        )
    assert changed_columns(before, backend.dump()) == {
        "api_keys": {"name", "update_time", "row_version"}
    }


def _rotated(store: Store, key: ApiKey, end: Micros) -> ApiKey:
    rotated = replace(key, secret_version=2, secret_create_time=at(1), overlap_end_time=end)
    with store.write() as tx:
        tx.replace_secret(rotated, sample_secret(2, "new"), sample_secret(1))
    return rotated


def test_replacing_a_secret_keeps_both(store: Store, filled: Filling) -> None:
    """The current and the old one, with their versions and times."""
    _rotated(store, filled.key, at(DAY))
    with store.read() as reader:
        assert reader.secrets_of(KEY) == (sample_secret(2, "new"), sample_secret(1))
        record = reader.lookup(KEY)
    assert record is not None
    assert (record.secret_version, record.old_secret_version) == (2, 1)
    assert (record.secret_create_time, record.overlap_end_time) == (at(1), at(DAY))


@pytest.mark.parametrize(("moment", "erased"), [(DAY - 1, False), (DAY, True), (DAY + 1, True)])
def test_the_next_write_erases_a_dead_old_secret(
    store: Store, filled: Filling, moment: int, *, erased: bool
) -> None:
    """From the end of the overlap on the digest goes with the next write to the key."""
    rotated = _rotated(store, filled.key, at(DAY))
    with store.write() as tx:
        tx.update_api_key(replace(rotated, update_time=at(moment)))
    with store.read() as reader:
        assert (reader.secrets_of(KEY)[1] is None) == erased


def test_a_revocation_of_many_returns_the_rows_it_leaves(store: Store, filled: Filling) -> None:
    """All of them, in the order of their ids, as they are read afterwards."""
    add_keys(store, sample_key("b"), sample_key("a"))
    with store.write() as tx:
        revoked = tx.revoke_keys(
            owner_id=USER, reason=RevocationReason.OWNER_DELETED, revoked_by=USER, now=at(5)
        )
    ids = [sample_id("a"), sample_id("b"), KEY]
    assert [row.columns["id"] for row in revoked] == ids
    with store.read() as reader:
        found = [reader.covered_row(Subject(AuditTargetType.API_KEY, one)) for one in ids]
    assert list(revoked) == found


@pytest.mark.parametrize(("moment", "erased"), [(DAY - 1, False), (DAY, True)])
def test_a_revocation_of_many_erases_dead_old_secrets_too(
    store: Store, filled: Filling, moment: int, *, erased: bool
) -> None:
    """A revocation with its owner is a write to the key as any other."""
    _rotated(store, filled.key, at(DAY))
    with store.write() as tx:
        tx.revoke_keys(
            owner_id=USER,
            reason=RevocationReason.OWNER_DELETED,
            revoked_by=USER,
            now=at(moment),
        )
    with store.read() as reader:
        assert (reader.secrets_of(KEY)[1] is None) == erased


def test_revoking_an_owners_keys_leaves_the_revoked_and_the_foreign(
    backend: Backend, filled: Filling
) -> None:
    """Only unrevoked keys of the owner change, and only what a revocation says."""
    store = backend.store
    with store.write() as tx:
        tx.insert_user(sample_user("other"))
    add_keys(
        store,
        sample_key("dead", revoke_time=at(-1), revocation_reason=RevocationReason.LOST),
        sample_key("foreign", owner_id=sample_id("other")),
    )
    before = backend.dump()
    with store.write() as tx:
        revoked = tx.revoke_keys(
            owner_id=USER, reason=RevocationReason.OWNER_DELETED, revoked_by="who", now=at(5)
        )
    assert [row.columns["id"] for row in revoked] == [KEY]
    after = backend.dump()
    assert changed_columns(before, after) == {
        "api_keys": {
            "revoke_time",
            "revoked_by",
            "revocation_reason",
            "update_time",
            "row_version",
        }
    }
    untouched = [one for one in before["api_keys"] if one["id"] != KEY]
    assert [one for one in after["api_keys"] if one["id"] != KEY] == untouched


def test_revoking_what_a_user_made_for_others_leaves_the_users_own(
    store: Store, filled: Filling
) -> None:
    """`created_by` with `not_owner_id` meets keys of other owners alone."""
    with store.write() as tx:
        tx.insert_user(sample_user("other"))
    add_keys(store, sample_key("made", owner_id=sample_id("other")))
    with store.write() as tx:
        revoked = tx.revoke_keys(
            created_by=USER,
            not_owner_id=USER,
            reason=RevocationReason.CREATOR_DELETED,
            revoked_by=USER,
            now=START,
        )
    assert [row.columns["id"] for row in revoked] == [sample_id("made")]
    assert read_key(store).revoke_time is None
    assert read_key(store, sample_id("made")).revocation_reason is RevocationReason.CREATOR_DELETED


def test_old_request_records_are_forgotten(store: Store, filled: Filling) -> None:
    """A record lives 24 hours, to the microsecond."""
    for n, age in enumerate((24 * HOUR, 24 * HOUR + 1)):
        with store.write() as tx:
            tx.put_request_record(
                RequestRecord(
                    user_id=USER,
                    request_id=str(n),
                    body_hash=b"",
                    attempt=1,
                    key_id=KEY,
                    secret_version=1,
                    create_time=at(-age),
                )
            )
    assert store.prune(START, 10) == 1
    with store.read() as reader:
        assert reader.request_record(USER, "0") is not None
        assert reader.request_record(USER, "1") is None


def test_pruning_goes_in_small_steps(store: Store, filled: Filling) -> None:
    """No more than the limit at a time, until nothing is left to delete."""
    with store.write() as tx:
        for n in range(5):
            tx.put_request_record(
                RequestRecord(
                    user_id=USER,
                    request_id=str(n),
                    body_hash=b"",
                    attempt=1,
                    key_id=KEY,
                    secret_version=1,
                    create_time=START,
                )
            )
    assert [store.prune(at(25 * HOUR), 2) for _ in range(4)] == [2, 2, 1, 0]


def test_changes_are_kept_ten_minutes_and_a_hundred_thousand(
    backend: Backend, filled: Filling
) -> None:
    """The oldest go, no more than the limit at a time, of those that are old and far back."""
    store = backend.store
    backend.append_changes(3, START)
    backend.append_changes(100_000, at(1))
    assert store.prune(at(10 * MINUTE), 100) == 0, "none is older than ten minutes"
    assert [store.prune(at(10 * MINUTE + 1), 2) for _ in range(3)] == [2, 1, 0]
    news = store.changes_since(3, 1)
    assert (news.oldest, news.changes[0].revision, news.head) == (4, 4, 100_003)
    assert store.prune(at(DAY), 100) == 0, "a hundred thousand stay, however old"


def test_pruning_leaves_no_gap(backend: Backend, filled: Filling) -> None:
    """A young change keeps the older ones behind it, as a clock that steps back writes them."""
    backend.append_changes(1, START)
    backend.append_changes(1, at(DAY))
    backend.append_changes(100_001, START)
    assert backend.store.prune(at(HOUR), 100) == 1
    assert backend.store.changes_since(0, 0).oldest == 2
    assert list(backend.store.check()) == []


def test_changes_a_watcher_may_ask_for_are_kept(store: Store, filled: Filling) -> None:
    """Old changes stay while there are fewer than 100,000 of them."""
    with store.write() as tx:
        for _ in range(10):
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    assert store.prune(at(10 * MINUTE + 1), 100) == 0
    assert store.changes_since(0, 0).oldest == 1


# --- the store ------------------------------------------------------------------------------------


def test_a_lookup_sees_every_commit_that_was_answered(backend: Backend, filled: Filling) -> None:
    """The next lookup of anybody, in this process or another, sees the write."""
    other = backend.open_another()
    for n in range(5):
        with backend.store.write() as tx:
            tx.update_api_key(replace(filled.key, name=f"name{n}"))
            revision = tx.append_change(
                kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START
            )
        for store in (backend.store, other):
            record, seen = store.lookup(KEY)
            assert record is not None
            assert (record.key_name, seen.revision) == (f"name{n}", revision)
            records, seen = store.lookup_many([KEY])
            assert (records[KEY].key_name, seen.revision) == (f"name{n}", revision)
            news = store.changes_since(revision - 1, 10)
            assert seen.epoch == news.epoch
            assert [one.revision for one in news.changes] == [revision] == [news.head]


# --- waiting for changes --------------------------------------------------------------------------

LONG_S = 10.0


def _is_quick(wait: Callable[[], None]) -> bool:
    started = time.monotonic()
    wait()
    return time.monotonic() - started < LONG_S / 2


def test_a_commit_before_the_wait_ends_it(backend: Backend, filled: Filling) -> None:
    """A commit between a read and the wait is not slept over."""
    store = backend.open_another()
    poll_s = store.poll_interval_s
    for n in range(4):
        add_keys(store, sample_key(f"w{n}"))
        assert _is_quick(lambda: store.wait(LONG_S if poll_s is None else poll_s))


def test_whoever_waits_and_then_reads_sees_every_change(store: Store, filled: Filling) -> None:
    """A commit is noticed within the poll interval, and at once where there is none."""
    poll_s = store.poll_interval_s
    seen = threading.Event()

    def watch() -> None:
        while not store.changes_since(0, 1).changes:
            store.wait(LONG_S if poll_s is None else poll_s)
        seen.set()

    thread = threading.Thread(target=watch)
    thread.start()
    with store.write() as tx:
        tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    assert seen.wait(LONG_S / 2)
    thread.join()


def test_wake_ends_a_wait_without_a_timeout(store: Store, filled: Filling) -> None:
    """Whoever has something else to do for the waiting thread can reach it."""
    store.wait(0)
    thread = threading.Thread(target=store.wait, args=(None,))
    thread.start()
    store.wake()
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_a_wait_ends_after_its_timeout(store: Store, filled: Filling) -> None:
    """Without any commit too."""
    store.wait(0)
    assert _is_quick(lambda: store.wait(0.01))


# --- snapshots ------------------------------------------------------------------------------------


def test_a_record_and_its_revision_are_of_one_snapshot(store: Store, filled: Filling) -> None:
    """While a writer names the key after the revision, no lookup sees them apart."""
    stop = threading.Event()
    torn: list[tuple[str, int]] = []
    seen: set[int] = set()

    def look() -> None:
        while not stop.is_set():
            record, moment = store.lookup(KEY)
            many, moment_of_many = store.lookup_many([KEY, "nothing"])
            assert record is not None
            for one, (_, of) in ((record, moment), (many[KEY], moment_of_many)):
                if of and one.key_name != str(of):
                    torn.append((one.key_name, of))
            seen.add(moment.revision)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        with store.write() as tx:
            revision = tx.append_change(
                kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START
            )
            tx.update_api_key(replace(filled.key, name=str(revision)))
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert seen


def test_lookup_many_answers_the_known_ones(store: Store, filled: Filling) -> None:
    """Unknown ids are left out, and nothing asked is nothing answered."""
    epoch = sample_installation().epoch
    found, moment = store.lookup_many([KEY, "nothing"])
    assert (set(found), moment) == ({KEY}, (epoch, 0))
    assert store.lookup_many([]) == ({}, (epoch, 0))
    assert store.lookup("nothing") == (None, (epoch, 0))


def test_a_snapshot_stands_still(store: Store, filled: Filling) -> None:
    """What is read in one block belongs together, whatever is committed meanwhile."""
    ready, done = threading.Event(), threading.Event()

    def write() -> None:
        ready.wait()
        add_keys(store, sample_key("later"))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    with store.read() as reader:
        assert reader.key_count() == 1
        ready.set()
        done.wait()
        assert reader.key_count() == 1
    thread.join()
    with store.read() as reader:
        assert reader.key_count() == 2


def test_live_keys_are_counted_by_when_they_expire(store: Store, filled: Filling) -> None:
    """Revoked and expired keys are left out; a key that expires at a moment counts for it."""
    now = at(DAY)
    with store.write() as tx:
        for name, expire_time in {
            "soon": at(DAY + HOUR),
            "later": at(2 * DAY),
            "much": at(3 * DAY),
            "gone": now,
        }.items():
            tx.insert_api_key(sample_key(name, expire_time=expire_time), sample_secret())
        dead = sample_key("dead", revoke_time=START, expire_time=at(DAY + HOUR))
        tx.insert_api_key(dead, sample_secret())
    with store.read() as reader:
        assert list(reader.live_keys(now, [at(DAY + HOUR), at(2 * DAY)])) == [1, 2, 3, 4]


WROTE: dict[str, Callable[[Store, Filling], None]] = {
    "nothing": lambda store, filled: None,
    "update_api_key": lambda store, filled: _write_key(
        store, replace(filled.key, secret_used=True, update_time=at(1))
    ),
    "a use of another version": lambda store, filled: store.add_uses([Use(KEY, 7, START, 1)]),
}


@pytest.mark.parametrize("name", sorted(WROTE))
def test_a_secret_is_not_used_because_of_anything_else(
    store: Store, filled: Filling, name: str
) -> None:
    """Only a use of the current secret sets `secret_used` of a stored key."""
    WROTE[name](store, filled)
    assert not read_key(store).secret_used


def test_a_new_secret_is_as_used_as_its_key_says(store: Store, filled: Filling) -> None:
    """A rotation writes the mark of the new secret."""
    store.add_uses([Use(KEY, 1, START, 1)])
    assert read_key(store).secret_used
    _rotated(store, filled.key, at(DAY))
    assert not read_key(store).secret_used
    add_keys(store, sample_key("used", secret_used=True))
    assert read_key(store, sample_id("used")).secret_used


def _reissued(store: Store, key: ApiKey) -> bool:
    """Issue the secret of a key again; return whether that was done."""
    with store.write() as tx:
        return tx.replace_unused_secret(
            replace(key, secret_version=key.secret_version + 1, update_time=at(1)),
            sample_secret(key.secret_version + 1, "next"),
            None,
        )


def test_an_unused_secret_is_replaced(store: Store, filled: Filling) -> None:
    """The key has the next one, which is unused too."""
    assert _reissued(store, filled.key)
    key = read_key(store)
    assert (key.secret_version, key.secret_used) == (2, False)


def _claim(store: Store) -> None:
    assert store.claim_uses([SecretId(KEY, 1)], START)


def _count(store: Store) -> None:
    store.add_uses([Use(KEY, 1, START, 1)])


USED: dict[str, Sequence[Callable[[Store], None]]] = {
    "claimed": [_claim],
    "counted": [_count],
    "claimed and counted": [_claim, _count],
    "claimed twice": [_claim, _claim],
    "counted and claimed": [_count, _claim],
}


@pytest.mark.parametrize("name", sorted(USED))
def test_a_used_secret_is_not_replaced(backend: Backend, filled: Filling, name: str) -> None:
    """And nothing of the key is written."""
    for use in USED[name]:
        use(backend.store)
    before = backend.dump()
    for _ in range(2):
        assert not _reissued(backend.store, filled.key)
    assert backend.dump() == before


def test_the_version_before_is_a_condition_too(store: Store, filled: Filling) -> None:
    """Of two changes that replace the same secret, one does."""
    assert _reissued(store, filled.key)
    assert not _reissued(store, filled.key)


def test_a_claim_touches_the_mark_and_nothing_else(backend: Backend, filled: Filling) -> None:
    """Neither the count nor the time: these come with `add_uses`."""
    before = backend.dump()
    assert backend.store.claim_uses([SecretId(KEY, 1)], START)
    assert changed_columns(before, backend.dump()).get("api_keys", set()) <= {"secret_used"}


def test_a_secret_that_was_replaced_cannot_be_claimed(store: Store, filled: Filling) -> None:
    """The caller judges again; the new secret can be claimed."""
    assert _reissued(store, filled.key)
    assert not store.claim_uses([SecretId(KEY, 1)], START)
    assert store.claim_uses([SecretId(KEY, 2)], START)


def test_a_claim_of_several_tells_when_one_was_replaced(store: Store, filled: Filling) -> None:
    """One transaction for a batch; one secret that is gone has all of it judged again."""
    add_keys(store, sample_key("other"))
    other = SecretId(sample_id("other"), 1)
    assert store.claim_uses([SecretId(KEY, 1), other], START)
    add_keys(store, sample_key("third"))
    third = SecretId(sample_id("third"), 1)
    assert not store.claim_uses([other, SecretId(KEY, 2), third], START)
    assert store.claim_uses([], START)


def test_a_claim_waits_for_a_change_that_may_issue_the_secret_again(
    store: Store, filled: Filling
) -> None:
    """Not for ever: after CLAIM_WAIT_S it raises, and nobody was told VALID."""
    with ThreadPoolExecutor(1) as another, store.write() as tx:
        assert tx.replace_unused_secret(
            replace(filled.key, secret_version=2), sample_secret(2, "next"), None
        )
        claim = another.submit(store.claim_uses, [SecretId(KEY, 1)], START)
        with pytest.raises(StoreLockedError):
            claim.result(30)


def test_a_secret_whose_replacement_failed_can_be_claimed(store: Store, filled: Filling) -> None:
    """And is not replaced any more."""
    with suppress(ZeroDivisionError), store.write() as tx:
        assert tx.replace_unused_secret(
            replace(filled.key, secret_version=2), sample_secret(2, "next"), None
        )
        raise ZeroDivisionError
    assert store.claim_uses([SecretId(KEY, 1)], START)
    assert not _reissued(store, filled.key)


def test_of_a_use_and_a_reissue_one_alone_succeeds(store: Store, filled: Filling) -> None:
    """However they meet: never both, and at most the use has to be judged again."""
    ends: Counter[tuple[bool, bool]] = Counter()
    with ThreadPoolExecutor(2) as threads:
        for number in range(60):
            key = sample_key(f"race{number:03}")
            add_keys(store, key)
            both = threading.Barrier(2)

            def use(key_id: str = key.id, both: threading.Barrier = both) -> bool:
                both.wait(30)
                return store.claim_uses([SecretId(key_id, 1)], START)

            def reissue(key: ApiKey = key, both: threading.Barrier = both) -> bool:
                both.wait(30)
                try:
                    return _reissued(store, key)
                except StoreLockedError:
                    return False  # nothing was changed; at SERIALIZABLE whoever is later fails

            claimed, reissued = threads.submit(use), threads.submit(reissue)
            ends[claimed.result(60), reissued.result(60)] += 1
    assert ends.keys() <= {(True, False), (False, True)}


def _write_key(store: Store, key: ApiKey) -> None:
    with store.write() as tx:
        tx.update_api_key(key)


def test_the_version_moves_with_every_commit(store: Store, filled: Filling) -> None:
    """What a thread remembered under one version is known to be old under the next.

    A store that has none has its callers looked up for every call.
    """
    seen = [store.caller_version()]
    for n in range(3):
        add_keys(store, sample_key(f"v{n}"))
        seen.append(store.caller_version())
    store.add_uses([Use(KEY, 1, START, 1)])
    assert len(set(seen)) == len(seen) or set(seen) == {None}
    assert store.caller_version() == store.caller_version()


def test_uses_touch_usage_columns_and_nothing_else(backend: Backend, filled: Filling) -> None:
    """Comparing every column of every table, only the four of usage move, of this key alone."""
    add_keys(backend.store, sample_key("bystander"))
    _rotated(backend.store, filled.key, at(DAY))
    before = backend.dump()
    backend.store.add_uses([Use(KEY, 2, at(SECOND), 3), Use(KEY, 1, at(2 * SECOND), 4)])
    after = backend.dump()
    assert changed_columns(before, after) == {"api_keys": USAGE_COLUMNS}
    bystander = [one for one in before["api_keys"] if one["id"] != KEY]
    assert [one for one in after["api_keys"] if one["id"] != KEY] == bystander
    key = read_key(backend.store)
    assert (key.use_count, key.last_used_time) == (7, at(2 * SECOND))
    assert key.old_secret_last_used_time == at(2 * SECOND)
    assert key.secret_used


def test_an_old_secrets_use_does_not_make_the_new_one_used(store: Store, filled: Filling) -> None:
    """Only a use of the current secret forbids minting it again."""
    _rotated(store, filled.key, at(DAY))
    store.add_uses([Use(KEY, 1, at(SECOND), 1)])
    key = read_key(store)
    assert not key.secret_used
    assert key.old_secret_last_used_time == at(SECOND)


def test_uses_only_move_forward(store: Store, filled: Filling) -> None:
    """An older use, written later, never moves the time back; its count is added."""
    store.add_uses([Use(KEY, 1, at(5 * SECOND), 1)])
    store.add_uses([Use(KEY, 1, at(SECOND), 1)])
    store.add_uses([Use(KEY, 1, at(-DAY), 1)])
    key = read_key(store)
    assert (key.last_used_time, key.use_count) == (at(5 * SECOND), 3)


def test_a_use_is_never_before_the_keys_creation(store: Store, filled: Filling) -> None:
    """A reporter with a slow clock does not make a key used before it was made."""
    store.add_uses([Use(KEY, 1, at(-DAY), 1)])
    assert read_key(store).last_used_time == START


def test_uses_of_unknown_and_revoked_keys_are_skipped(backend: Backend, filled: Filling) -> None:
    """They change nothing at all, and the others of the batch are written."""
    add_keys(backend.store, sample_key("dead", revoke_time=START))
    before = backend.dump()
    backend.store.add_uses([Use("nothing", 1, START, 1), Use(sample_id("dead"), 1, START, 1)])
    assert backend.dump() == before
    backend.store.add_uses([Use("nothing", 1, START, 1), Use(KEY, 1, START, 1)])
    assert read_key(backend.store).use_count == 1


BAD_USES = {
    "count too large": Use(KEY, 1, START, 2**63),
    "count negative": Use(KEY, 1, START, -5),
    "time too large": Use(KEY, 1, Micros(2**80), 1),
    "time negative": Use(KEY, 1, Micros(-(2**80)), 1),
    "version too large": Use(KEY, 2**80, START, 1),
    "id with a null": Use("\0" * 16, 1, START, 1),
    "id empty": Use("", 1, START, 1),
    "id of another case": Use(KEY.upper(), 1, START, 1),
}


@pytest.mark.parametrize("name", sorted(BAD_USES))
def test_one_bad_use_does_not_harm_the_others(store: Store, filled: Filling, name: str) -> None:
    """Good items before and after a bad one are written."""
    add_keys(store, sample_key("a"), sample_key("z"))
    store.add_uses(
        [
            Use(sample_id("a"), 1, at(SECOND), 2),
            BAD_USES[name],
            Use(sample_id("z"), 1, at(SECOND), 3),
        ]
    )
    assert read_key(store, sample_id("a")).use_count == 2
    assert read_key(store, sample_id("z")).use_count == 3
    assert 0 <= read_key(store).use_count <= 1_000_000


def test_a_count_never_overflows(store: Store, filled: Filling) -> None:
    """However often a key is used, its counter stays a number that can be read."""
    for _ in range(3):
        store.add_uses([Use(KEY, 1, START, 2**62)])
    assert 0 < read_key(store).use_count < 2**63


def test_a_whole_store_has_no_findings(store: Store, filled: Filling) -> None:
    """`check` is silent when all is well, for an empty log of changes and events too."""
    assert list(store.check()) == []
    with store.write() as tx:
        for seq in (1, 2, 3):
            tx.append_audit(sample_event(seq))
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    assert list(store.check()) == []


ONE_KEY = f"the account {ACCT} has 1 unrevoked keys"
CONTRADICTIONS = {
    "DELETE FROM users": "a row of api_keys points to a missing row of users",
    "DELETE FROM changes WHERE revision = 2": "changes are missing between the revisions 1 and 3",
    "DELETE FROM changes WHERE revision = 3": "the revision is 3 and the newest change is 2",
    "DELETE FROM changes": "the revision is 3 and the newest change is 0",
    "UPDATE installation SET revision = 2": "the revision is 2 and the newest change is 3",
    "DELETE FROM changes WHERE revision = 1": "changes before the revision 2 are missing",
    "DELETE FROM audit_events WHERE seq = 2": "audit events are missing between 1 and 3",
    "UPDATE key_counts SET unrevoked = 2": f"{ONE_KEY} and a count of 2",
    "DELETE FROM key_counts": f"{ONE_KEY} and a count of 0",
    "UPDATE users SET delete_time = 1": (
        f"key {KEY} is not revoked, and its owner {USER} is deleted"
    ),
    "CREATE VIEW planted AS SELECT 1": "the view planted is not of keybearer",
}


@pytest.mark.parametrize("damage", sorted(CONTRADICTIONS))
def test_rows_that_contradict_each_other_are_found(
    backend: Backend, filled: Filling, damage: str
) -> None:
    """Missing rows, changes and events, a head that is not the last change, a wrong count."""
    with backend.store.write() as tx:
        for seq in (1, 2, 3):
            tx.append_audit(sample_event(seq))
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    backend.execute(damage)
    assert CONTRADICTIONS[damage] in backend.store.check()


def test_a_backup_is_whole_while_others_write(
    backend: Backend, filled: Filling, tmp_path: Path
) -> None:
    """The copy is one moment of the store: as many changes as its revision says."""
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            with backend.store.write() as tx:
                tx.insert_api_key(sample_key(f"b{n:05}"), sample_secret())
                tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        backend.store.backup(tmp_path / "copy")
    finally:
        stop.set()
        thread.join()
    copy = backend.open_file(tmp_path / "copy")
    assert list(copy.check()) == []
    with copy.read() as reader:
        assert reader.key_count() == 1 + reader.installation().revision


def test_a_backup_replaces_no_file(store: Store, filled: Filling, tmp_path: Path) -> None:
    """A file that is there stays as it is."""
    target = tmp_path / "copy"
    target.write_text("precious", "ascii")
    with pytest.raises(FileExistsError):
        store.backup(target)
    assert target.read_text("ascii") == "precious"


def _write(store: Store) -> None:
    with store.write() as tx:
        tx.insert_account(sample_account("late"))


def _read(store: Store) -> None:
    with store.read() as reader:
        reader.account(EVERYWHERE, ACCT)


AFTER_CLOSE: dict[str, Callable[[Store], object]] = {
    "lookup": lambda store: store.lookup(KEY),
    "lookup_many": lambda store: store.lookup_many([KEY]),
    "caller_version": lambda store: store.caller_version(),
    "read": _read,
    "write": _write,
    "add_uses": lambda store: store.add_uses([Use(KEY, 1, START, 1)]),
    "changes_since": lambda store: store.changes_since(0, 1),
    "wait": lambda store: store.wait(0),
    "prune": lambda store: store.prune(START, 1),
    "check": lambda store: store.check(),
    "backup": lambda store: store.backup(Path("never")),
}


@pytest.mark.parametrize("name", sorted(AFTER_CLOSE))
def test_use_after_close_is_refused(
    store: Store, filled: Filling, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation of a closed store raises StoreClosedError, on a thread that had used it."""
    monkeypatch.chdir(tmp_path)
    _read(store)
    store.close()
    with pytest.raises(StoreClosedError):
        AFTER_CLOSE[name](store)


def test_use_after_close_is_refused_on_a_new_thread(store: Store, filled: Filling) -> None:
    """A thread that never used the store cannot open it again."""
    store.close()
    caught: list[BaseException] = []

    def look() -> None:
        try:
            store.lookup(KEY)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            caught.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert [type(one) for one in caught] == [StoreClosedError]


def test_a_reader_that_is_open_when_the_store_closes_is_told_so(
    store: Store, filled: Filling
) -> None:
    """Closing under an open snapshot ends it with the same error."""
    with pytest.raises(StoreClosedError), store.read() as reader:  # noqa: PT012 - the block is it
        store.close()
        reader.account(EVERYWHERE, ACCT)


def test_a_writer_that_is_open_when_the_store_closes_is_told_so(
    store: Store, filled: Filling
) -> None:
    """Closing under an open write ends it with the same error."""
    with pytest.raises(StoreClosedError), store.write() as tx:  # noqa: PT012 - the block is it
        store.close()
        tx.insert_account(sample_account("late"))


def test_closing_twice_is_harmless(store: Store, filled: Filling) -> None:
    """The second time does nothing."""
    store.close()
    store.close()


def test_what_was_written_is_there_after_reopening(backend: Backend) -> None:
    """A new process finds everything, and counts on where the old one stopped."""
    fill(backend.store)
    with backend.store.write() as tx:
        tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)
    before = backend.dump()
    backend.store.close()
    reopened = backend.open_another()
    assert backend.dump() == before
    with reopened.write() as tx:
        assert (
            tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START) == 2
        )
