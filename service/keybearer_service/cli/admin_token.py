"""`admin-token`: break glass."""

from typing import Annotated

import typer

from keybearer_service.cli.opening import opened
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DataDirOption,
    Output,
    OutputOption,
    TokenFileOption,
    duration_micros,
)
from keybearer_service.cli.output import token_output
from keybearer_service.offline.break_glass import issue_admin_token


def admin_token(
    *,
    email: Annotated[str, typer.Option(help="An administrator; made when there is none.")],
    account: Annotated[str, typer.Option(help="Account id. [default: the operator account]")] = "",
    ttl: Annotated[str, typer.Option(help="Life of the token, as 1h.")] = "1h",
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Break glass: issue an ADMIN token with access to the files alone. It is audited."""
    life = duration_micros("--ttl", ttl)
    with (
        token_output(token_file, output) as destination,
        opened(config, data_dir, database) as container,
    ):
        issued = issue_admin_token(
            container.mutations,
            container.issuer,
            account or container.installation.operator_account_id,
            email,
            life,
        )
        ids = {
            "account_id": issued.key.account_id,
            "user_id": issued.key.owner_id,
            "api_key_id": issued.key.id,
        }
        destination.write(ids, issued.token)
