"""`check`, `audit verify` and `audit export`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from keybearer_service.cli.opening import opened, opened_store
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DataDirOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import (
    EXIT_FINDINGS,
    CouldNotLookError,
    print_result,
    progress_line,
)
from keybearer_service.config import ConfigError, load
from keybearer_service.installation.data_directory import DataDir, DataDirError
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.offline import audit
from keybearer_service.offline.audit import CheckReport
from keybearer_service.storage import StoreError

audit_app = typer.Typer(help="Check and export the audit log.", no_args_is_help=True)

ExpectOption = Annotated[
    str | None, typer.Option(help="SEQ:HASH, a head noted earlier, as from the log.")
]
_TABLES = {"accounts": "accounts", "users": "users", "api_keys": "keys"}


def check(
    *,
    expect: ExpectOption = None,
    no_keys: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            help="Without the key files the database alone is looked at: no hash, no row against "
            "its events.",
        ),
    ] = False,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Look for damage and tampering in the database, the key files, the audit log; at file owners.

    Exit codes: 0 all is well, 1 findings, 2 could not look.
    """
    with _looking():
        expected = None if expect is None else _head(expect)
        if expected is not None and no_keys:
            raise ConfigError("--expect needs the key files; leave out --no-keys")
        settings = load(config, {"data_dir": data_dir, "database": database})
        directory = DataDir(settings.data_dir, settings.database_url)
        if no_keys:
            with opened_store(config, data_dir, database) as store:
                report = CheckReport(findings=audit.check_store(store))
        else:
            with opened(config, data_dir, database) as container, progress_line() as progress:
                report = audit.check(
                    container.store, container.keyring.audit_key, expected, progress=progress
                )
        findings = [*report.findings, *directory.problems()]
    result: dict[str, Any] = {"findings": findings}
    if no_keys:
        notes = ["Not compared without the key files: hashes and rows."]
    else:
        notes = _notes(report)
        head = f"{report.head_seq}:{report.head_hash.hex()}"
        result |= {"head": head, "events": report.events, "compared": dict(report.compared)}
    result["notes"] = notes
    text = "\n".join([*findings, *notes] if findings else ["All is well.", *notes])
    print_result(result, text, output)
    if findings:
        raise typer.Exit(EXIT_FINDINGS)


@audit_app.command("verify")
def audit_verify(
    *,
    expect: ExpectOption = None,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Check the hash chain of the audit log, and that it ends where the head says.

    Exit codes: 0 all is well, 1 findings, 2 could not look.
    """
    with _looking():
        expected = None if expect is None else _head(expect)
        with opened(config, data_dir, database) as container, progress_line() as progress:
            report, head_findings = audit.verify_audit(
                container.store, container.keyring.audit_key, expected, progress=progress
            )
    head = f"{report.head_seq}:{report.head_hash.hex()}"
    result = {
        "events": report.events,
        "pruned": report.pruned,
        "erased": report.erased,
        "head": head,
        "broken_seq": report.broken_seq,
    }
    problem = report.problem or "; ".join(head_findings)
    if problem:
        print_result(
            {**result, "problem": problem},
            f"Broken: {problem}. {report.events} events from the first one on are whole.",
            output,
        )
        raise typer.Exit(EXIT_FINDINGS)
    erased = f" {report.erased} mention an erased user." if report.erased else ""
    begin = (
        f" The log begins behind event {report.pruned}: see AUDIT_PRUNED." if report.pruned else ""
    )
    text = f"{report.events} events, all whole.{begin}{erased} Head: {head}"
    print_result(result, text, output)


@audit_app.command("export")
def audit_export(
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the audit log as JSON lines, the last one being the head."""
    with opened(config, data_dir, database) as container:
        for line in audit.export_audit(container.store):
            typer.echo(line)


@contextmanager
def _looking() -> Iterator[None]:
    try:
        yield
    except (ConfigError, DataDirError, KeyringError, StoreError) as error:
        raise CouldNotLookError(str(error)) from error


def _notes(report: CheckReport) -> list[str]:
    rows = ", ".join(f"{noun} {report.compared.get(one, 0)}" for one, noun in _TABLES.items())
    notes = [f"Compared: events {report.events}, {rows}."]
    if not report.has_head:
        notes.append("An older version wrote this database last, and kept no head to compare.")
    if report.not_compared:
        notes.append(
            f"{report.not_compared} rows were changed last by an older version: nothing to compare."
        )
    return [*notes, *(f"Not to be seen: {one}." for one in audit.UNSEEN)]


def _head(text: str) -> tuple[int, bytes]:
    seq, _, head = text.partition(":")
    refusal = ConfigError("--expect: SEQ:HASH, a number and hexadecimal digits")
    if not seq.isascii() or not seq.isdigit():
        raise refusal
    try:
        return int(seq), bytes.fromhex(head)
    except ValueError:
        raise refusal from None
