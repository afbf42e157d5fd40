"""What is MACed under the audit key beside the chain of events: rows, personal texts, the head."""

import hmac
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from keybearer._wire.enums import AuditTargetType
from keybearer_service.domain.key_derivation import derived_key

BASE_VERSION: Final = 1
"""The form of the base's MAC."""
REVOKED_WITH_USER: Final = 0
"""The kind of a base row about the keys that were revoked with a user, who gives it the id."""
HEAD_VERSION: Final = 1
"""The form of the head's MAC."""
SALT_BYTES: Final = 16

Value = int | str | bytes | None


class Subject(NamedTuple):
    """Names a row: an account, a user, a key, the installation (by its operator account), a pepper.

    The last two have the kind INSTALLATION.
    """

    kind: AuditTargetType
    id: str


class CoveredRow(NamedTuple):
    """The columns of a row that its digest covers: all but those that count uses."""

    table: str
    columns: Mapping[str, Value]


class Head(NamedTuple):
    """The one row that says where the log and the revisions end."""

    version: int
    seq: int
    """The seq of the last event."""
    hash: bytes
    """Its hash."""
    revision: int
    mac: bytes


class BaseRow(NamedTuple):
    """What the last pruned event about a row said of it."""

    kind: int
    """The number of an AuditTargetType, or REVOKED_WITH_USER."""
    id: str
    seq: int
    """The event."""
    digest: bytes
    """The digest of the row that it held; empty when it was of the first version."""


class AuditBase(NamedTuple):
    """The one row that says where the log begins after events were pruned."""

    version: int
    seq: int
    """The seq of the last event that was pruned."""
    hash: bytes
    """Its hash, which the first event that was kept follows."""
    rows: bytes
    """Stands for all base rows together: see `AuditDigests.base_row`."""
    mac: bytes


class AuditDigests:
    """Makes the digests. Without the audit key none can be made or compared."""

    def __init__(self, audit_key: bytes) -> None:
        """Derive a key for each kind, so that none can pass for one of another kind."""
        self._row_key = derived_key(audit_key, b"audit rows")
        self._cascade_key = derived_key(audit_key, b"audit cascades")
        self._text_key = derived_key(audit_key, b"audit personal texts")
        self._erasure_key = derived_key(audit_key, b"audit erasures")
        self._head_key = derived_key(audit_key, b"audit head")
        self._base_key = derived_key(audit_key, b"audit base")
        self._base_row_key = derived_key(audit_key, b"audit base rows")

    def row(self, row: CoveredRow) -> bytes:
        """Return the digest of a row.

        HMAC-SHA-256 over the name of the table and, in the order of their names, the name and the
        value of each column that is neither NULL nor empty, each prefixed with its length in four
        big-endian bytes; numbers as decimal text. A column that a later version adds changes no
        digest as long as it is NULL or empty.
        """
        parts = [row.table.encode()]
        for name in sorted(row.columns):
            value = row.columns[name]
            if value or value == 0:
                parts += (name.encode(), _as_bytes(value))
        return _mac(self._row_key, parts)

    def cascade(self, digests: Iterable[bytes]) -> bytes:
        """Return the one digest of many rows, from their own digests in the order of their ids."""
        return hmac.digest(self._cascade_key, b"".join(digests), "sha256")

    def text(self, salt: bytes, user_id: str, text: str) -> bytes:
        """Return the digest of a personal text; without the salt it says nothing about the text."""
        return _mac(self._text_key, (salt, user_id.encode(), text.encode()))

    def erasure(self, digest: bytes, user_id: str) -> bytes:
        """Return the proof that the text of a digest was erased on purpose."""
        return _mac(self._erasure_key, (digest, user_id.encode()))

    def head(self, seq: int, last_hash: bytes, revision: int) -> Head:
        """Return the head for a log that ends with an event, at a revision."""
        parts = (str(HEAD_VERSION).encode(), str(seq).encode(), last_hash, str(revision).encode())
        return Head(HEAD_VERSION, seq, last_hash, revision, _mac(self._head_key, parts))

    def base(self, seq: int, last_hash: bytes, rows: int) -> AuditBase:
        """Return the base for a log whose events up to `seq` were pruned.

        Args:
            seq: The last of them.
            last_hash: Its hash.
            rows: The sum of `base_row` over all base rows.
        """
        total = (rows % 2**256).to_bytes(32)
        parts = (str(BASE_VERSION).encode(), str(seq).encode(), last_hash, total)
        return AuditBase(BASE_VERSION, seq, last_hash, total, _mac(self._base_key, parts))

    def base_row(self, row: BaseRow) -> int:
        """Return the number that a base row adds to the sum in the base.

        A sum, so that pruning a thousand events costs the same however many rows there are; of
        MACs, so that nobody without the key can replace one row by others of the same sum.
        """
        parts = (str(row.kind).encode(), row.id.encode(), str(row.seq).encode(), row.digest)
        return int.from_bytes(_mac(self._base_row_key, parts))


def _as_bytes(value: int | str | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _mac(key: bytes, parts: Iterable[bytes]) -> bytes:
    return hmac.digest(key, b"".join(len(one).to_bytes(4) + one for one in parts), "sha256")
