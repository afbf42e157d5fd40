"""Lookups that wait for the database go together in one statement.

A statement for a hundred keys costs the database a tenth of a hundred statements. No timer gathers
them: as long as a statement is free a lookup goes alone and at once, and those that come while all
are on their way go together in the next one. So every answer is of a statement that began after its
call had come.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from keybearer_service.domain.model import Moment
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import StoreError, StoreLockedError

Answer = tuple[TokenRecord | None, Moment]
"""A key's record and the moment."""
AT_A_TIME: Final = 2
"""Statements on their way at a time: one more is sent while the answer of the other is read."""
MOST_TOGETHER: Final = 100


class _Call:
    """A lookup that waits."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.is_told = threading.Event()
        """Set once it is answered, or once it is to read for `group`."""
        self.group: Sequence[_Call] = ()
        self.answer: Answer | None = None
        self.error: StoreError | None = None


class Gathering:
    """Looks keys up, for many threads."""

    def __init__(
        self,
        read_one: Callable[[str], Answer],
        read_many: Callable[[Sequence[str]], tuple[dict[str, TokenRecord], Moment]],
    ) -> None:
        """Create it.

        Args:
            read_one: Reads one key.
            read_many: Reads the known ones of many keys, with the moment.
        """
        self._read_one = read_one
        self._read_many = read_many
        self._lock = threading.Lock()
        self._on_their_way = 0
        self._waiting: list[_Call] = []

    @property
    def waiting(self) -> int:
        """How many lookups wait for a statement."""
        return len(self._waiting)

    def lookup(self, key_id: str) -> Answer:
        """Return a key's record and the moment, of a statement that begins after this call.

        Raises:
            StoreError: The store cannot be read.
        """
        call = None
        with self._lock:
            if self._on_their_way < AT_A_TIME:
                self._on_their_way += 1
            else:
                call = _Call(key_id)
                self._waiting.append(call)
        if call is None:
            return self._alone(key_id)
        call.is_told.wait()
        if call.group:
            self._read_for(call.group)
        if call.error is not None:
            raise type(call.error)(*call.error.args)
        # What goes wrong with one key of a group must not harm the others.
        return self._read_one(key_id) if call.answer is None else call.answer

    def _alone(self, key_id: str) -> Answer:
        try:
            return self._read_one(key_id)
        except StoreLockedError as error:
            self._refuse_waiting(error)
            raise
        finally:
            self._hand_on()

    def _read_for(self, group: Sequence[_Call]) -> None:
        try:
            records, moment = self._read_many(list({call.key_id for call in group}))
            for call in group:
                call.answer = (records.get(call.key_id), moment)
        except StoreLockedError as error:
            for call in group:
                call.error = error
            self._refuse_waiting(error)
        except StoreError:
            pass  # each reads for itself
        finally:
            self._hand_on()
            for call in group[1:]:
                call.is_told.set()

    def _refuse_waiting(self, error: StoreLockedError) -> None:
        """Have nobody wait for a second time limit after that of a statement that has failed."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.error = error
            call.is_told.set()

    def _hand_on(self) -> None:
        """Give the statement that has come back to those that wait, or set it free."""
        with self._lock:
            group = self._waiting[:MOST_TOGETHER]
            del self._waiting[:MOST_TOGETHER]
            if not group:
                self._on_their_way -= 1
                return
        group[0].group = group
        group[0].is_told.set()
