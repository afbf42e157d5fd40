"""`audit prune`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

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
from keybearer_service.domain.clock import SECOND, Micros
from keybearer_service.offline.pruning import prune_audit


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
        if before is not None:
            limit = _moment(before)
        elif older_than is not None:
            limit = Micros(container.clock.now() - duration_micros("--older-than", older_than))
        else:
            raise ConfigError("give --before TIME or --older-than DURATION, such as 365d")
        pruned = prune_audit(
            container.store, container.mutations, container.keyring.audit_key, limit, export
        )
    print_result(
        {
            "events": pruned.events,
            "first_kept_seq": pruned.first_kept_seq,
            "file": str(export),
            "export_sha256": pruned.export_sha256,
        },
        f"Pruned {pruned.events} events, which are in {export}: keep it. The log begins with event "
        f"{pruned.first_kept_seq} now.\nSHA-256 of the file, which the log holds too: "
        f"{pruned.export_sha256}",
        output,
    )


def _moment(text: str) -> Micros:
    try:
        read = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"--before: {text!r} is no time; write 2026-12-31 or 2026-12-31T18:00Z"
        ) from None
    if read.tzinfo is None:
        read = read.replace(tzinfo=UTC)
    return Micros(int(read.timestamp() * SECOND))
