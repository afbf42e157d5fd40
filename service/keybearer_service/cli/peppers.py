"""`pepper add`, `pepper activate`, `pepper list` and `pepper retire`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DataDirOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import print_result
from keybearer_service.config import ConfigError
from keybearer_service.domain.clock import rfc3339
from keybearer_service.offline.peppers import (
    activate_pepper,
    add_pepper,
    list_peppers,
    retire_pepper,
)
from keybearer_service.storage import ServerStore

pepper_app = typer.Typer(help="Add, activate, list and retire peppers.", no_args_is_help=True)


@pepper_app.command("add")
def pepper_add(
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the key file here. [default: among the others]"),
    ] = None,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Make a pepper. Secrets issued from now on use it; older ones go on with theirs.

    Over a database that many nodes share no secret uses it before `pepper activate`: copy its file
    to the key files of every node first.
    """
    with opened(config, data_dir, database) as container:
        is_shared = isinstance(container.store, ServerStore)
        if out is not None and not is_shared:
            raise ConfigError("--out: is for a database that many nodes share")
        pepper = add_pepper(
            container.mutations,
            container.keyring,
            container.entropy,
            container.installation.operator_account_id,
            is_announced=is_shared,
            file=out,
        )
    text = f"Added the pepper {pepper.id}."
    if is_shared:
        text = (
            f"Announced the pepper {pepper.id}. Copy its file to peppers/{pepper.id}.pepper of "
            f"every node, then run: keybearer-server pepper activate {pepper.id}"
        )
    print_result({"id": pepper.id}, text, output)


@pepper_app.command("activate")
def pepper_activate(
    pepper_id: Annotated[str, typer.Argument(help="See `pepper list`.")],
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Have secrets use a pepper that was announced, once every node that runs has its file."""
    with opened(config, data_dir, database) as container:
        if not isinstance(container.store, ServerStore):
            raise ConfigError("database: name one; in a file a pepper is active at once")
        account_id = container.installation.operator_account_id
        activate_pepper(container.mutations, container.store, account_id, pepper_id)
    print_result({"id": pepper_id}, f"Activated the pepper {pepper_id}.", output)


@pepper_app.command("list")
def pepper_list(
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """List the peppers and how many live secrets need each."""
    with opened(config, data_dir, database) as container:
        peppers = list_peppers(container.store, container.clock.now())
    rows = [
        {
            "id": pepper.id,
            "created": rfc3339(pepper.create_time),
            "retired": "" if pepper.retire_time is None else rfc3339(pepper.retire_time),
            "announced": pepper.is_announced,
            "live_secrets": live_secrets,
        }
        for pepper, live_secrets in peppers
    ]
    if output is Output.JSON:
        typer.echo(json.dumps({"peppers": rows}))
        return
    table = Table("id", "created", "retired", "announced", "live secrets")
    for row in rows:
        shown = {**row, "announced": "yes" if row["announced"] else ""}
        table.add_row(*map(str, shown.values()))
    Console().print(table)


@pepper_app.command("retire")
def pepper_retire(
    pepper_id: Annotated[str, typer.Argument(help="See `pepper list`.")],
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Retire a pepper that no live secret needs any more."""
    with opened(config, data_dir, database) as container:
        retire_pepper(container.mutations, container.installation.operator_account_id, pepper_id)
    print_result(
        {"id": pepper_id}, f"Retired the pepper {pepper_id}; its file may be removed.", output
    )
