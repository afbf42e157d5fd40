"""What a transaction reads and writes: the Reader and the Writer of the contract, in SQL.

The statements are those of every backend, with `?` for a value. What a database does in a way of
its own stands behind `Session`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, TypeVar

from keybearer._wire.enums import AuditAction, AuditTargetType, RevocationReason
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import AuditBase, BaseRow, CoveredRow, Head, Subject
from keybearer_service.domain.audit_event import ERASED, AuditRecord, PersonalText
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.identity import Identity, Invitation
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Installation,
    Invalidation,
    Moment,
    Pepper,
    RequestRecord,
    SecretId,
    StoredSecret,
    SubjectKind,
    User,
)
from keybearer_service.domain.session import Session as SignedIn
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import (
    NO_AUDIT_HEAD,
    AccountQuery,
    AuditQuery,
    Found,
    KeyQuery,
    News,
    Page,
    Reader,
    Revoked,
    StoreDamagedError,
    StoreUnusableError,
    UserQuery,
    Writer,
    lists,
    rows,
)
from keybearer_service.storage.lists import Listing, ListSession
from keybearer_service.storage.where import Where, within

T = TypeVar("T")


class Session(ListSession, Protocol):
    """An open transaction of one database."""

    inserted: str
    """A column of peppers that rises with every insert."""

    def run(self, sql: str, *values: object) -> int:
        """Execute a statement that changes rows; return how many."""
        ...

    def run_many(self, sql: str, values: Sequence[Sequence[object]]) -> None:
        """Execute a statement once for each of some values."""
        ...

    def submit(self, sql: str, *values: object) -> None:
        """Execute a statement that changes rows.

        Like `insert`, `replace` and `update` it may be executed later, before the next statement
        that reads or at the end of the transaction, and raises there what it fails with.
        """
        ...

    def settle(self) -> None:
        """Execute what was to be executed later."""
        ...

    def next_revision(self) -> int:
        """Advance the revision of the installation; return the new one."""
        ...

    def insert(self, table: str, row: rows.Columns) -> None:
        """Insert a row.

        Raises:
            StoreConflictError: A value that must be unique is taken.
        """
        ...

    def replace(self, table: str, row: rows.Columns, key: Sequence[str]) -> None:
        """Insert a row, or write it in the place of the one with the same key."""
        ...

    def update(self, table: str, row_id: str, columns: rows.Columns) -> None:
        """Write columns of the row with this id.

        Raises:
            StoreConflictError: A value that must be unique is taken.
        """
        ...

    def replace_unused(self, secret: SecretId, columns: rows.Columns) -> bool:
        """Write columns of a key whose current secret this is, when no use of it was recorded.

        Both are conditions of the write: see `Writer.replace_unused_secret`.
        """
        ...

    def forget_uses(self, key_ids: Sequence[str]) -> None:
        """Delete what is stored about the uses of deleted keys, outside their rows."""
        ...


REVISION: Final = "SELECT revision FROM installation"


def not_initialised() -> StoreUnusableError:
    """Return the error for a database without an installation."""
    return StoreUnusableError("the database was never initialised; run `init`")


def lookup_in(keys: str, epoch: str = "i.epoch") -> str:
    """Return the statement for a key with its owner, its account, the epoch and the revision.

    Args:
        keys: The `keys` of a session.
        epoch: The expression for the epoch.
    """
    return (
        f"SELECT {epoch}, i.revision, {rows.TOKEN_RECORD} FROM installation i"
        f" LEFT JOIN {keys} ON k.id = ? LEFT JOIN users u ON u.id = k.owner_id"
        " LEFT JOIN accounts a ON a.id = k.account_id"
    )


def changes_since(epoch: str = "i.epoch") -> str:
    """Return the statement for the changes of the next `?2` revisions after `?1`.

    Before each change stand the epoch, the head and the oldest revision.

    Args:
        epoch: The expression for the epoch.
    """
    return (
        f"SELECT {epoch}, i.revision,"
        " coalesce((SELECT min(revision) FROM changes), i.revision + 1),"
        # A bound of the range, since revisions have no gaps: a LIMIT costs 20 us.
        f" {rows.INVALIDATION} FROM installation i"
        " LEFT JOIN changes c ON c.revision > ?1 AND c.revision <= ?1 + ?2"
        " WHERE i.id = 1 ORDER BY c.revision"
    )


def news_of(found: Sequence[rows.Row]) -> News:
    """Return what the rows of `changes_since` hold; there is at least one."""
    epoch, head, oldest = found[0][:3]
    changes = [rows.invalidation_from_row(row[3:]) for row in found if row[3] is not None]
    return News(epoch, head, oldest, changes)


def record_and_moment(row: rows.Row | None) -> tuple[TokenRecord | None, Moment]:
    """Return what a row of `lookup_in` holds: the key with its owner and account, and the moment.

    Raises:
        StoreUnusableError: There is no row: the installation is missing.
        StoreDamagedError: The key's owner or account is missing.
    """
    if row is None:
        raise not_initialised()
    moment = Moment(row[0], row[1])
    return (None if row[2] is None else token_record(row[2:])), moment


_ADMIN: Final = Role.ADMIN.value
_OWNER_ROLE: Final = TokenRecord._fields.index("owner_role")
_ACCOUNT_IS_OPERATOR: Final = TokenRecord._fields.index("account_is_operator")


def token_record(columns: rows.Row) -> TokenRecord:
    """Return what a verdict about a key needs, from the columns of TOKEN_RECORD.

    Raises:
        StoreDamagedError: The key's owner or account is missing.
    """
    if columns[_OWNER_ROLE] is None or columns[_ACCOUNT_IS_OPERATOR] is None:
        raise StoreDamagedError(f"the owner or the account of the key {columns[0]} is missing")
    return TokenRecord._make(columns)


def reader_over(session: Session) -> Reader:
    """Return the Reader over an open transaction."""
    return _SqlReader(session)


def writer_over(session: Session) -> Writer:
    """Return the Writer over an open transaction that may write."""
    return _SqlWriter(session)


class _SqlReader:
    """See `reader_over`; the contract says what each method does."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def installation(self) -> Installation:
        row = self._one(f"SELECT {rows.INSTALLATION} FROM installation")
        if row is None:
            raise not_initialised()
        return rows.installation_from_row(row)

    def revision(self) -> int:
        row = self._one(REVISION)
        if row is None:
            raise not_initialised()
        return int(row[0])

    def lookup(self, key_id: str) -> TokenRecord | None:
        return record_and_moment(self._one(lookup_in(self._session.keys), key_id))[0]

    def account(self, scope: AccountScope, account_id: str) -> Account | None:
        if not scope.covers(account_id):
            return None
        row = self._one(f"SELECT {rows.ACCOUNT} FROM accounts WHERE id = ?", account_id)
        return None if row is None else rows.account_from_row(row)

    def user(self, scope: AccountScope, user_id: str) -> User | None:
        where = within(scope)
        where.add("id = ?", user_id)
        row = self._one(f"SELECT {rows.USER} FROM users{where}", *where.values)
        return None if row is None else rows.user_from_row(row)

    def user_by_email(self, scope: AccountScope, email: str) -> User | None:
        where = within(scope)
        where.add("email = ? AND delete_time IS NULL", email)
        row = self._one(f"SELECT {rows.USER} FROM users{where}", *where.values)
        return None if row is None else rows.user_from_row(row)

    def api_key(self, scope: AccountScope, key_id: str) -> ApiKey | None:
        where = within(scope, "k.account_id")
        where.add("k.id = ?", key_id)
        row = self._one(
            f"SELECT {rows.API_KEY} FROM {rows.api_key_source(self._session.keys)}{where}",
            *where.values,
        )
        return None if row is None else rows.api_key_from_row(row)

    def secrets_of(self, key_id: str) -> tuple[StoredSecret, StoredSecret | None]:
        row = self._one(
            "SELECT digest, pepper_id, secret_version, old_digest, old_pepper_id,"
            " old_secret_version FROM api_keys WHERE id = ?",
            key_id,
        )
        if row is None:
            raise KeyError(key_id)
        return StoredSecret(*row[:3]), None if row[3] is None else StoredSecret(*row[3:])

    def list_accounts(self, query: AccountQuery, page: Page) -> Found[Account]:
        return self._page(lists.accounts(self._session, query), page, rows.account_from_row)

    def list_users(self, query: UserQuery, page: Page) -> Found[User]:
        return self._page(lists.users(self._session, query), page, rows.user_from_row)

    def list_api_keys(self, query: KeyQuery, page: Page) -> Found[ApiKey]:
        return self._page(lists.keys(self._session, query), page, rows.api_key_from_row)

    def list_audit_events(self, query: AuditQuery, page: Page) -> Found[AuditRecord]:
        listing = lists.audit_events(self._session, query)
        return self._page(listing, page, rows.audit_record_from_row)

    def live_admins(self, scope: AccountScope) -> int:
        where = within(scope)
        where.add("delete_time IS NULL AND role = 3")
        return self._count(f"SELECT count(*) FROM users{where}", *where.values)

    def unrevoked_key_count(self, account_id: str) -> int:
        return self._count("SELECT unrevoked FROM key_counts WHERE account_id = ?", account_id)

    def live_user_count(self, account_id: str) -> int:
        return self._count(
            "SELECT count(*) FROM users WHERE account_id = ? AND delete_time IS NULL", account_id
        )

    def unrevoked_keys(
        self, *, owner_id: str = "", created_by: str = "", not_owner_id: str = "", limit: int
    ) -> Revoked:
        where = _keys_of(owner_id, created_by, not_owner_id)
        count = self._count(f"SELECT count(*) FROM api_keys{where}", *where.values)
        found = self._all(f"SELECT id FROM api_keys{where} LIMIT ?", *where.values, limit)
        return Revoked(count=count, ids=tuple(row[0] for row in found))

    def request_record(self, user_id: str, request_id: str) -> RequestRecord | None:
        row = self._one(
            "SELECT user_id, request_id, body_hash, attempt, key_id, secret_version, create_time"
            " FROM request_records WHERE user_id = ? AND request_id = ?",
            user_id,
            request_id,
        )
        return None if row is None else rows.request_record_from_row(row)

    def session(self, session_id: str) -> SignedIn | None:
        row = self._one(f"SELECT {rows.SESSION} FROM sessions WHERE id = ?", session_id)
        return None if row is None else rows.session_from_row(row)

    def sessions_at(
        self, issuer: str, *, subject: str = "", provider_session: str = ""
    ) -> Sequence[SignedIn]:
        where = Where("end_time IS NULL AND issuer = ?", issuer)
        if subject:
            where.add("subject = ?", subject)
        if provider_session:
            where.add("provider_session = ?", provider_session)
        if not issuer or not (subject or provider_session):
            return ()
        found = self._all(
            f"SELECT {rows.SESSION} FROM sessions{where} ORDER BY create_time, id", *where.values
        )
        return [rows.session_from_row(row) for row in found]

    def person_record(self, user_id: str) -> TokenRecord | None:
        row = self._one(
            f"SELECT {rows.PERSON} FROM users u JOIN accounts a ON a.id = u.account_id"
            " WHERE u.id = ?",
            user_id,
        )
        return None if row is None else rows.person_record(row)

    def identity(self, issuer: str, subject: str) -> Identity | None:
        row = self._one(
            f"SELECT {rows.IDENTITY} FROM identities WHERE issuer = ? AND subject = ?",
            issuer,
            subject,
        )
        return None if row is None else rows.identity_from_row(row)

    def identity_of(self, user_id: str) -> Identity | None:
        row = self._one(f"SELECT {rows.IDENTITY} FROM identities WHERE user_id = ?", user_id)
        return None if row is None else rows.identity_from_row(row)

    def invitation(self, invitation_id: str) -> Invitation | None:
        row = self._one(f"SELECT {rows.INVITATION} FROM invitations WHERE id = ?", invitation_id)
        return None if row is None else rows.invitation_from_row(row)

    def invitation_of(self, user_id: str) -> Invitation | None:
        row = self._one(f"SELECT {rows.INVITATION} FROM invitations WHERE user_id = ?", user_id)
        return None if row is None else rows.invitation_from_row(row)

    def has_admin_key(
        self, account_id: str, now: Micros, *, but: Collection[str] = (), but_of: str = ""
    ) -> bool:
        found = self._all(
            "SELECT k.id FROM api_keys k JOIN users u ON u.id = k.owner_id"
            # The number stands in the statement, as in the index that it is to use.
            f" WHERE k.account_id = ? AND k.revoke_time IS NULL AND k.role = {_ADMIN}"
            " AND k.disable_time IS NULL AND (k.expire_time IS NULL OR k.expire_time > ?)"
            " AND k.owner_id <> ?"
            f" AND u.role = {_ADMIN} AND u.delete_time IS NULL LIMIT ?",
            account_id,
            now,
            but_of,
            len(but) + 1,
        )
        return any(row[0] not in but for row in found)

    def has_admin_identity(self, account_id: str, issuer: str, *, but: str = "") -> bool:
        row = self._one(
            "SELECT 1 FROM users u JOIN identities i ON i.user_id = u.id"
            f" WHERE u.account_id = ? AND u.role = {_ADMIN} AND u.delete_time IS NULL"
            " AND i.issuer = ? AND u.id <> ? LIMIT 1",
            account_id,
            issuer,
            but,
        )
        return row is not None

    def sessions(
        self, scope: AccountScope, *, user_id: str = "", since: Micros, limit: int
    ) -> Sequence[SignedIn]:
        where = Where("create_time >= ? AND end_time IS NULL", since) + within(scope)
        if user_id:
            where.add("user_id = ?", user_id)
        found = self._all(
            f"SELECT {rows.SESSION} FROM sessions{where} ORDER BY create_time DESC, id LIMIT ?",
            *where.values,
            limit,
        )
        return [rows.session_from_row(row) for row in found]

    def peppers(self) -> Sequence[Pepper]:
        found = self._all(
            f"SELECT {rows.PEPPER} FROM peppers"
            f" ORDER BY create_time DESC, {self._session.inserted} DESC"
        )
        return [rows.pepper_from_row(row) for row in found]

    def live_secrets(self, pepper_id: str, now: Micros) -> int:
        return self._count(
            "SELECT count(*) FILTER (WHERE pepper_id = ?1)"
            " + count(*) FILTER (WHERE old_pepper_id = ?1 AND overlap_end_time > ?2) FROM api_keys"
            " WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > ?2)"
            " AND (pepper_id = ?1 OR old_pepper_id = ?1)",
            pepper_id,
            now,
        )

    def audit_head(self) -> tuple[int, bytes]:
        row = self._one("SELECT seq, hash FROM audit_events ORDER BY seq DESC LIMIT 1")
        return NO_AUDIT_HEAD if row is None else (row[0], row[1])

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditRecord]:
        found = self._all(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events WHERE seq > ? ORDER BY seq LIMIT ?",
            after_seq,
            limit,
        )
        return [rows.audit_record_from_row(row) for row in found]

    def first_event_since(self, time: Micros) -> int | None:
        row = self._one("SELECT min(seq) FROM audit_events WHERE time >= ?", time)
        return None if row is None else row[0]

    def audit_base(self) -> AuditBase | None:
        row = self._one(f"SELECT {rows.BASE} FROM audit_base")
        return None if row is None else AuditBase._make(row)

    def base_row(self, kind: int, row_id: str) -> BaseRow | None:
        row = self._one(
            f"SELECT {rows.BASE_ROW} FROM audit_base_rows WHERE kind = ? AND id = ?", kind, row_id
        )
        return None if row is None else BaseRow._make(row)

    def base_rows(self, after: tuple[int, str], limit: int) -> Sequence[BaseRow]:
        found = self._all(
            f"SELECT {rows.BASE_ROW} FROM audit_base_rows WHERE (kind, id) > (?, ?)"
            " ORDER BY kind, id LIMIT ?",
            *after,
            limit,
        )
        return [BaseRow._make(row) for row in found]

    def pruning_event(self, key_id: str) -> AuditRecord | None:
        row = self._one(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events WHERE action = ? AND seq IN"
            " (SELECT seq FROM audit_event_subjects WHERE subject_id = ?)"
            " ORDER BY seq DESC LIMIT 1",
            int(AuditAction.API_KEYS_PRUNED),
            key_id,
        )
        return None if row is None else rows.audit_record_from_row(row)

    def personal_texts(self, digests: Sequence[bytes]) -> dict[bytes, PersonalText]:
        select = f"SELECT {rows.PERSONAL_TEXT} FROM personal_texts WHERE digest = ?"
        found = [self._one(select, digest) for digest in dict.fromkeys(digests)]
        texts = [rows.personal_text_from_row(row) for row in found if row is not None]
        return {text.digest: text for text in texts}

    def personal_digest(self, user_id: str, text: str) -> bytes | None:
        row = self._one(
            "SELECT digest FROM personal_texts WHERE user_id = ? AND text = ?", user_id, text
        )
        return None if row is None else row[0]

    def personal_texts_of(self, user_id: str) -> Sequence[PersonalText]:
        found = self._all(
            f"SELECT {rows.PERSONAL_TEXT} FROM personal_texts WHERE user_id = ? ORDER BY digest",
            user_id,
        )
        return [rows.personal_text_from_row(row) for row in found]

    def events_with_texts(self, user: User) -> int:
        return self._count(
            "SELECT count(*) FROM audit_events WHERE personal_digest IS NULL AND"
            " (actor_user_id = ? OR target_id = ?"
            f" OR {self._contains('changes')})",
            user.id,
            user.id,
            user.email,
        )

    def covered_row(self, subject: Subject) -> CoveredRow | None:
        for table, by in _TABLES_OF.get(subject.kind, ()):
            columns = ", ".join(rows.COVERED[table])
            row = self._one(f"SELECT {columns} FROM {table} WHERE {by} = ?", subject.id)
            if row is not None:
                return rows.covered_row(table, row)
        return None

    def covered_rows(self, table: str, after_id: str, limit: int) -> Sequence[CoveredRow]:
        columns = ", ".join(rows.COVERED[table])
        found = self._all(
            f"SELECT {columns} FROM {table} WHERE id > ? ORDER BY id LIMIT ?", after_id, limit
        )
        return [rows.covered_row(table, row) for row in found]

    def last_event(self, subject: Subject, action: AuditAction | None = None) -> AuditRecord | None:
        where = Where("target_id = ? AND target_type = ?", subject.id, int(subject.kind))
        if action is not None:
            where.add("action = ?", int(action))
        row = self._one(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events{where} ORDER BY seq DESC LIMIT 1",
            *where.values,
        )
        return None if row is None else rows.audit_record_from_row(row)

    def creation_event(self, account_id: str) -> AuditRecord | None:
        where = Where("target_id = ?", account_id)
        where.add_any("action", (AuditAction.ACCOUNT_CREATED, AuditAction.INSTALLATION_CREATED))
        row = self._one(
            f"SELECT {rows.AUDIT_EVENT} FROM audit_events{where} ORDER BY seq LIMIT 1",
            *where.values,
        )
        return None if row is None else rows.audit_record_from_row(row)

    def targets_without_rows(self, after_seq: int, until_seq: int) -> Sequence[Subject]:
        found: list[Subject] = []
        for kind, table in _TABLES_OF_ROWS.items():
            gone = self._all(
                "SELECT DISTINCT target_id FROM audit_events"
                " WHERE seq > ? AND seq <= ? AND target_type = ?"
                f" AND NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.id = target_id)",
                after_seq,
                until_seq,
                int(kind),
            )
            found += [Subject(kind, row[0]) for row in gone]
        return found

    def head(self) -> Head | None:
        row = self._one(f"SELECT {rows.HEAD} FROM head")
        return None if row is None else rows.head_from_row(row)

    def key_count(self) -> int:
        return self._count("SELECT count(*) FROM api_keys")

    def has_more_keys_than(self, scope: AccountScope, count: int) -> bool:
        row = self._one(
            "SELECT 1 FROM api_keys WHERE account_id = ? LIMIT 1 OFFSET ?", scope.only, count
        )
        return row is not None

    def live_keys(self, now: Micros, expiring_by: Sequence[Micros]) -> Sequence[int]:
        counts = ", ".join("count(*) FILTER (WHERE expire_time <= ?)" for _ in expiring_by)
        return self._all(
            f"SELECT {counts}, count(expire_time), count(*) FROM api_keys"
            " WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > ?)",
            *expiring_by,
            now,
        )[0]

    def _one(self, sql: str, *values: object) -> rows.Row | None:
        return self._session.one(sql, *values)

    def _all(self, sql: str, *values: object) -> list[rows.Row]:
        return self._session.all(sql, *values)

    def _contains(self, column: str) -> str:
        return self._session.contains.format(column=column)

    def _count(self, sql: str, *values: object) -> int:
        row = self._one(sql, *values)
        return 0 if row is None else int(row[0])

    def _page(self, listing: Listing, page: Page, read: Callable[[rows.Row], T]) -> Found[T]:
        return lists.read_page(self._session, listing, page, read)


class _SqlWriter(_SqlReader):
    """See `writer_over`."""

    def put_installation(self, installation: Installation) -> None:
        self._session.replace("installation", rows.row_from_installation(installation), key=("id",))

    def insert_account(self, account: Account) -> None:
        self._session.insert("accounts", rows.row_from_account(account))

    def update_account(self, account: Account) -> None:
        self._session.update("accounts", account.id, rows.changeable_account_columns(account))

    def insert_user(self, user: User) -> None:
        self._session.insert("users", rows.row_from_user(user))
        self._session.settle()

    def update_user(self, user: User) -> None:
        self._session.update("users", user.id, rows.changeable_user_columns(user))
        self._session.settle()

    def insert_api_key(self, key: ApiKey, secret: StoredSecret) -> None:
        self._session.insert("api_keys", rows.row_from_new_api_key(key, secret))

    def update_api_key(self, key: ApiKey) -> None:
        self._session.update("api_keys", key.id, rows.administrative_columns(key))
        self._erase_dead_secret(key)

    def replace_secret(self, key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> None:
        self._session.update("api_keys", key.id, rows.secret_columns(key, current, old))

    def replace_unused_secret(
        self, key: ApiKey, current: StoredSecret, old: StoredSecret | None
    ) -> bool:
        before = SecretId(key.id, key.secret_version - 1)
        return self._session.replace_unused(before, rows.secret_columns(key, current, old))

    def revoke_keys(
        self,
        *,
        owner_id: str = "",
        created_by: str = "",
        not_owner_id: str = "",
        reason: RevocationReason,
        revoked_by: str,
        now: Micros,
    ) -> Sequence[CoveredRow]:
        where = _keys_of(owner_id, created_by, not_owner_id)
        found = self._all(
            "UPDATE api_keys SET revoke_time = ?, update_time = ?, revoked_by = ?,"
            f" revocation_reason = ?, row_version = row_version + 1, {_ERASE_DEAD_SECRET}{where}"
            f" RETURNING {', '.join(rows.COVERED['api_keys'])}",
            now,
            now,
            revoked_by,
            int(reason),
            *[now] * len(rows.OLD_SECRET),
            *where.values,
        )
        return _key_rows(found)

    def delete_revoked_keys(self, key_ids: Sequence[str]) -> Sequence[CoveredRow]:
        if not key_ids:
            return []
        found = self._all(
            "DELETE FROM api_keys WHERE revoke_time IS NOT NULL"
            f" AND id IN ({', '.join('?' * len(key_ids))})"
            f" RETURNING {', '.join(rows.COVERED['api_keys'])}",
            *key_ids,
        )
        deleted = _key_rows(found)
        self._session.forget_uses([str(row.columns["id"]) for row in deleted])
        return deleted

    def append_change(
        self, *, kind: SubjectKind, subject_id: str, account_id: str, now: Micros
    ) -> int:
        revision = self._session.next_revision()
        change = Invalidation(revision, now, account_id, kind, subject_id)
        self._session.insert("changes", rows.row_from_invalidation(change))
        return revision

    def append_audit(self, record: AuditRecord, found_by: Sequence[str] = ()) -> None:
        self._session.insert("audit_events", rows.row_from_audit_record(record))
        self._session.run_many(
            "INSERT INTO audit_event_subjects (subject_id, seq) VALUES (?, ?)",
            [(subject_id, record.seq) for subject_id in found_by],
        )

    def delete_audit_events(self, until_seq: int) -> int:
        self._session.submit("DELETE FROM audit_event_subjects WHERE seq <= ?", until_seq)
        return self._session.run("DELETE FROM audit_events WHERE seq <= ?", until_seq)

    def put_audit_base(self, base: AuditBase) -> None:
        self._session.replace("audit_base", rows.row_from_base(base), key=("id",))

    def put_base_row(self, row: BaseRow) -> None:
        self._session.replace("audit_base_rows", row._asdict(), key=("kind", "id"))

    def delete_base_row(self, kind: int, row_id: str) -> None:
        self._session.submit("DELETE FROM audit_base_rows WHERE kind = ? AND id = ?", kind, row_id)

    def insert_personal_text(self, text: PersonalText) -> None:
        self._session.insert("personal_texts", rows.row_from_personal_text(text))

    def erase_personal_text(self, digest: bytes, erasure: bytes) -> None:
        self._session.submit(
            "UPDATE personal_texts SET salt = NULL, text = NULL, erasure = ? WHERE digest = ?",
            erasure,
            digest,
        )

    def erase_user(self, user_id: str, now: Micros) -> None:
        self._session.submit(
            "UPDATE users SET email = ?, display_name = ?, update_time = ?,"
            " row_version = row_version + 1 WHERE id = ?",
            ERASED,
            ERASED,
            now,
            user_id,
        )

    def put_head(self, head: Head) -> None:
        self._session.replace("head", rows.row_from_head(head), key=("id",))

    def put_request_record(self, record: RequestRecord) -> None:
        self._session.replace(
            "request_records", rows.row_from_request_record(record), key=("user_id", "request_id")
        )

    def insert_session(self, session: SignedIn) -> None:
        self._session.insert("sessions", rows.row_from_session(session))

    def see_session(self, session_id: str, now: Micros) -> None:
        self._session.submit(
            "UPDATE sessions SET last_seen_time = ? WHERE id = ? AND last_seen_time < ?",
            now,
            session_id,
            now,
        )

    def end_session(self, session_id: str, now: Micros) -> None:
        self._session.submit(
            "UPDATE sessions SET end_time = ? WHERE id = ? AND end_time IS NULL", now, session_id
        )

    def insert_identity(self, identity: Identity) -> None:
        self._session.insert("identities", rows.row_from_identity(identity))

    def delete_identity(self, user_id: str) -> None:
        self._session.run("DELETE FROM identities WHERE user_id = ?", user_id)

    def put_invitation(self, invitation: Invitation) -> None:
        self.delete_invitation(invitation.user_id)
        self._session.insert("invitations", rows.row_from_invitation(invitation))

    def delete_invitation(self, user_id: str) -> None:
        self._session.run("DELETE FROM invitations WHERE user_id = ?", user_id)

    def use_once(self, kind: str, value: str, *, now: Micros, until: Micros) -> bool:
        used = self._one("SELECT until FROM used_values WHERE kind = ? AND value = ?", kind, value)
        if used is not None and used[0] > now:
            return False
        row = {"kind": kind, "value": value, "until": until}
        self._session.replace("used_values", row, key=("kind", "value"))
        return True

    def insert_pepper(self, pepper: Pepper) -> None:
        self._session.insert("peppers", rows.row_from_pepper(pepper))

    def retire_pepper(self, pepper_id: str, now: Micros) -> None:
        self._session.update("peppers", pepper_id, {"retire_time": now})

    def activate_pepper(self, pepper_id: str) -> None:
        self._session.update("peppers", pepper_id, {"is_announced": 0})

    def _erase_dead_secret(self, key: ApiKey) -> None:
        if not key.overlaps_at(key.update_time):
            self._session.update("api_keys", key.id, dict.fromkeys(rows.OLD_SECRET))


_ERASE_DEAD_SECRET: Final = ", ".join(
    f"{column} = CASE WHEN overlap_end_time > ? THEN {column} END" for column in rows.OLD_SECRET
)


_TABLES_OF_ROWS: Final = {
    AuditTargetType.ACCOUNT: "accounts",
    AuditTargetType.USER: "users",
    AuditTargetType.API_KEY: "api_keys",
}
_TABLES_OF: Final = {
    **{kind: ((table, "id"),) for kind, table in _TABLES_OF_ROWS.items()},
    AuditTargetType.INSTALLATION: (("installation", "operator_account_id"), ("peppers", "id")),
}
"""Where the row of a subject stands, and the column that names it."""


def _key_rows(found: Sequence[rows.Row]) -> list[CoveredRow]:
    keys = [rows.covered_row("api_keys", row) for row in found]
    return sorted(keys, key=lambda row: str(row.columns["id"]))


def _keys_of(owner_id: str, created_by: str, not_owner_id: str) -> Where:
    where = Where("revoke_time IS NULL")
    if owner_id:
        where.add("owner_id = ?", owner_id)
    if created_by:
        where.add("created_by = ?", created_by)
    if not_owner_id:
        where.add("owner_id <> ?", not_owner_id)
    return where
