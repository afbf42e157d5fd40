"""What the validator needs to judge a group of calls at once, on a thread that must not wait.

The keys of the whole group are read by one statement, and a use that waits for the store is not
counted: its call belongs elsewhere, and leaves no trace here.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import Moment
from keybearer_service.domain.verdict import Match, TokenRecord
from keybearer_service.storage import Reader
from keybearer_service.validation.usage import needs_claim
from keybearer_service.validation.validator import NOBODY, Lookups, Uses

_READ_ONE_BY_ONE = 2
"""So few keys are read sooner by a statement each."""


class ElsewhereError(Exception):
    """The call belongs to a thread that may wait."""


class GroupReads(Lookups):
    """Looks keys up in what was read for the group, and otherwise in the store."""

    def __init__(self, store: Lookups) -> None:
        self._store = store
        self._versions: list[int | None] = []
        self._records: dict[str, TokenRecord | None] = {}
        self._moment = Moment("", 0)

    def begin(self) -> None:
        """Forget what was read for the group before."""
        self._versions = []
        self._records = {}

    def prepare(self, key_ids: Iterable[str]) -> None:
        """Read the keys of the group by one statement, unless it was done or is not worth it.

        Args:
            key_ids: Ids of keys, or any other text, which is the id of none.

        Raises:
            StoreError: The store cannot be read.
        """
        wanted = {*key_ids, NOBODY}
        if len(wanted) > _READ_ONE_BY_ONE and not self._records.keys() >= wanted:
            found, self._moment = self._store.lookup_many([*wanted])
            self._records = {key_id: found.get(key_id) for key_id in wanted}

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        """Return a key's record and the moment of the snapshot that it is from."""
        if key_id in self._records:
            return self._records[key_id], self._moment
        return self._store.lookup(key_id)

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        """Return the known ones of many keys and the moment, of one snapshot."""
        records = self._records
        if not records or any(key_id not in records for key_id in key_ids):
            return self._store.lookup_many(key_ids)
        found = ((key_id, records[key_id]) for key_id in key_ids)
        return {key_id: record for key_id, record in found if record is not None}, self._moment

    def read(self) -> AbstractContextManager[Reader]:
        """Refuse to open a snapshot.

        Raises:
            ElsewhereError: It takes several statements.
        """
        raise ElsewhereError

    def caller_version(self) -> int | None:
        """Return how often the store has committed, as of the first call of the group."""
        if not self._versions:
            self._versions.append(self._store.caller_version())
        return self._versions[0]


class PromptUses(Uses):
    """Counts the uses that are only noted, and none that waits for the store."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses

    def add(self, match: Match, now: Micros) -> bool:
        """Count one use; see `UsageRecorder.add`.

        Raises:
            ElsewhereError: It has to be claimed, so it is not counted.
        """
        if needs_claim(match, now):
            raise ElsewhereError
        return self._uses.add(match, now)

    def add_all(self, matches: Sequence[Match], now: Micros) -> bool:
        """Count uses that are answered together; see `UsageRecorder.add_all`.

        Raises:
            ElsewhereError: One of them has to be claimed, so none is counted.
        """
        if any(needs_claim(match, now) for match in matches):
            raise ElsewhereError
        return self._uses.add_all(matches, now)
