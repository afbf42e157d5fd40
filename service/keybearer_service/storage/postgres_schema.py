"""The schema on PostgreSQL, as steps with the names of those of SQLite.

Append only: a step that was released is never edited. A step that *widens* adds what older programs
do without; one that *narrows* removes or demands something, and comes one minor version after the
programs that can live with that. So two neighbouring versions always run side by side.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import psycopg

from keybearer_service.storage import StoreUnusableError, rows
from keybearer_service.storage import postgres_yugabyte as yugabyte
from keybearer_service.storage.postgres_connections import HISTORY, Connection
from keybearer_service.storage.postgres_errors import is_conflict, store_error


class Step(NamedTuple):
    """One change of the schema."""

    name: str
    statements: str
    """Each of them may be executed twice: a database may keep the first when a later one fails."""
    narrows_for: int = 0
    """The number of the step that the oldest program that lives with this one knows; 0 for a step
    that widens."""
    on_yugabyte: str | None = None
    """What is executed there instead; None for the same."""


_INITIAL: Final = """
CREATE TABLE IF NOT EXISTS installation (
  id bigint PRIMARY KEY CHECK (id = 1),
  epoch text COLLATE "C" NOT NULL,
  revision bigint NOT NULL,
  prefix text COLLATE "C" NOT NULL,
  retired_prefixes text COLLATE "C" NOT NULL DEFAULT '',
  operator_account_id text COLLATE "C" NOT NULL,
  create_time bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS accounts (
  id text COLLATE "C" PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  create_time bigint NOT NULL,
  disable_time bigint,
  is_operator bigint NOT NULL DEFAULT 0,
  row_version bigint NOT NULL DEFAULT 1
);
CREATE INDEX IF NOT EXISTS accounts_by_create_time ON accounts (create_time, id);

CREATE TABLE IF NOT EXISTS users (
  id text COLLATE "C" PRIMARY KEY,
  account_id text COLLATE "C" NOT NULL REFERENCES accounts (id),
  email text COLLATE "C" NOT NULL,
  display_name text COLLATE "C" NOT NULL,
  role bigint NOT NULL,
  type bigint NOT NULL,
  create_time bigint NOT NULL,
  update_time bigint NOT NULL,
  delete_time bigint,
  row_version bigint NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX IF NOT EXISTS users_by_email
  ON users (account_id, email) WHERE delete_time IS NULL;
CREATE INDEX IF NOT EXISTS users_by_create_time ON users (account_id, create_time, id);

CREATE TABLE IF NOT EXISTS peppers (
  seq bigint GENERATED ALWAYS AS IDENTITY,
  id text COLLATE "C" PRIMARY KEY,
  check_value bytea NOT NULL,
  create_time bigint NOT NULL,
  retire_time bigint
);

CREATE TABLE IF NOT EXISTS api_keys (
  id text COLLATE "C" PRIMARY KEY,
  account_id text COLLATE "C" NOT NULL REFERENCES accounts (id),
  owner_id text COLLATE "C" NOT NULL REFERENCES users (id),
  name text COLLATE "C" NOT NULL,
  description text COLLATE "C" NOT NULL DEFAULT '',
  role bigint NOT NULL,
  scopes text COLLATE "C" NOT NULL DEFAULT '',
  labels text COLLATE "C" NOT NULL DEFAULT '',
  create_time bigint NOT NULL,
  created_by text COLLATE "C" NOT NULL REFERENCES users (id),
  update_time bigint NOT NULL,
  expire_time bigint,
  disable_time bigint,
  revoke_time bigint,
  revoked_by text COLLATE "C" NOT NULL DEFAULT '',
  revocation_reason bigint,
  revocation_note text COLLATE "C" NOT NULL DEFAULT '',
  row_version bigint NOT NULL DEFAULT 1,
  secret_version bigint NOT NULL DEFAULT 1,
  secret_create_time bigint NOT NULL,
  digest bytea NOT NULL,
  pepper_id text COLLATE "C" NOT NULL REFERENCES peppers (id),
  old_digest bytea,
  old_pepper_id text COLLATE "C" REFERENCES peppers (id),
  old_secret_version bigint,
  old_use_version bigint,
  overlap_end_time bigint
);
CREATE INDEX IF NOT EXISTS api_keys_by_create_time ON api_keys (account_id, create_time, id);
CREATE INDEX IF NOT EXISTS api_keys_by_expire_time
  ON api_keys (account_id, coalesce(expire_time, 9223372036854775807), id);
CREATE INDEX IF NOT EXISTS api_keys_by_name ON api_keys (account_id, name, id);
CREATE INDEX IF NOT EXISTS api_keys_by_owner ON api_keys (owner_id) WHERE revoke_time IS NULL;
CREATE INDEX IF NOT EXISTS api_keys_by_creator ON api_keys (created_by) WHERE revoke_time IS NULL;

CREATE TABLE IF NOT EXISTS key_usage (
  key_id text COLLATE "C" PRIMARY KEY,
  last_used_time bigint,
  use_count bigint NOT NULL DEFAULT 0,
  used_version bigint,
  replaced_version bigint,
  old_used_version bigint,
  old_secret_last_used_time bigint
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS request_records (
  user_id text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  body_hash bytea NOT NULL,
  attempt bigint NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  secret_version bigint NOT NULL,
  create_time bigint NOT NULL,
  PRIMARY KEY (user_id, request_id)
);
CREATE INDEX IF NOT EXISTS request_records_by_create_time ON request_records (create_time);

CREATE TABLE IF NOT EXISTS changes (
  revision bigint PRIMARY KEY,
  time bigint NOT NULL,
  account_id text COLLATE "C" NOT NULL,
  kind bigint NOT NULL,
  subject_id text COLLATE "C" NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_events (
  seq bigint PRIMARY KEY,
  id text COLLATE "C" NOT NULL UNIQUE,
  time bigint NOT NULL,
  account_id text COLLATE "C" NOT NULL,
  actor_type bigint NOT NULL,
  actor_key_id text COLLATE "C" NOT NULL,
  actor_user_id text COLLATE "C" NOT NULL,
  actor_user_email text COLLATE "C" NOT NULL,
  action bigint NOT NULL,
  target_type bigint NOT NULL,
  target_id text COLLATE "C" NOT NULL,
  changes text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  peer text COLLATE "C" NOT NULL,
  hash bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_events_by_account ON audit_events (account_id, seq);
CREATE INDEX IF NOT EXISTS audit_events_by_target ON audit_events (target_id, seq);

CREATE TABLE IF NOT EXISTS commits (
  id bigint PRIMARY KEY CHECK (id = 1),
  count bigint NOT NULL
);
INSERT INTO commits VALUES (1, 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS outcomes (
  nonce bytea PRIMARY KEY,
  time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS outcomes_by_time ON outcomes (time);

CREATE TABLE IF NOT EXISTS leases (name text COLLATE "C" PRIMARY KEY);
INSERT INTO leases VALUES ('prune') ON CONFLICT DO NOTHING;
"""

_INTEGRITY: Final = """
ALTER TABLE audit_events ADD COLUMN IF NOT EXISTS target_digest bytea;
ALTER TABLE audit_events ADD COLUMN IF NOT EXISTS personal_digest bytea;

CREATE TABLE IF NOT EXISTS head (
  id bigint PRIMARY KEY CHECK (id = 1),
  version bigint NOT NULL,
  seq bigint NOT NULL,
  hash bytea NOT NULL,
  revision bigint NOT NULL,
  mac bytea NOT NULL
);

CREATE TABLE IF NOT EXISTS personal_texts (
  digest bytea PRIMARY KEY,
  user_id text COLLATE "C" NOT NULL,
  salt bytea,
  text text COLLATE "C",
  erasure bytea
);
CREATE INDEX IF NOT EXISTS personal_texts_by_user ON personal_texts (user_id);
"""

_KEY_COUNTS: Final = """
CREATE TABLE IF NOT EXISTS key_counts (
  account_id text COLLATE "C" PRIMARY KEY REFERENCES accounts (id),
  unrevoked bigint NOT NULL
);

-- Once for a statement: one that revokes a hundred thousand keys writes the count once.
CREATE OR REPLACE FUNCTION count_new_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO key_counts AS c
    SELECT account_id, count(*) FROM new_rows WHERE revoke_time IS NULL GROUP BY account_id
    ON CONFLICT (account_id) DO UPDATE SET unrevoked = c.unrevoked + excluded.unrevoked;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER api_keys_counted AFTER INSERT ON api_keys
  REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_new_keys();

CREATE OR REPLACE FUNCTION count_changed_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO key_counts AS c
    SELECT n.account_id, sum(CASE WHEN n.revoke_time IS NULL THEN 1 ELSE -1 END)
    FROM new_rows n JOIN old_rows o ON o.id = n.id
    WHERE (n.revoke_time IS NULL) <> (o.revoke_time IS NULL) GROUP BY n.account_id
    ON CONFLICT (account_id) DO UPDATE SET unrevoked = c.unrevoked + excluded.unrevoked;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER api_keys_recounted AFTER UPDATE ON api_keys
  REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION count_changed_keys();
"""

_KEY_COUNTS_BY_ROW: Final = """
CREATE TABLE IF NOT EXISTS key_counts (
  account_id text COLLATE "C" PRIMARY KEY REFERENCES accounts (id),
  unrevoked bigint NOT NULL
);

CREATE OR REPLACE FUNCTION count_new_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.revoke_time IS NULL THEN
    INSERT INTO key_counts AS c VALUES (NEW.account_id, 1)
      ON CONFLICT (account_id) DO UPDATE SET unrevoked = c.unrevoked + 1;
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER api_keys_counted AFTER INSERT ON api_keys
  FOR EACH ROW EXECUTE FUNCTION count_new_keys();

CREATE OR REPLACE FUNCTION count_changed_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.revoke_time IS NULL) <> (OLD.revoke_time IS NULL) THEN
    UPDATE key_counts
      SET unrevoked = unrevoked + CASE WHEN NEW.revoke_time IS NULL THEN 1 ELSE -1 END
      WHERE account_id = NEW.account_id;
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER api_keys_recounted AFTER UPDATE ON api_keys
  FOR EACH ROW EXECUTE FUNCTION count_changed_keys();
"""

_AUDIT_EVENT_SUBJECTS: Final = """
CREATE TABLE IF NOT EXISTS audit_event_subjects (
  subject_id text COLLATE "C" NOT NULL,
  seq bigint NOT NULL REFERENCES audit_events (seq),
  PRIMARY KEY (subject_id, seq)
);
CREATE INDEX IF NOT EXISTS audit_event_subjects_by_seq ON audit_event_subjects (seq);
"""

_LIST_INDEXES: Final = """
CREATE INDEX IF NOT EXISTS api_keys_by_owner_and_create_time
  ON api_keys (account_id, owner_id, create_time, id);
CREATE INDEX IF NOT EXISTS users_by_role ON users (account_id, role) WHERE delete_time IS NULL;
CREATE INDEX IF NOT EXISTS audit_events_by_time ON audit_events (time, seq);
CREATE INDEX IF NOT EXISTS audit_events_by_account_and_time ON audit_events (account_id, time, seq);
CREATE INDEX IF NOT EXISTS audit_events_by_actor_key_and_time
  ON audit_events (actor_key_id, account_id, time, seq);
CREATE INDEX IF NOT EXISTS audit_events_by_actor_user_and_time
  ON audit_events (actor_user_id, account_id, time, seq);
CREATE INDEX IF NOT EXISTS audit_events_by_action_and_time
  ON audit_events (action, account_id, time, seq);
"""

_PRUNING: Final = """
CREATE TABLE IF NOT EXISTS audit_base (
  id bigint PRIMARY KEY CHECK (id = 1),
  version bigint NOT NULL,
  seq bigint NOT NULL,
  hash bytea NOT NULL,
  rows bytea NOT NULL,
  mac bytea NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_base_rows (
  kind bigint NOT NULL,
  id text COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  digest bytea NOT NULL,
  PRIMARY KEY (kind, id)
);
"""

_SESSIONS: Final = """
CREATE TABLE IF NOT EXISTS sessions (
  id text COLLATE "C" PRIMARY KEY,
  account_id text COLLATE "C" NOT NULL REFERENCES accounts (id),
  user_id text COLLATE "C" NOT NULL REFERENCES users (id),
  key_id text COLLATE "C" NOT NULL,
  secret_version bigint NOT NULL,
  create_time bigint NOT NULL,
  last_seen_time bigint NOT NULL,
  end_time bigint,
  peer text COLLATE "C" NOT NULL,
  user_agent text COLLATE "C" NOT NULL,
  digest bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_create_time ON sessions (create_time);
ALTER TABLE audit_events
  ADD COLUMN IF NOT EXISTS actor_session_id text COLLATE "C" NOT NULL DEFAULT '';
"""

_NODES: Final = """
ALTER TABLE peppers ADD COLUMN IF NOT EXISTS is_announced bigint NOT NULL DEFAULT 0;

CREATE TABLE IF NOT EXISTS nodes (
  id text COLLATE "C" PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  beat_time timestamptz NOT NULL,
  peppers text COLLATE "C" NOT NULL,
  clock_offset bigint
) WITH (fillfactor = 50);
"""

_SIGN_IN: Final = """
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS issuer text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS subject text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS provider_session text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS auth_time bigint NOT NULL DEFAULT 0;
CREATE INDEX IF NOT EXISTS sessions_by_subject ON sessions (issuer, subject) WHERE issuer <> '';
CREATE INDEX IF NOT EXISTS sessions_by_provider_session ON sessions (issuer, provider_session)
  WHERE issuer <> '';

CREATE TABLE IF NOT EXISTS identities (
  issuer text COLLATE "C" NOT NULL,
  subject text COLLATE "C" NOT NULL,
  account_id text COLLATE "C" NOT NULL REFERENCES accounts (id),
  user_id text COLLATE "C" NOT NULL UNIQUE REFERENCES users (id),
  bind_time bigint NOT NULL,
  mac bytea NOT NULL,
  PRIMARY KEY (issuer, subject)
);

CREATE TABLE IF NOT EXISTS invitations (
  id text COLLATE "C" PRIMARY KEY,
  account_id text COLLATE "C" NOT NULL REFERENCES accounts (id),
  user_id text COLLATE "C" NOT NULL UNIQUE REFERENCES users (id),
  created_by text COLLATE "C" NOT NULL REFERENCES users (id),
  create_time bigint NOT NULL,
  digest bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS invitations_by_create_time ON invitations (create_time);

CREATE TABLE IF NOT EXISTS used_values (
  kind text COLLATE "C" NOT NULL,
  value text COLLATE "C" NOT NULL,
  until bigint NOT NULL,
  PRIMARY KEY (kind, value)
);
CREATE INDEX IF NOT EXISTS used_values_by_until ON used_values (until);

CREATE INDEX IF NOT EXISTS api_keys_of_admins
  ON api_keys (account_id) WHERE revoke_time IS NULL AND role = 3;
"""

_HISTORIES: Final = """
-- The server that the epoch holds for, and what its name ends with there: see `Writes.begin`.
ALTER TABLE installation ADD COLUMN IF NOT EXISTS server text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE installation ADD COLUMN IF NOT EXISTS epoch_suffix text COLLATE "C" NOT NULL DEFAULT '';
"""
_FIRST_HISTORY: Final = f"""
UPDATE installation SET server = {HISTORY};
"""

STEPS: Final[Sequence[Step]] = (
    Step("m001_initial", _INITIAL),
    Step("m002_integrity", _INTEGRITY),
    Step("m003_key_counts", _KEY_COUNTS, on_yugabyte=_KEY_COUNTS_BY_ROW),
    Step("m004_audit_event_subjects", _AUDIT_EVENT_SUBJECTS),
    Step("m005_list_indexes", _LIST_INDEXES),
    Step("m006_pruning", _PRUNING),
    Step("m007_sessions", _SESSIONS),
    Step("m008_nodes", _NODES),
    Step("m009_sign_in", _SIGN_IN),
    Step("m010_histories", _HISTORIES + _FIRST_HISTORY, on_yugabyte=_HISTORIES),
)

TRIGGERS: Final = frozenset({"api_keys_counted", "api_keys_recounted"})
BOOKKEEPING: Final = frozenset(
    {"commits", "outcomes", "leases", "nodes", "key_usage", "schema_version", "schema_steps"}
)
"""Tables that this backend has for itself; what SQLite has too stands in the others."""
OWN_COLUMNS: Final = frozenset(
    {
        ("peppers", "seq"),
        ("api_keys", "old_use_version"),
        ("installation", "server"),
        ("installation", "epoch_suffix"),
    }
)
"""Columns of the others that this backend has for itself."""

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS schema_version (
  id bigint PRIMARY KEY CHECK (id = 1),
  version bigint NOT NULL,
  oldest_program bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS schema_steps (
  name text COLLATE "C" PRIMARY KEY,
  time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO schema_version VALUES (1, 0, 0) ON CONFLICT (id) DO NOTHING;
"""
_TRIES: Final = 10
_BEING_MADE: Final = (
    # CREATE TABLE IF NOT EXISTS fails when another process is creating the same table. What it
    # fails with depends on how far the other is: the name of the row type, of the table, or its
    # entry in an index of the catalogue is taken.
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.UniqueViolation,
)


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> list[str]:
    """Bring the schema up to date, one process at a time; return the names of the steps done.

    Raises:
        StoreUnusableError: The database needs a newer program, or belongs to something else.
        StoreLockedError: The database cannot be reached.
    """
    try:
        if not _is_marked(connection):
            _assert_empty(connection)
            _mark(connection)
        step_by_step = _by_statement if connection.is_yugabyte else _at_once
        done = [
            step.name
            for number, step in enumerate(steps, 1)
            if step_by_step(connection, number, step, len(steps))
        ]
    except psycopg.Error as error:
        raise store_error(error) from error
    return done


def _at_once(connection: Connection, number: int, step: Step, known: int) -> bool:
    """Do a step that is not done yet, in one transaction; return whether it was done."""
    with connection.transaction():
        # Only one process migrates at a time. The others wait for this row, and find the step done.
        connection.execute("SELECT version FROM schema_version WHERE id = 1 FOR UPDATE")
        if not _is_next(connection, number, known):
            return False
        connection.execute(step.statements)
        _record(connection, number, step)
        return True


def _by_statement(connection: Connection, number: int, step: Step, known: int) -> bool:
    """Do a step whose statements are transactions of their own, and record it last.

    Whoever else is at the same step at this moment runs the same statements, each of which may run
    twice.
    """
    if not _is_next(connection, number, known):
        return False
    for statement in yugabyte.statements(step.on_yugabyte or step.statements):
        _patiently(partial(connection.execute, statement))
    _patiently(lambda: _record(connection, number, step))
    return True


def _patiently(work: Callable[[], object]) -> None:
    """Do something again that has lost against somebody who changes the schema too."""
    for tries_left in reversed(range(_TRIES)):
        try:
            work()
        except psycopg.Error as error:
            if not tries_left or not (is_conflict(error) or isinstance(error, _BEING_MADE)):
                raise
        else:
            return


def _is_next(connection: Connection, number: int, known: int) -> bool:
    version, oldest_program = _version(connection)
    if oldest_program > known:
        raise _too_new()
    return version < number


def _record(connection: Connection, number: int, step: Step) -> None:
    with connection.transaction():
        connection.execute(
            "INSERT INTO schema_steps (name) VALUES ($1) ON CONFLICT DO NOTHING", (step.name,)
        )
        connection.execute(
            "UPDATE schema_version SET version = greatest(version, $1::bigint),"
            " oldest_program = greatest(oldest_program, $2::bigint)",
            (number, step.narrows_for),
        )


def assert_current(connection: Connection, steps: Sequence[Step] = STEPS) -> None:
    """Refuse a schema that this program cannot work with.

    Raises:
        StoreUnusableError: It is too old, needs a newer program, or is not ours.
        StoreLockedError: The database cannot be reached.
    """
    try:
        if not _is_marked(connection):
            raise StoreUnusableError(
                "the database holds no installation; run `keybearer-server init`"
            )
        version, oldest_program = _version(connection)
    except psycopg.Error as error:
        raise store_error(error) from error
    if version < len(steps):
        raise StoreUnusableError(
            f"the schema of the database is {len(steps) - version} steps behind this program; run "
            "`keybearer-server migrate`"
        )
    if oldest_program > len(steps):
        raise _too_new()


def _too_new() -> StoreUnusableError:
    return StoreUnusableError(
        "the database was brought up to date by a newer version of keybearer, and no longer works "
        "with this one; use that version"
    )


def _is_marked(connection: Connection) -> bool:
    return _one(connection, "SELECT to_regclass('schema_version') IS NOT NULL")[0] is True


def _version(connection: Connection) -> tuple[int, int]:
    version, oldest = _one(connection, "SELECT version, oldest_program FROM schema_version")
    return version, oldest


def _assert_empty(connection: Connection) -> None:
    tables = _one(
        connection,
        # Another process may be making these two at this moment.
        "SELECT count(*) FROM pg_class WHERE relname NOT IN ('schema_version', 'schema_steps')"
        " AND relkind IN ('r', 'p', 'v', 'm') AND relnamespace = current_schema()::regnamespace",
    )[0]
    if tables and not _is_marked(connection):
        raise StoreUnusableError("the database holds tables of something else; give an empty one")


def _mark(connection: Connection) -> None:
    if connection.is_yugabyte:
        for statement in yugabyte.statements(_CREATE):
            _patiently(partial(connection.execute, statement))
    else:
        _patiently(partial(connection.execute, _CREATE))


def _one(connection: Connection, sql: str) -> rows.Row:
    row = connection.execute(sql).fetchone()
    return row or ()
