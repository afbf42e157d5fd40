"""`init`."""

from typing import Annotated

import typer

from keybearer._wire.limits import MAX_NAME
from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DatabasePasswordFileOption,
    DataDirOption,
    InsecureDatabaseOption,
    Output,
    OutputOption,
    TokenFileOption,
    duration_micros,
)
from keybearer_service.cli.output import token_output
from keybearer_service.config import load
from keybearer_service.container import create_store
from keybearer_service.domain import validators
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.token_format import DEFAULT_PREFIX
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.initialise import initialise
from keybearer_service.usecases.accounts import CreatedAccount, NewAccount
from keybearer_service.usecases.issuing import Expiration


def init(
    *,
    account: Annotated[str, typer.Option(help="The name of the operator account.")],
    admin_email: Annotated[str, typer.Option(help="The address of its first administrator.")],
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordFileOption = None,
    insecure_database: InsecureDatabaseOption = None,
    prefix: Annotated[str, typer.Option(help="What tokens begin with.")] = DEFAULT_PREFIX,
    ttl: Annotated[
        str | None, typer.Option(help="Life of the first key, as 90d. Without: for ever.")
    ] = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Make an installation, without serving it."""
    settings = load(
        config,
        {
            "data_dir": data_dir,
            "database": database,
            "database_password_file": database_password_file,
            "insecure_database": insecure_database,
        },
    )
    email = validators.email("--admin-email", admin_email)
    new = NewAccount(
        name=validators.name("--account", account),
        admin_email=email,
        admin_display_name=email[:MAX_NAME],
        expiration=Expiration(ttl=None if ttl is None else duration_micros("--ttl", ttl)),
    )
    with token_output(token_file, output) as destination:
        created = make_installation(DataDir(settings.data_dir, settings.database_url), new, prefix)
        ids = {
            "account_id": created.account.id,
            "user_id": created.user.id,
            "api_key_id": created.issued.key.id,
        }
        destination.write(ids, created.issued.token)


def make_installation(directory: DataDir, new: NewAccount, prefix: str) -> CreatedAccount:
    """Make an installation with the machine's clock and randomness.

    Raises:
        DataDirError, LocalError: It cannot be made there.
    """
    return initialise(
        directory,
        new,
        prefix,
        create_store=create_store,
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
