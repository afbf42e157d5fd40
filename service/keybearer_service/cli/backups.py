"""`backup` and `restore`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from keybearer_service.cli.long_work import breakable
from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DatabasePasswordFileOption,
    DataDirOption,
    InsecureDatabaseOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import print_result
from keybearer_service.config import load
from keybearer_service.container import create_server_store, open_store
from keybearer_service.domain.clock import SECOND, SystemClock, rfc3339
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline import backups
from keybearer_service.offline.backups import keys_beside
from keybearer_service.offline.errors import LocalError


def backup(
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    keys: Annotated[
        bool, typer.Option(help="Copy the key files too, into FILE.peppers beside it.")
    ] = True,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Copy the database, while it is in use. Keep FILE and FILE.peppers apart.

    FILE gets its name when everything is written and on the disk: whatever breaks a backup off,
    what has that name is whole. Exit codes: 0 done, 1 refused or broken off (one line says why),
    2 wrong usage.
    """
    settings = load(config, {"data_dir": data_dir, "database": database})
    directory = DataDir(settings.data_dir, settings.database_url)
    _assert_target(file, directory)
    with (
        breakable(f"{file} was not written") as progress,
        opened(config, data_dir, database) as container,
    ):
        backups.back_up(container.store, directory, file, with_keys=keys, on_step=progress)
    result = {"file": str(file), "peppers": str(keys_beside(file)) if keys else ""}
    text = f"The database is in {file}."
    if keys:
        text += (
            f"\nThe key files are in {keys_beside(file)}: keep them apart. "
            "Either alone opens nothing; a restore needs both."
        )
    print_result(result, text, output)


def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordFileOption = None,
    insecure_database: InsecureDatabaseOption = None,
    peppers: Annotated[
        Path | None, typer.Option(help="The key files. [default: FILE.peppers]")
    ] = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Bring a backup back into an empty directory. What was changed since is undone.

    With a database elsewhere everything goes into that, which must be empty too, and the key files
    into the directory. There is an installation once everything is done; a restore that was broken
    off can be run again. Exit codes: 0 done, 1 refused or broken off (one line says why), 2 wrong
    usage.
    """
    settings = load(
        config,
        {
            "data_dir": data_dir,
            "database": database,
            "database_password_file": database_password_file,
            "insecure_database": insecure_database,
        },
    )
    url = settings.database_url
    _assert_file_name(file)
    clock = SystemClock()
    with breakable("nothing was restored") as progress:
        restored = backups.restore(
            DataDir(settings.data_dir, url),
            file,
            peppers or keys_beside(file),
            open_file=open_store,
            open_target=None if url is None else partial(create_server_store, url),
            clock=clock,
            entropy=SystemEntropy(),
            on_step=progress,
        )
    age = (clock.now() - restored.last_change) // SECOND
    last = rfc3339(restored.last_change)
    print_result(
        {"epoch": restored.epoch, "keys": restored.keys, "last_change": last, "age_seconds": age},
        f"Restored {restored.keys} keys. The last change in the backup is of {last}, {age} s ago.\n"
        "Every change since is undone, revocations too: a key revoked since then works again.\n"
        "Revoke again what was revoked; the audit log of the lost database names it.",
        output,
    )


def _assert_target(file: Path, directory: DataDir) -> None:
    _assert_file_name(file)
    parent = file.parent
    if not parent.is_dir():
        raise LocalError(f"{parent} is no directory; make it first")
    if parent.resolve().is_relative_to(directory.peppers.resolve()):
        raise LocalError(f"{parent} holds the key files; a backup belongs elsewhere")


def _assert_file_name(file: Path) -> None:
    if file.name in ("", ".."):
        raise LocalError(f"{file} is a directory; name a file")
