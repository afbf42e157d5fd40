"""Uses of keys on PostgreSQL, in a table of their own, for which changes of keys do not wait."""

from collections.abc import Sequence
from typing import Final

from keybearer_service.domain.model import SecretId, Use
from keybearer_service.storage.care import storable_uses
from keybearer_service.storage.postgres_connections import Connection

_ADD: Final = """
INSERT INTO key_usage AS t
  (key_id, last_used_time, use_count, used_version, old_used_version, old_secret_last_used_time)
SELECT k.id, max(greatest(i.time, k.create_time)), least(sum(i.uses), 4611686018427387904)::bigint,
  max(i.version) FILTER (WHERE i.version = k.secret_version),
  max(i.version) FILTER (WHERE i.version = k.old_secret_version),
  max(greatest(i.time, k.create_time)) FILTER (WHERE i.version = k.old_secret_version)
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS i (key_id, time, uses, version)
JOIN api_keys k ON k.id = i.key_id
WHERE k.revoke_time IS NULL GROUP BY k.id ORDER BY k.id
ON CONFLICT (key_id) DO UPDATE SET
  last_used_time = greatest(t.last_used_time, excluded.last_used_time),
  use_count = least(t.use_count + excluded.use_count, 4611686018427387904),
  used_version = greatest(t.used_version, excluded.used_version),
  old_used_version = greatest(t.old_used_version, excluded.old_used_version),
  old_secret_last_used_time = CASE
    WHEN excluded.old_used_version IS NULL OR excluded.old_used_version < t.old_used_version
    THEN t.old_secret_last_used_time
    WHEN excluded.old_used_version = t.old_used_version
    THEN greatest(t.old_secret_last_used_time, excluded.old_secret_last_used_time)
    ELSE excluded.old_secret_last_used_time END
"""
_CLAIM: Final = """
INSERT INTO key_usage AS t (key_id, used_version)
SELECT k.id, k.secret_version
FROM unnest($1::text[], $2::bigint[]) AS i (key_id, version)
JOIN api_keys k ON k.id = i.key_id AND k.secret_version = i.version
ORDER BY k.id
ON CONFLICT (key_id) DO UPDATE SET used_version = greatest(t.used_version, excluded.used_version)
WHERE t.replaced_version IS DISTINCT FROM excluded.used_version
"""
# In the order of the keys, so that two nodes that add to the same ones never wait for each other.


def add_uses(connection: Connection, uses: Sequence[Use]) -> None:
    """Add uses, as `Store.add_uses`, in one statement."""
    items = [
        (use.key_id, use.last_used_time, use.uses, use.secret_version)
        for use in storable_uses(uses)
        if "\0" not in use.key_id
    ]
    if items:
        connection.execute(_ADD, [list(column) for column in zip(*items, strict=True)])


def claim_uses(connection: Connection, secrets: Sequence[SecretId]) -> bool:
    """Record that secrets are in use; return whether all of them are still current.

    One that was issued again meanwhile has left its version in the row, for which this waits.
    """
    keys = [secret.key_id for secret in secrets]
    claimed = connection.execute(_CLAIM, (keys, [secret.version for secret in secrets]))
    return claimed.rowcount == len(secrets)
