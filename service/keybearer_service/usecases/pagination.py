"""Pages of lists: their size, how they are read, and the token of the next one."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from keybearer._wire.limits import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from keybearer_service.domain.errors import CallAbandoned, FieldInvalid
from keybearer_service.storage import Found, Page, ReadAbandonedError, Reader, SortKey, Store
from keybearer_service.usecases.call_context import CallContext

_MAC_BYTES = 16
_MAX_TOKEN = 2048
"""Characters. After a name of 100 characters that JSON writes longest there are 1,652."""

T = TypeVar("T")


@contextmanager
def reading_for(call: CallContext, store: Store) -> Iterator[Reader]:
    """Open a snapshot for a list: what is read in the block ends when the caller has gone.

    Raises:
        CallAbandoned: The caller no longer waits.
    """
    if not call.is_alive:
        raise CallAbandoned
    try:
        with store.read(call) as reader:
            yield reader
    except ReadAbandonedError:
        raise CallAbandoned from None


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """A page of a list, which may still be cut: see `token_after`."""

    items: Sequence[T]
    next_page_token: str
    """Of the page after all items; empty on the last page. A page may have fewer items than were
    asked for, and none, and still have a next one."""
    token_after: Callable[[T], str]
    """Returns the token of the page that begins after one of the items."""


class PageTokens:
    """Writes and reads page tokens: URL-safe, MACed, bound to one list of one account.

    Every process of an installation has the same key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def page(self, page_size: int, page_token: str, bound_to: object) -> Page:
        """Return the part of a list to read: one item more than the page, to see if more follows.

        Args:
            page_size: Of the request; 0 means 50, more than 1000 means 1000.
            page_token: Of the previous page; empty for the first.
            bound_to: What must stay the same between pages: account, filters, order.

        Raises:
            FieldInvalid: The size is negative, or the token was altered or is of another list.
        """
        if page_size < 0:
            raise FieldInvalid("page_size", "0 or more; 0 means 50")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = self._read(page_token, bound_to) if page_token else None
        return Page(limit=size + 1, after=after)

    def listed(
        self, found: Found[T], page: Page, bound_to: object, sort_key: Callable[[T], SortKey]
    ) -> Listed[T]:
        """Return what was found of a page, with the token of the next one."""

        def token_after(item: T) -> str:
            return self._write(sort_key(item), bound_to)

        if len(found.items) == page.limit:
            shown = found.items[:-1]
            return Listed(shown, token_after(shown[-1]), token_after)
        token = "" if found.rest is None else self._write(found.rest, bound_to)
        return Listed(found.items, token, token_after)

    def _write(self, key: SortKey, bound_to: object) -> str:
        body = json.dumps(key, separators=(",", ":")).encode()
        return _text(self._mac(body, bound_to) + body)

    def _read(self, token: str, bound_to: object) -> SortKey:
        refusal = FieldInvalid(
            "page_token", "not a token of this list; keep all other fields as they were"
        )
        if len(token) > _MAX_TOKEN:
            raise refusal
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise refusal from None
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        # Several texts decode to the same bytes; only the one that was written is a token.
        if not hmac.compare_digest(mac, self._mac(body, bound_to)) or _text(raw) != token:
            raise refusal
        value, tie = json.loads(body)
        return value, tie

    def _mac(self, body: bytes, bound_to: object) -> bytes:
        context = hashlib.sha256(repr(bound_to).encode()).digest()
        return hmac.digest(self._key, context + body, "sha256")[:_MAC_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
