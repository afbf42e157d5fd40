"""`audit prune` and `keys prune`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keybearer_service.cli.long_work import breakable
from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DataDirOption,
    Output,
    OutputOption,
    duration_micros,
)
from keybearer_service.cli.output import print_result
from keybearer_service.config import PRUNE_VARIABLES, ConfigError
from keybearer_service.domain.clock import SECOND, Micros, rfc3339
from keybearer_service.offline.key_pruning import left_behind, prune_keys
from keybearer_service.offline.pruning import prune_audit

keys_app = typer.Typer(help="Delete keys that were revoked long ago.", no_args_is_help=True)


@keys_app.callback()
def _group() -> None:
    """Delete keys that were revoked long ago."""


def audit_prune(
    *,
    export: Annotated[
        Path, typer.Option(metavar="FILE", help="A new file, which gets the events first.")
    ],
    before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Prune what is older than this, such as 2026-12-31; wins over --older-than.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            envvar=PRUNE_VARIABLES[0],
            help="Prune what is older than this, such as 365d.",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Export old audit events to a file and delete them, while the database is in use."""
    with opened(config, data_dir, database) as container:
        limit = _limit("--before", before, older_than, container.clock.now())
        pruned = prune_audit(
            container.store, container.mutations, container.keyring.audit_key, limit, export
        )
    text = f"No event is older than {rfc3339(limit)}: nothing is pruned."
    if pruned.events:
        text = (
            f"Pruned {pruned.events} events, which are in {export}: keep it. The log begins with "
            f"event {pruned.first_kept_seq} now.\nSHA-256 of the file, which the log holds too: "
            f"{pruned.export_sha256}"
        )
    print_result(
        {
            "events": pruned.events,
            "first_kept_seq": pruned.first_kept_seq,
            "file": str(export) if pruned.events else None,
            "export_sha256": pruned.export_sha256 or None,
        },
        text,
        output,
    )


@keys_app.command("prune")
def keys_prune(
    *,
    revoked_before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Delete keys revoked before this, such as 2026-12-31; wins over --older-than.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            envvar=PRUNE_VARIABLES[1],
            help="Delete keys revoked longer ago than this, such as 365d.",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A new file, which gets the keys first, without their secrets."
        ),
    ] = None,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Delete keys that were revoked long ago, while the database is in use.

    Expired keys that are not revoked stay. So do keys that were revoked with a user whose deletion
    is still in the audit log: prune that first.
    """
    with (
        opened(config, data_dir, database) as container,
        breakable("what was deleted until then is gone; run it again for the rest") as progress,
    ):
        limit = _limit("--revoked-before", revoked_before, older_than, container.clock.now())
        pruned = prune_keys(
            container.store,
            container.mutations,
            container.keyring.audit_key,
            limit,
            export,
            progress=progress,
        )
    text = f"No key that may go was revoked before {rfc3339(limit)}: nothing is pruned."
    if pruned.keys:
        text = f"Pruned {pruned.keys} keys; their tokens are unknown now."
        if export is not None:
            text += f" They are in {export}."
    if pruned.left:
        text += f"\nLeft: {left_behind(pruned.left)}."
    print_result(
        {
            "keys": pruned.keys,
            "left": pruned.left,
            "file": str(export) if export is not None and pruned.keys else None,
        },
        text,
        output,
    )


def _limit(flag: str, time: str | None, older_than: str | None, now: Micros) -> Micros:
    if time is not None:
        return _moment(flag, time)
    if older_than is not None:
        return Micros(now - duration_micros("--older-than", older_than))
    raise ConfigError(f"give {flag} TIME or --older-than DURATION, such as 365d")


def _moment(flag: str, text: str) -> Micros:
    try:
        read = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{flag}: {text!r} is no time; write 2026-12-31 or 2026-12-31T18:00Z"
        ) from None
    if read.tzinfo is None:
        read = read.replace(tzinfo=UTC)
    return Micros(int(read.timestamp() * SECOND))
