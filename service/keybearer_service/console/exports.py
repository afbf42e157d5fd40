"""Lists as files of comma-separated values, written while they are sent."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from keybearer_service.console import times
from keybearer_service.console.audit import AuditPages
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.links import AuditState
from keybearer_service.console.visits import Visit
from keybearer_service.domain.audit_event import AuditEvent
from keybearer_service.domain.clock import Clock, Micros, rfc3339
from keybearer_service.domain.model import ApiKey
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.pagination import Listed

CSV: Final = "text/csv; charset=utf-8"
MAX_ROWS: Final = 50_000
"""Of a file. It has to be written within the time that a request has."""
PAGE: Final = 200
"""Rows that are written at a time: in a millisecond or two, so that validations do not wait."""
_FORMULAS: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What spreadsheets take for the beginning of a formula; the last four are the wide forms."""

T = TypeVar("T")
Read = Callable[[str], Listed[T]]

KEY_COLUMNS: Final = (
    "id",
    "name",
    "description",
    "status",
    "role",
    "effective_role",
    "scopes",
    "labels",
    "owner",
    "created_by",
    "created",
    "last_used",
    "uses",
    "expires",
    "revoked",
    "revocation_reason",
    "revocation_note",
)
EVENT_COLUMNS: Final = (
    "number",
    "time",
    "action",
    "target_type",
    "target_id",
    "actor_type",
    "actor_email",
    "actor_user_id",
    "actor_key_id",
    "actor_session_id",
    "peer",
    "request_id",
    "changes",
    "hash",
)


@dataclass(frozen=True, slots=True)
class Export:
    """A file."""

    name: str
    parts: Iterator[bytes]
    """Each is read from the store when it is asked for."""


class Exports:
    """The views that are files. They call use cases, and nothing else."""

    def __init__(
        self,
        key_list: KeyList,
        keys: KeyManager,
        audit_pages: AuditPages,
        audit: AuditHistory,
        clock: Clock,
    ) -> None:
        self._list = key_list
        self._keys = keys
        self._audit_pages = audit_pages
        self._audit = audit
        self._clock = clock

    def keys(self, visit: Visit) -> Export:
        """Return the keys of a list.

        Raises:
            FieldInvalid: The URL cannot be understood.
        """
        query, now = self._list.query(visit), self._clock.now()
        return self._export(
            "keys",
            KEY_COLUMNS,
            lambda token: self._keys.list(visit.call, query, PAGE, token),
            lambda key: _key_cells(key, now),
        )

    def audit(self, visit: Visit) -> Export:
        """Return a part of the log.

        Raises:
            FieldInvalid: The URL cannot be understood.
        """
        query = self._audit_pages.query(visit, visit.state_of(AuditState))
        return self._export(
            "audit",
            EVENT_COLUMNS,
            lambda token: self._audit.list(visit.call, query, PAGE, token),
            _event_cells,
        )

    def _export(
        self,
        name: str,
        columns: Sequence[str],
        read: Read[T],
        cells: Callable[[T], Sequence[object]],
    ) -> Export:
        day = times.day_of(self._clock.now())
        return Export(f"{name}-{day}.csv", file_parts(columns, read, cells))


def file_parts(
    columns: Sequence[str],
    read: Read[T],
    cells: Callable[[T], Sequence[object]],
    max_rows: int = MAX_ROWS,
) -> Iterator[bytes]:
    """Yield a file in parts, one for each page of a list.

    Args:
        columns: The names of the columns.
        read: Returns the page of a page token.
        cells: Returns the cells of an item.
        max_rows: How many rows the file has at most; a last one says that there are more.
    """
    token, written = "", 0
    rows: list[Sequence[object]] = [columns]
    while True:
        page = read(token)
        rows += [cells(item) for item in page.items[: max_rows - written]]
        written += len(page.items)
        token = page.next_page_token
        is_cut = written > max_rows or bool(token and written == max_rows)
        if is_cut:
            rows.append([f"Only the first {max_rows:,} rows are here. Narrow the filter."])
        yield _text(rows)
        rows = []
        if is_cut or not token:
            return


def _text(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([map(_harmless, row) for row in rows])
    return text.getvalue().encode()


def _harmless(cell: object) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = str(cell)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULAS) else text


def _key_cells(key: ApiKey, now: Micros) -> Sequence[object]:
    return (
        key.id,
        key.name,
        key.description,
        key.state_at(now).name,
        key.role.name,
        key.effective_role.name,
        " ".join(key.scopes),
        " ".join(f"{name}={key.labels[name]}" for name in sorted(key.labels)),
        key.owner_email,
        key.created_by_email,
        _moment(key.create_time),
        _moment(key.last_used_time),
        key.use_count,
        _moment(key.expire_time),
        _moment(key.revoke_time),
        key.revocation_reason.name if key.revocation_reason else "",
        key.revocation_note,
    )


def _event_cells(event: AuditEvent) -> Sequence[object]:
    actor = event.actor
    changes = (f"{one.field}: {one.before} -> {one.after}" for one in event.changes)
    return (
        event.seq,
        _moment(event.time),
        event.action.name,
        event.target_type.name,
        event.target_id,
        actor.type.name,
        actor.user_email,
        actor.user_id,
        actor.key_id,
        actor.session_id,
        event.peer,
        event.request_id,
        "\n".join(changes),
        event.hash.hex(),
    )


def _moment(moment: Micros | None) -> str:
    return "" if moment is None else rfc3339(moment)
