"""Bugs of the store on PostgreSQL to plant, each with a test that must fail with it.

`test_planted_bugs.py` runs the tests; each in a process of its own, in which `plant` was called.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from keybearer._cache.verdict_cache import VerdictCache
from keybearer_service.storage import (
    postgres,
    postgres_connections,
    postgres_gathering,
    postgres_nodes,
    postgres_session,
    postgres_writes,
    rows,
)
from keybearer_service.watch import hub

VARIABLE: Final = "KEYBEARER_TEST_BUG"


class Bug(NamedTuple):
    """What is planted, and what finds it."""

    plant: Callable[[], None]
    test: str
    """Below tests/."""


def _replace(owner: object, name: str, value: Any) -> None:
    setattr(owner, name, value)


def look_at_no_tag() -> None:
    """Treat every answer to COMMIT as a success."""

    def finish(connection: Any, statements: Sequence[Any] = ()) -> None:
        postgres_session.execute_all(connection, (*statements, *postgres_writes._COMMIT))  # noqa: SLF001

    _replace(postgres_writes, "_finish", finish)


def end_the_pipeline_before_commit() -> None:
    """Send COMMIT by itself, after what may have failed."""
    finish = postgres_writes._finish  # noqa: SLF001

    def finish_apart(connection: Any, statements: Sequence[Any] = ()) -> None:
        import psycopg  # noqa: PLC0415 - it may not be installed

        for one in statements:
            try:
                connection.execute(one.sql, one.values)
            except psycopg.Error:
                connection.execute("ROLLBACK")
        finish(connection)

    _replace(postgres_writes, "_finish", finish_apart)


def look_for_no_nonce() -> None:
    """Treat every COMMIT without an answer as a failure."""
    _replace(postgres_writes.Writes, "_is_committed", lambda _self, _nonce: False)


def look_at_no_row_counts() -> None:
    """Send an update that must find its row together with COMMIT."""
    _replace(postgres_session.PostgresSession, "finish", postgres_session.PostgresSession._taken)  # noqa: SLF001


def keep_what_was_read_before() -> None:
    """Believe what was read with taking the row after it was written over."""
    write = postgres_session.PostgresSession._write  # noqa: SLF001

    def write_and_keep(self: Any, table: str, sql: str, *values: object, **keywords: Any) -> None:
        kept = dict(self._read)
        write(self, table, sql, *values, **keywords)
        self._read = kept

    _replace(postgres_session.PostgresSession, "_write", write_and_keep)


def believe_another_server() -> None:
    """Let a proof vouch for whichever server a connection has led to."""
    assert_proven = postgres_nodes.Membership.assert_proven
    _replace(
        postgres_nodes.Membership,
        "assert_proven",
        lambda self, _connection=None: assert_proven(self),
    )


def prove_nothing() -> None:
    """Believe a server however long ago it could commit."""
    _replace(postgres_nodes.Membership, "assert_proven", lambda _self, _connection=None: None)


def send_pongs_on_older_proofs() -> None:
    """Answer a ping after a proof that began before it."""
    _replace(postgres.PostgresStore, "is_proven_since", lambda _self, _begun: True)


def keep_verdicts_of_other_epochs() -> None:
    """Keep a verdict by its revision alone."""
    may_keep = VerdictCache._may_keep  # noqa: SLF001

    def keep(self: Any, pending: Any, verdict: Any, connection: int) -> bool:
        return may_keep(self, pending, replace(verdict, epoch=self._epoch), connection)

    _replace(VerdictCache, "_may_keep", keep)


def leave_commits_to_memory() -> None:
    """Let the database decide whether a commit waits for the disk."""
    _replace(postgres_connections, "_DURABLE", frozenset({"on", "off", "local", "remote_apply"}))


def reissue_by_reading() -> None:
    """Read whether a secret was used, and then replace it."""

    def replace_unused(self: Any, secret: Any, columns: rows.Columns) -> bool:
        row = self.one("SELECT used_version FROM key_usage WHERE key_id = ?", secret.key_id)
        if row is not None and (row[0] or 0) >= secret.version:
            return False
        self.update("api_keys", secret.key_id, columns)
        return True

    _replace(postgres_session.PostgresSession, "replace_unused", replace_unused)


def number_without_the_row() -> None:
    """Take revisions as a sequence hands them out, and no row that orders their commits."""
    _replace(
        postgres_writes,
        "_TAKE_ROW",
        (
            postgres_session.Statement("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
            postgres_session.Statement("UPDATE commits SET count = count + 1 WHERE false"),
        ),
    )
    take = postgres_session.execute_all

    def taking(connection: Any, statements: Sequence[Any]) -> Any:
        found = take(connection, statements)
        for cursor in found[1:2]:
            cursor._rowcount = 1  # noqa: SLF001 - what was not taken seems to be
        return found

    _replace(postgres_writes, "execute_all", taking)


def read_standbys() -> None:
    """Take verdicts from a server that only follows another one."""

    def check(_self: Any, connection: Any) -> None:
        connection.history = connection.server = ""

    _replace(postgres_connections.Connector, "_check", check)
    _replace(postgres_connections.Connection, "is_at_standby", False)


def keep_the_epoch() -> None:
    """Go on under the same epoch, whichever server it is."""
    _replace(postgres_session.PostgresSession, "begin_history", lambda _self, _suffix="": None)
    read = postgres.PostgresStore._read  # noqa: SLF001

    def read_as_ever(self: Any, statement: str, *values: object) -> Any:
        found, _ = read(self, statement, *values)
        return found, found[0][0] if found else ""

    _replace(postgres.PostgresStore, "_read", read_as_ever)


def hand_out_early_answers() -> None:
    """Have a late caller wait for a statement that is on its way already."""
    read_for = postgres_gathering.Gathering._read_for  # noqa: SLF001

    def read_for_late_ones_too(self: Any, group: Any) -> None:
        read_many = self._read_many

        def read_and_tell(keys: Sequence[str]) -> Any:
            found = read_many(keys)
            late, self._waiting = self._waiting, []
            for call in late:
                call.answer = (found[0].get(call.key_id), found[1])
                call.is_told.set()
            return found

        self._read_many = read_and_tell
        try:
            read_for(self, group)
        finally:
            self._read_many = read_many

    _replace(postgres_gathering.Gathering, "_read_for", read_for_late_ones_too)


def read_the_head_before_the_ping() -> None:
    """Answer a ping with a head that was read before it came."""
    answer = hub.WatchHub._answer  # noqa: SLF001

    def answer_late_ones_too(self: Any, pings: Any, head: int) -> None:
        answer(self, [*pings, *self._due_pings()], head)

    _replace(hub.WatchHub, "_answer", answer_late_ones_too)


BUGS: Final[Mapping[str, Bug]] = {
    "no-tag": Bug(
        look_at_no_tag,
        "storage/test_postgres.py::test_a_commit_that_is_answered_with_a_rollback_is_none",
    ),
    "commit-apart": Bug(
        end_the_pipeline_before_commit,
        "storage/test_postgres_writes.py"
        "::test_nothing_is_committed_after_a_statement_that_went_with_commit_has_failed",
    ),
    "no-nonce": Bug(
        look_for_no_nonce,
        "storage/test_postgres.py::test_a_commit_whose_answer_is_lost_is_found_out",
    ),
    "no-row-counts": Bug(
        look_at_no_row_counts,
        "storage/test_postgres_writes.py"
        "::test_nothing_is_committed_when_the_last_statement_finds_no_row",
    ),
    "stale-reads": Bug(
        keep_what_was_read_before,
        "storage/test_contract.py::test_what_is_foreseen_is_read_like_everything_else",
    ),
    "another-server": Bug(
        believe_another_server,
        "storage/test_postgres_proof.py::test_a_proof_vouches_for_its_own_server_alone",
    ),
    "no-proof": Bug(
        prove_nothing,
        "storage/test_postgres_proof.py"
        "::test_a_server_that_its_standby_has_left_answers_nothing_after_2_s",
    ),
    "older-proof": Bug(
        send_pongs_on_older_proofs,
        "storage/test_postgres_proof.py"
        "::test_a_server_that_its_standby_has_left_answers_nothing_after_2_s",
    ),
    "other-epochs": Bug(
        keep_verdicts_of_other_epochs,
        "watch/test_verdict_cache.py::test_an_answer_of_another_history_is_not_kept",
    ),
    "commits-in-memory": Bug(
        leave_commits_to_memory,
        "storage/test_postgres.py::test_every_connection_waits_for_the_disk",
    ),
    "reissue-by-reading": Bug(
        reissue_by_reading,
        "storage/test_contract.py::test_of_a_use_and_a_reissue_one_alone_succeeds",
    ),
    "no-row": Bug(
        number_without_the_row,
        "storage/test_contract.py::test_two_writers_never_lose_each_others_update",
    ),
    "standbys": Bug(
        read_standbys,
        "storage/test_postgres_histories.py::test_a_standby_answers_nothing",
    ),
    "same-epoch": Bug(
        keep_the_epoch,
        "storage/test_postgres_histories.py"
        "::test_revisions_that_a_failover_has_lost_are_used_again_under_another_epoch",
    ),
    "early-answers": Bug(
        hand_out_early_answers,
        "unit/test_gathering.py::test_an_answer_is_of_a_read_that_began_after_its_call",
    ),
    "head-before-ping": Bug(
        read_the_head_before_the_ping,
        "rpc/test_watch.py::test_a_ping_that_comes_while_the_head_is_read_waits_for_another_read",
    ),
}


def pytest_configure() -> None:
    """Plant the bug that the environment names; pytest calls this in the process of its tests."""
    BUGS[os.environ[VARIABLE]].plant()
