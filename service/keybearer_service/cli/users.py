"""`users erase`."""

from typing import Annotated

import typer

from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DataDirOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import print_result
from keybearer_service.offline import erasure

users_app = typer.Typer(help="Erase personal data of users.", no_args_is_help=True)


@users_app.callback()
def _group() -> None:
    """Erase personal data of users."""


@users_app.command("erase")
def users_erase(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="A user that is deleted.")],
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Erase the e-mail address and the name of a deleted user for good, from the audit log too.

    Backups, exports and logs that were written before keep them.
    """
    with opened(config, data_dir, database) as container:
        erased = erasure.erase_user(container.mutations, container.store, user_id)
    lines = [f"Erased. Backups, exports and logs written before still name the user {user_id}."]
    if erased.old_events:
        lines.append(
            f"{erased.old_events} audit events of an older version may hold the address inside "
            "their hash, and keep it until they are pruned."
        )
    if not erased.is_log_empty:
        lines.append(
            "A server was reading: the write-ahead log may hold the texts until it is written "
            "over, at the latest when the server ends."
        )
    result = {
        "user_id": user_id,
        "texts": erased.texts,
        "old_events": erased.old_events,
        "log_empty": erased.is_log_empty,
    }
    print_result(result, "\n".join(lines), output)
