"""`move`."""

from functools import partial
from typing import Annotated

import typer

from keybearer_service.cli.long_work import breakable
from keybearer_service.cli.options import (
    ConfigOption,
    DatabasePasswordFileOption,
    DataDirOption,
    InsecureDatabaseOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import print_result
from keybearer_service.config import ConfigError, describe, load
from keybearer_service.container import create_server_store, open_departing_file
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.moving import Mover
from keybearer_service.telemetry import logs


def move(
    *,
    data_dir: DataDirOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The empty database, postgresql://USER@HOST/NAME. "
            f"[env var: {describe('database').variable}]",
        ),
    ] = None,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon", help="Stay with the file; while nothing has arrived in the database."
        ),
    ] = False,
    database_password_file: DatabasePasswordFileOption = None,
    insecure_database: InsecureDatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Move an installation from its file to a database on PostgreSQL. Nothing is issued again.

    From its mark in the file on the file is not served any more, and the database is served once
    everything is there. A move that was broken off is ended by the same command again. Exit codes:
    0 done, 1 refused or broken off (one line says why), 2 wrong usage.
    """
    settings = load(
        config,
        {
            "data_dir": data_dir,
            "database": to,
            "database_password_file": database_password_file,
            "insecure_database": insecure_database,
        },
    )
    url = settings.database_url
    if url is None:
        raise ConfigError("--to: name the database")
    logs.configure("warning", json=False)
    directory = DataDir(settings.data_dir)
    directory.assert_initialised()
    directory.assert_writable()
    mover = Mover(
        data_dir=directory,
        target=url.text,
        open_file=partial(open_departing_file, directory.database),
        open_target=partial(create_server_store, url),
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    with breakable("run `keybearer-server move` again") as progress:
        if abandon:
            mover.abandon()
            print_result({"abandoned": True}, "The installation stays in its file.", output)
            return
        moved = mover.move(progress)
    print_result(
        {"epoch": moved.epoch, "keys": moved.keys},
        f"Moved {moved.keys} keys. Serve the installation with --database and the key files in\n"
        f"{directory.peppers}; every other node needs a copy of these.",
        output,
    )
