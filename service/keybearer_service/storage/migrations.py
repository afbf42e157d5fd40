"""The schema, as numbered steps. Append only: a step that was released is never edited.

`apply` runs them inside BEGIN IMMEDIATE, because two starting processes race otherwise.
"""

from typing import cast

from sqlite_utils import Database, Migrations

from keybearer_service.storage import NEVER, UNUSED, StoreUnusableError
from keybearer_service.storage.dbapi import Connection

APPLICATION_ID = 0x6B627231
"""Marks a database file as one of keybearer: "kbr1"."""

migrations = Migrations("keybearer")

_INITIAL = f"""
PRAGMA application_id = {APPLICATION_ID};

CREATE TABLE installation (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  epoch TEXT NOT NULL,
  revision INTEGER NOT NULL,
  prefix TEXT NOT NULL,
  retired_prefixes TEXT NOT NULL DEFAULT '',
  operator_account_id TEXT NOT NULL,
  create_time INTEGER NOT NULL
) STRICT;

CREATE TABLE accounts (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  create_time INTEGER NOT NULL,
  disable_time INTEGER,
  is_operator INTEGER NOT NULL DEFAULT 0,
  row_version INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX accounts_by_create_time ON accounts (create_time, id);

CREATE TABLE users (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  email TEXT NOT NULL,
  display_name TEXT NOT NULL,
  role INTEGER NOT NULL,
  type INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  update_time INTEGER NOT NULL,
  delete_time INTEGER,
  row_version INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE UNIQUE INDEX users_by_email ON users (account_id, email) WHERE delete_time IS NULL;
CREATE INDEX users_by_create_time ON users (account_id, create_time, id);

CREATE TABLE peppers (
  id TEXT PRIMARY KEY,
  check_value BLOB NOT NULL,
  create_time INTEGER NOT NULL,
  retire_time INTEGER
) STRICT;

CREATE TABLE api_keys (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  owner_id TEXT NOT NULL REFERENCES users (id),
  name TEXT NOT NULL,
  description TEXT NOT NULL DEFAULT '',
  role INTEGER NOT NULL,
  scopes TEXT NOT NULL DEFAULT '',
  labels TEXT NOT NULL DEFAULT '',
  create_time INTEGER NOT NULL,
  created_by TEXT NOT NULL REFERENCES users (id),
  update_time INTEGER NOT NULL,
  expire_time INTEGER,
  disable_time INTEGER,
  revoke_time INTEGER,
  revoked_by TEXT NOT NULL DEFAULT '',
  revocation_reason INTEGER,
  revocation_note TEXT NOT NULL DEFAULT '',
  row_version INTEGER NOT NULL DEFAULT 1,
  secret_version INTEGER NOT NULL DEFAULT 1,
  secret_create_time INTEGER NOT NULL,
  secret_used INTEGER NOT NULL DEFAULT 0,
  digest BLOB NOT NULL,
  pepper_id TEXT NOT NULL REFERENCES peppers (id),
  old_digest BLOB,
  old_pepper_id TEXT REFERENCES peppers (id),
  old_secret_version INTEGER,
  overlap_end_time INTEGER,
  last_used_time INTEGER,
  use_count INTEGER NOT NULL DEFAULT 0,
  old_secret_last_used_time INTEGER
) STRICT;
CREATE INDEX api_keys_by_create_time ON api_keys (account_id, create_time, id);
CREATE INDEX api_keys_by_expire_time
  ON api_keys (account_id, coalesce(expire_time, 9223372036854775807), id);
CREATE INDEX api_keys_by_name ON api_keys (account_id, name, id);
CREATE INDEX api_keys_by_last_used_time ON api_keys (account_id, coalesce(last_used_time, -1), id);
CREATE INDEX api_keys_by_owner ON api_keys (owner_id) WHERE revoke_time IS NULL;
CREATE INDEX api_keys_by_creator ON api_keys (created_by) WHERE revoke_time IS NULL;

CREATE TABLE request_records (
  user_id TEXT NOT NULL,
  request_id TEXT NOT NULL,
  body_hash BLOB NOT NULL,
  attempt INTEGER NOT NULL,
  key_id TEXT NOT NULL,
  secret_version INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  PRIMARY KEY (user_id, request_id)
) STRICT;
CREATE INDEX request_records_by_create_time ON request_records (create_time);

CREATE TABLE changes (
  revision INTEGER PRIMARY KEY,
  time INTEGER NOT NULL,
  account_id TEXT NOT NULL,
  kind INTEGER NOT NULL,
  subject_id TEXT NOT NULL
) STRICT;

CREATE TABLE audit_events (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  time INTEGER NOT NULL,
  account_id TEXT NOT NULL,
  actor_type INTEGER NOT NULL,
  actor_key_id TEXT NOT NULL,
  actor_user_id TEXT NOT NULL,
  actor_user_email TEXT NOT NULL,
  action INTEGER NOT NULL,
  target_type INTEGER NOT NULL,
  target_id TEXT NOT NULL,
  changes TEXT NOT NULL,
  request_id TEXT NOT NULL,
  peer TEXT NOT NULL,
  hash BLOB NOT NULL
) STRICT;
CREATE INDEX audit_events_by_account ON audit_events (account_id, seq);
CREATE INDEX audit_events_by_target ON audit_events (target_id, seq);
"""


def _run(db: Database, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            db.execute(statement)


@migrations()
def m001_initial(db: Database) -> None:
    """Everything of 0.1.0."""
    _run(db, _INITIAL)


_INTEGRITY = """
ALTER TABLE audit_events ADD COLUMN target_digest BLOB;
ALTER TABLE audit_events ADD COLUMN personal_digest BLOB;

CREATE TABLE head (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  hash BLOB NOT NULL,
  revision INTEGER NOT NULL,
  mac BLOB NOT NULL
) STRICT;

CREATE TABLE personal_texts (
  digest BLOB PRIMARY KEY,
  user_id TEXT NOT NULL,
  salt BLOB,
  text TEXT,
  erasure BLOB
) STRICT;
CREATE INDEX personal_texts_by_user ON personal_texts (user_id);
"""


@migrations()
def m002_integrity(db: Database) -> None:
    """The head, the digests of rows in events, and personal texts that can be erased."""
    _run(db, _INTEGRITY)


@migrations()
def m003_key_counts(db: Database) -> None:
    """How many keys count towards the quota of an account.

    Triggers keep the number, so that no statement that writes keys can forget it. Counting users so
    would make every new user go through all keys: SQLite looks for rows that point to the new one
    once a trigger may follow.
    """
    db.execute(
        "CREATE TABLE key_counts (account_id TEXT PRIMARY KEY REFERENCES accounts (id),"
        " unrevoked INTEGER NOT NULL) STRICT"
    )
    db.execute(
        "INSERT INTO key_counts SELECT account_id, count(*) FROM api_keys WHERE revoke_time IS NULL"
        " GROUP BY account_id"
    )
    db.execute(
        "CREATE TRIGGER api_keys_counted AFTER INSERT ON api_keys WHEN new.revoke_time IS NULL"
        " BEGIN INSERT INTO key_counts VALUES (new.account_id, 1)"
        " ON CONFLICT (account_id) DO UPDATE SET unrevoked = unrevoked + 1; END"
    )
    db.execute(
        "CREATE TRIGGER api_keys_recounted AFTER UPDATE OF revoke_time ON api_keys"
        " WHEN (old.revoke_time IS NULL) <> (new.revoke_time IS NULL) BEGIN"
        " INSERT INTO key_counts VALUES (new.account_id, 1) ON CONFLICT (account_id)"
        " DO UPDATE SET unrevoked = unrevoked + iif(new.revoke_time IS NULL, 1, -1); END"
    )


@migrations()
def m004_audit_event_subjects(db: Database) -> None:
    """What else an event is about, beside its target: keys revoked together, what init made."""
    db.execute(
        "CREATE TABLE audit_event_subjects (subject_id TEXT NOT NULL, seq INTEGER NOT NULL"
        " REFERENCES audit_events (seq), PRIMARY KEY (subject_id, seq)) STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX audit_event_subjects_by_seq ON audit_event_subjects (seq)")
    # Of events that were written before, those are found that list these ids.
    db.execute(
        "INSERT OR IGNORE INTO audit_event_subjects"
        " WITH RECURSIVE listed (seq, id, rest) AS ("
        "  SELECT e.seq, '', json_extract(c.value, '$[2]') || ','"
        "  FROM audit_events e, json_each(e.changes) c"
        "  WHERE e.action IN (1, 6, 11)"  # INSTALLATION_CREATED, ACCOUNT_CREATED, USER_DELETED
        "  AND json_extract(c.value, '$[0]')"
        "  IN ('admin_user_id', 'api_key_id', 'pepper_id', 'revoked_key_ids')"
        "  UNION ALL SELECT seq, substr(rest, 1, instr(rest, ',') - 1),"
        "  substr(rest, instr(rest, ',') + 1) FROM listed WHERE rest <> '')"
        " SELECT id, seq FROM listed WHERE id <> ''"
    )


_LIST_INDEXES = f"""
ALTER TABLE api_keys ADD COLUMN expire_order INTEGER
  GENERATED ALWAYS AS (coalesce(expire_time, {NEVER})) VIRTUAL;
ALTER TABLE api_keys ADD COLUMN last_used_order INTEGER
  GENERATED ALWAYS AS (coalesce(last_used_time, {UNUSED})) VIRTUAL;
DROP INDEX api_keys_by_expire_time;
DROP INDEX api_keys_by_last_used_time;
CREATE INDEX api_keys_by_expire_order ON api_keys (account_id, expire_order, id);
CREATE INDEX api_keys_by_last_used_order ON api_keys (account_id, last_used_order, id);
CREATE INDEX api_keys_by_owner_and_create_time ON api_keys (account_id, owner_id, create_time, id);
CREATE INDEX api_keys_revoked ON api_keys (account_id) WHERE revoke_time IS NOT NULL;
CREATE INDEX api_keys_disabled ON api_keys (account_id)
  WHERE revoke_time IS NULL AND disable_time IS NOT NULL;
CREATE INDEX api_keys_unrevoked_by_expire_order ON api_keys (account_id, expire_order)
  WHERE revoke_time IS NULL;
CREATE INDEX api_keys_never_used ON api_keys (account_id, create_time) WHERE last_used_time IS NULL;
CREATE INDEX users_by_role ON users (account_id, role) WHERE delete_time IS NULL;
DROP INDEX audit_events_by_account;
CREATE INDEX audit_events_by_time ON audit_events (time);
CREATE INDEX audit_events_by_account_and_time ON audit_events (account_id, time);
CREATE INDEX audit_events_by_target_and_time ON audit_events (target_id, account_id, time);
CREATE INDEX audit_events_by_actor_key_and_time ON audit_events (actor_key_id, account_id, time);
CREATE INDEX audit_events_by_actor_user_and_time ON audit_events (actor_user_id, account_id, time);
CREATE INDEX audit_events_by_action_and_time ON audit_events (action, account_id, time);
"""


@migrations()
def m005_list_indexes(db: Database) -> None:
    """An index for the filters of lists. Audit events are listed by time.

    A page begins in the middle of an index only by columns, not by an expression: hence columns
    for the two orders that have a place for absent times.
    """
    _run(db, _LIST_INDEXES)


_PRUNING = """
CREATE TABLE audit_base (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  hash BLOB NOT NULL,
  rows BLOB NOT NULL,
  mac BLOB NOT NULL
) STRICT;

CREATE TABLE audit_base_rows (
  kind INTEGER NOT NULL,
  id TEXT NOT NULL,
  seq INTEGER NOT NULL,
  digest BLOB NOT NULL,
  PRIMARY KEY (kind, id)
) STRICT;
"""


@migrations()
def m006_pruning(db: Database) -> None:
    """Where the audit log begins once events were pruned, and what these said of rows."""
    _run(db, _PRUNING)


_SESSIONS = """
CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  user_id TEXT NOT NULL REFERENCES users (id),
  key_id TEXT NOT NULL,
  secret_version INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  last_seen_time INTEGER NOT NULL,
  end_time INTEGER,
  peer TEXT NOT NULL,
  user_agent TEXT NOT NULL,
  digest BLOB NOT NULL
) STRICT;
CREATE INDEX sessions_by_create_time ON sessions (create_time);
ALTER TABLE audit_events ADD COLUMN actor_session_id TEXT NOT NULL DEFAULT '';
"""


@migrations()
def m007_sessions(db: Database) -> None:
    """Sessions of the console, and which of them acted."""
    _run(db, _SESSIONS)


@migrations()
def m008_nodes(db: Database) -> None:
    """Peppers that are announced until every node has them; in a file none is."""
    db.execute("ALTER TABLE peppers ADD COLUMN is_announced INTEGER NOT NULL DEFAULT 0")


_SIGN_IN = """
ALTER TABLE sessions ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN subject TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN provider_session TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN auth_time INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sessions_by_subject ON sessions (issuer, subject) WHERE issuer <> '';
CREATE INDEX sessions_by_provider_session ON sessions (issuer, provider_session)
  WHERE issuer <> '';

CREATE TABLE identities (
  issuer TEXT NOT NULL,
  subject TEXT NOT NULL,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  user_id TEXT NOT NULL UNIQUE REFERENCES users (id),
  bind_time INTEGER NOT NULL,
  mac BLOB NOT NULL,
  PRIMARY KEY (issuer, subject)
) STRICT;

CREATE TABLE invitations (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  user_id TEXT NOT NULL UNIQUE REFERENCES users (id),
  created_by TEXT NOT NULL REFERENCES users (id),
  create_time INTEGER NOT NULL,
  digest BLOB NOT NULL
) STRICT;
CREATE INDEX invitations_by_create_time ON invitations (create_time);

CREATE TABLE used_values (
  kind TEXT NOT NULL,
  value TEXT NOT NULL,
  until INTEGER NOT NULL,
  PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
CREATE INDEX used_values_by_until ON used_values (until);

CREATE INDEX api_keys_of_admins ON api_keys (account_id) WHERE revoke_time IS NULL AND role = 3;
"""


@migrations()
def m009_sign_in(db: Database) -> None:
    """Who people are at a provider, invitations, and what is taken once."""
    _run(db, _SIGN_IN)


@migrations()
def m010_histories(db: Database) -> None:
    """Nothing: no standby takes the place of a file, so its epoch is the name of its history."""


def apply(connection: Connection) -> None:
    """Bring the schema up to date, once, even if several processes start at the same time.

    A schema that is up to date is only read, so opening the file never waits for another writer.

    Raises:
        StoreUnusableError: The database was written by a newer version.
    """
    db = Database(cast("str", connection))  # sqlite-utils takes the driver's connection as it is
    if _is_up_to_date(db):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _is_up_to_date(db):
            migrations.apply(db)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _is_up_to_date(db: Database) -> bool:
    known = {migration.name for migration in migrations._migrations}  # noqa: SLF001 - no public list
    applied = {migration.name for migration in migrations.applied(db)}
    if unknown := applied - known:
        raise StoreUnusableError(
            "the database was written by a newer version of keybearer "
            f"({', '.join(sorted(unknown))}); use that version"
        )
    return applied == known
