"""How lists find their rows, with a bounded number of looks for each page.

A list walks rows in its order and tests its filters on the way, on at most `Page.looked_at` of
them. When these do not fill the page, and indexes hold every row that can match among as few, those
are read and sorted. Otherwise the page ends early.

Where the database takes it, statements name their indexes: SQLite has no statistics to choose by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from keybearer._wire.enums import ApiKeyState
from keybearer_service.storage import (
    AccountQuery,
    AuditQuery,
    Found,
    KeyQuery,
    Page,
    SortKey,
    UserQuery,
    rows,
)
from keybearer_service.storage.where import Where, within

T = TypeVar("T")


class ListSession(Protocol):
    """What lists need of an open transaction."""

    keys: str
    """What stands for the keys with their usage in FROM, as `k`."""
    contains: str
    """The condition that a column contains a value, whatever the case of ASCII letters."""
    expire_order: str
    """What keys are sorted by in the order of their expiry, NEVER for those without."""
    last_used_order: str
    """What keys are sorted by in the order of their last use, UNUSED for those without."""
    row: str
    """The column that names the place of a row."""
    by_index: str
    """The hint to read a table by an index; empty when the database chooses well by itself."""
    by_row: str
    """The hint to read a table by the places of rows."""

    def one(self, sql: str, *values: object) -> rows.Row | None:
        """Return the first row of a statement; None when there is none."""
        ...

    def all(self, sql: str, *values: object) -> list[rows.Row]:
        """Return the rows of a statement."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that an index holds together."""

    table: str
    place: str
    """The column that names the place of a row."""
    index: str
    where: Where

    def select(self, session: ListSession, what: str = "") -> str:
        """Return the statement that reads something of them, or their places."""
        hint = session.by_index.format(index=self.index) if self.index else ""
        return f"SELECT {what or self.place} FROM {self.table} {hint}{self.where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list, as statements are made of it."""

    columns: str
    source: str
    """The table with its alias; an index is named behind it."""
    joins: str = ""
    place: str
    """The column that names the place of a row."""
    index: str
    """Has the order of the list among the rows of `within`; empty where no index has."""
    within: Where
    """Which rows of the index are looked at: those with these values."""
    low: Where = field(default_factory=Where)
    high: Where = field(default_factory=Where)
    """And with a sorted value between these."""
    filters: Where
    """What is tested on each of them."""
    few: Sequence[Sequence[Part]] = ()
    """Each: parts that together hold every row that matches."""
    is_rare: bool = False
    """Whether these are tried first: few rows match, or no index has the order of the list."""
    sort: str
    tie: str
    descending: bool = True

    def source_with(self, hint: str) -> str:
        """Return the FROM clause with a hint how the first table is read."""
        return f"FROM {self.source} {hint} {self.joins}"

    @property
    def order(self) -> str:
        """The ORDER BY clause."""
        direction = "DESC" if self.descending else "ASC"
        return f"ORDER BY {self.sort} {direction}, {self.tie} {direction}"

    def looked_at(self, after: SortKey | None, end: SortKey | None = None) -> Where:
        """Return the condition that a row of the index is looked at.

        With one condition for each end: of two, SQLite begins at whichever it likes, and goes
        through all rows between them.

        Args:
            after: Where the page before ended.
            end: Where this page ends at the latest.
        """
        first, last = (self.high, self.low) if self.descending else (self.low, self.high)
        start = self._compared("<" if self.descending else ">", after) or first
        stop = self._compared(">=" if self.descending else "<=", end) or last
        return self.within + start + stop

    def tested(self, after: SortKey | None) -> Where:
        """Return every condition, for rows that do not come from the index."""
        start = self._compared("<" if self.descending else ">", after)
        return self.within + self.low + self.high + self.filters + start

    def _compared(self, operator: str, position: SortKey | None) -> Where:
        if position is None:
            return Where()
        return Where(f"({self.sort}, {self.tie}) {operator} (?, ?)", *position)


def read_page(
    session: ListSession, listing: Listing, page: Page, read: Callable[[rows.Row], T]
) -> Found[T]:
    """Return a page of a list.

    Args:
        session: The open transaction.
        listing: The list.
        page: The wanted part of it.
        read: Makes of a row what it stands for.
    """
    found = _sorted(session, listing, page) if listing.is_rare else None
    rest = None
    if found is None:
        end = _end_of_looks(session, listing, page) if listing.filters else None
        found = _walked(session, listing, page, end)
        rest = None if len(found) == page.limit else end
    if rest is not None and not listing.is_rare:
        few = _sorted(session, listing, page)
        found, rest = (found, rest) if few is None else (few, None)
    return Found([read(row) for row in found], rest)


def _end_of_looks(session: ListSession, listing: Listing, page: Page) -> SortKey | None:
    """Return where the last row is that may be looked at; None when the list ends before it."""
    where = listing.looked_at(page.after)
    row = session.one(
        f"SELECT {listing.sort}, {listing.tie} {_walk(session, listing)}{where} {listing.order}"
        " LIMIT 1 OFFSET ?",
        *where.values,
        page.looked_at - 1,
    )
    return None if row is None else (row[0], row[1])


def _walked(
    session: ListSession, listing: Listing, page: Page, end: SortKey | None
) -> list[rows.Row]:
    where = listing.looked_at(page.after, end) + listing.filters
    return session.all(
        f"SELECT {listing.columns} {_walk(session, listing)}{where} {listing.order} LIMIT ?",
        *where.values,
        page.limit,
    )


def _walk(session: ListSession, listing: Listing) -> str:
    hint = session.by_index.format(index=listing.index) if listing.index else ""
    return listing.source_with(hint)


def _sorted(session: ListSession, listing: Listing, page: Page) -> list[rows.Row] | None:
    """Return a page out of few rows; None when there are more than may be looked at."""
    parts = next((few for few in listing.few if _is_few(session, few, page)), None)
    if parts is None:
        return None
    places = " UNION ALL ".join(part.select(session) for part in parts)
    where = Where(f"{listing.place} IN ({places})", *_values(parts)) + listing.tested(page.after)
    return session.all(
        f"SELECT {listing.columns} {listing.source_with(session.by_row)}{where} {listing.order}"
        " LIMIT ?",
        *where.values,
        page.limit,
    )


def _is_few(session: ListSession, parts: Sequence[Part], page: Page) -> bool:
    if not session.by_index:
        return False
    held = " UNION ALL ".join(part.select(session, "1") for part in parts)
    row = session.one(
        f"SELECT count(*) FROM ({held} LIMIT ?) AS held", *_values(parts), page.looked_at + 1
    )
    return row is not None and row[0] <= page.looked_at


def _values(parts: Sequence[Part]) -> list[object]:
    return [value for part in parts for value in part.where.values]


# --- accounts and users ---------------------------------------------------------------------------


def accounts(session: ListSession, query: AccountQuery) -> Listing:
    """Return the list of accounts that a query means."""
    filters = within(query.scope, "id")
    if query.name_contains:
        filters.add(session.contains.format(column="name"), query.name_contains)
    return Listing(
        columns=rows.ACCOUNT,
        source="accounts",
        place=session.row,
        index="accounts_by_create_time",
        within=Where(),
        filters=filters,
        sort="create_time",
        tie="id",
    )


def users(session: ListSession, query: UserQuery) -> Listing:
    """Return the list of users that a query means."""
    account = within(query.scope)
    filters = Where()
    few: list[list[Part]] = []
    if not query.show_deleted:
        live = Where("delete_time IS NULL")
        filters += live
        roles = [Where("role = ?", int(role)) for role in query.roles] or [Where()]
        few.append(
            [Part("users", session.row, "users_by_role", account + live + one) for one in roles]
        )
    filters.add_any("role", query.roles)
    filters.add_any("type", query.types)
    if query.email_contains:
        filters.add(session.contains.format(column="email"), query.email_contains)
    return Listing(
        columns=rows.USER,
        source="users",
        place=session.row,
        index="users_by_create_time" if account else "",
        within=account,
        filters=filters,
        few=few if account else (),
        sort="create_time",
        tie="id",
    )


# --- keys -----------------------------------------------------------------------------------------

_BY_OWNER: Final = "api_keys_by_owner_and_create_time"
_INDEXES: Final = {
    "create_time": "api_keys_by_create_time",
    "expire_time": "api_keys_by_expire_order",
    "name": "api_keys_by_name",
    "last_used_time": "api_keys_by_last_used_order",
}
"""The index of each order."""
_STATE_TESTS: Final = {
    ApiKeyState.REVOKED: "k.revoke_time IS NOT NULL",
    ApiKeyState.EXPIRED: "(k.revoke_time IS NULL AND k.expire_time <= ?)",
    ApiKeyState.DISABLED: "(k.revoke_time IS NULL AND k.disable_time IS NOT NULL"
    " AND (k.expire_time IS NULL OR k.expire_time > ?))",
    ApiKeyState.ACTIVE: "(k.revoke_time IS NULL AND k.disable_time IS NULL"
    " AND (k.expire_time IS NULL OR k.expire_time > ?))",
}
_STATE_PARTS: Final = {
    ApiKeyState.REVOKED: ("api_keys_revoked", "revoke_time IS NOT NULL"),
    ApiKeyState.EXPIRED: (
        "api_keys_unrevoked_by_expire_order",
        "revoke_time IS NULL AND expire_order <= ?",
    ),
    ApiKeyState.DISABLED: (
        "api_keys_disabled",
        "revoke_time IS NULL AND disable_time IS NOT NULL",
    ),
    ApiKeyState.ACTIVE: (
        "api_keys_unrevoked_by_expire_order",
        "revoke_time IS NULL AND expire_order > ?",
    ),
}
"""The index that holds the keys of each state, with others at most that the test leaves out."""


def keys(session: ListSession, query: KeyQuery) -> Listing:
    """Return the list of keys that a query means."""
    index = _INDEXES[query.order_by]
    sort = {
        "create_time": "k.create_time",
        "expire_time": session.expire_order,
        "name": "k.name",
        "last_used_time": session.last_used_order,
    }[query.order_by]
    account = within(query.scope, "k.account_id")
    looked_at, high, filters = account, Where(), Where()
    if query.owner_id and query.order_by == "create_time":
        index = _BY_OWNER
        looked_at = account + Where("k.owner_id = ?", query.owner_id)
    elif query.owner_id:
        filters.add("k.owner_id = ?", query.owner_id)
    if query.states:
        tests = [_STATE_TESTS[state] for state in query.states]
        filters.add(
            f"({' OR '.join(tests)})",
            *(query.now for test in tests for _ in range(test.count("?"))),
        )
    if query.name_contains:
        filters.add(session.contains.format(column="k.name"), query.name_contains)
    if query.expires_before is not None:
        expiring = Where(f"{session.expire_order} < ?", query.expires_before)
        if query.order_by == "expire_time":
            high = expiring
        else:
            filters += expiring
    if query.unused_since is not None:
        filters.add("coalesce(k.last_used_time, k.create_time) < ?", query.unused_since)
        if query.order_by in ("create_time", "last_used_time"):
            # It follows from the filter, and shortens the way.
            high = Where(f"{sort} < ?", query.unused_since)
    return Listing(
        columns=rows.API_KEY,
        source=session.keys,
        joins=rows.OWNER_AND_CREATOR,
        place=f"k.{session.row}",
        index=index if account else "",
        within=looked_at,
        high=high,
        filters=filters,
        few=list(_few_keys(session, query)) if account else (),
        sort=sort,
        tie="k.id",
        descending=query.descending,
    )


def _few_keys(session: ListSession, query: KeyQuery) -> Iterator[list[Part]]:
    account = within(query.scope)

    def part(index: str, where: Where) -> Part:
        return Part("api_keys", session.row, index, account + where)

    if query.owner_id:
        yield [part(_BY_OWNER, Where("owner_id = ?", query.owner_id))]
    if query.states:
        found = [_STATE_PARTS[state] for state in query.states]
        yield [part(index, Where(test, *[query.now] * test.count("?"))) for index, test in found]
    if query.unused_since is not None:
        never = Where("last_used_time IS NULL AND create_time < ?", query.unused_since)
        before = Where("last_used_order >= 0 AND last_used_order < ?", query.unused_since)
        yield [
            part("api_keys_never_used", never),
            part("api_keys_by_last_used_order", before),
        ]
    if query.expires_before is not None:
        expiring = Where("expire_order < ?", query.expires_before)
        yield [part("api_keys_by_expire_order", expiring)]


# --- audit events ---------------------------------------------------------------------------------

_BY_TIME: Final = "audit_events_by_time"
_BY_ACCOUNT: Final = "audit_events_by_account_and_time"
_BY_TARGET: Final = "audit_events_by_target_and_time"
_BY_ACTION: Final = "audit_events_by_action_and_time"
_BY_ACTOR: Final = (
    ("audit_events_by_actor_key_and_time", "actor_key_id = ?"),
    ("audit_events_by_actor_user_and_time", "actor_user_id = ?"),
)


def audit_events(session: ListSession, query: AuditQuery) -> Listing:
    """Return the list of audit events that a query means."""
    account = within(query.scope)
    low = Where() if query.after is None else Where("time > ?", query.after)
    high = Where() if query.before is None else Where("time < ?", query.before)
    actions = Where()
    actions.add_any("action", query.actions)
    actor = Where()
    if query.actor_id:
        actor.add("(actor_key_id = ? OR actor_user_id = ?)", query.actor_id, query.actor_id)
    index, looked_at, filters = _BY_ACCOUNT, Where(), actor + actions
    if not account:
        index = _BY_TIME
    elif query.target_id:
        """What else an event is about has no order by time: few are sorted."""
    elif query.actor_id:
        (index, looked_at), filters = _actor_of(session, query.actor_id, account), actions
    elif len(query.actions) == 1:
        index, looked_at, filters = _BY_ACTION, actions, Where()
    if query.target_id:
        filters += Where(_IS_ABOUT, query.target_id, query.target_id)
    return Listing(
        columns=rows.AUDIT_EVENT,
        source="audit_events",
        place="seq",
        index=index,
        within=looked_at + account,
        low=low,
        high=high,
        filters=filters,
        few=list(_few_events(query, account + low + high)),
        is_rare=bool(query.target_id),
        sort="time",
        tie="seq",
    )


_IS_ABOUT: Final = (
    "(target_id = ? OR seq IN (SELECT seq FROM audit_event_subjects WHERE subject_id = ?))"
)


def _actor_of(session: ListSession, actor_id: str, account: Where) -> tuple[str, Where]:
    """Return the index and the condition of an actor: a key, or a user; never has one both ids."""
    for index, test in _BY_ACTOR:
        acting = Where(test, actor_id)
        held = Part("audit_events", "seq", index, acting + account)
        if session.one(f"{held.select(session, '1')} LIMIT 1", *held.where.values) is not None:
            break
    return index, acting


def _few_events(query: AuditQuery, where: Where) -> Iterator[list[Part]]:
    def part(index: str, condition: str, value: object) -> Part:
        return Part("audit_events", "seq", index, Where(condition, value) + where)

    if query.target_id:
        also = Where("subject_id = ?", query.target_id)
        yield [
            part(_BY_TARGET, "target_id = ?", query.target_id),
            Part("audit_event_subjects", "seq", "", also),
        ]
    if query.actor_id:
        yield [part(index, test, query.actor_id) for index, test in _BY_ACTOR]
    if query.actions:
        yield [part(_BY_ACTION, "action = ?", int(action)) for action in query.actions]
