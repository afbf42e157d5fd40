"""`pepper add`, `pepper list` and `pepper retire`."""

import json
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
from keybearer_service.domain.clock import rfc3339
from keybearer_service.offline.peppers import add_pepper, list_peppers, retire_pepper

pepper_app = typer.Typer(help="Add, list and retire peppers.", no_args_is_help=True)


@pepper_app.command("add")
def pepper_add(
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Make a pepper. Secrets issued from now on use it; older ones go on with theirs."""
    with opened(config, data_dir, database) as container:
        pepper = add_pepper(
            container.mutations,
            container.keyring,
            container.entropy,
            container.installation.operator_account_id,
        )
    print_result({"id": pepper.id}, f"Added the pepper {pepper.id}.", output)


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
            "live_secrets": live_secrets,
        }
        for pepper, live_secrets in peppers
    ]
    if output is Output.JSON:
        typer.echo(json.dumps({"peppers": rows}))
        return
    table = Table("id", "created", "retired", "live secrets")
    for row in rows:
        table.add_row(*map(str, row.values()))
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
