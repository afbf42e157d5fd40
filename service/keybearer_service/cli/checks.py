"""`check`, `audit verify` and `audit export`."""

from typing import Annotated

import typer

from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import ConfigOption, DataDirOption, Output, OutputOption
from keybearer_service.cli.output import EXIT_FINDINGS, print_result
from keybearer_service.config import ConfigError, load
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline import audit

audit_app = typer.Typer(help="Check and export the audit log.", no_args_is_help=True)


def check(
    *,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Look for damage in the database, the key files and the audit log, and at file owners."""
    directory = DataDir(load(config, {"data_dir": data_dir}).data_dir)
    with opened(config, data_dir) as container:
        findings = [*audit.check(container.store, container.audit), *directory.problems()]
    print_result({"findings": findings}, "\n".join(findings) or "All is well.", output)
    if findings:
        raise typer.Exit(EXIT_FINDINGS)


@audit_app.command("verify")
def audit_verify(
    *,
    expect: Annotated[
        str | None, typer.Option(help="SEQ:HASH, a head noted earlier, as from the log.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Check the hash chain of the audit log."""
    expected = None if expect is None else _head(expect)
    with opened(config, data_dir) as container:
        report = audit.verify_audit(container.store, container.audit, expected)
    head = f"{report.head_seq}:{report.head_hash.hex()}"
    result = {"events": report.events, "head": head, "broken_seq": report.broken_seq}
    if report.broken_seq is not None:
        print_result(
            {**result, "problem": report.problem},
            f"Broken: {report.problem}. The {report.events} events before it are whole.",
            output,
        )
        raise typer.Exit(EXIT_FINDINGS)
    print_result(result, f"{report.events} events, all whole. Head: {head}", output)


@audit_app.command("export")
def audit_export(*, data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Write the audit log as JSON lines, the last one being the head."""
    with opened(config, data_dir) as container:
        for line in audit.export_audit(container.store, container.audit):
            typer.echo(line)


def _head(text: str) -> tuple[int, bytes]:
    seq, _, head = text.partition(":")
    refusal = ConfigError("--expect: SEQ:HASH, a number and hexadecimal digits")
    if not seq.isascii() or not seq.isdigit():
        raise refusal
    try:
        return int(seq), bytes.fromhex(head)
    except ValueError:
        raise refusal from None
