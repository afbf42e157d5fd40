"""The command `keybearer-server`: its subcommands, and how it ends when it refuses."""

import os
import sys
from importlib.metadata import version as version_of
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from keybearer._wire.redaction import redact
from keybearer.access import RuleError
from keybearer_service.cli.admin_token import admin_token
from keybearer_service.cli.backups import backup, restore
from keybearer_service.cli.checks import audit_app, check
from keybearer_service.cli.healthcheck import healthcheck
from keybearer_service.cli.initialising import init
from keybearer_service.cli.migrating import migrate
from keybearer_service.cli.moving import move
from keybearer_service.cli.output import EXIT_COULD_NOT_LOOK, EXIT_REFUSED, CouldNotLookError
from keybearer_service.cli.peppers import pepper_app
from keybearer_service.cli.pruning import audit_prune, keys_app
from keybearer_service.cli.quickstart import quickstart
from keybearer_service.cli.serving import bounds_help, serve
from keybearer_service.cli.users import users_app
from keybearer_service.config import ConfigError
from keybearer_service.domain.errors import ServiceError
from keybearer_service.installation.data_directory import DataDirError
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.net.addresses import ListenError
from keybearer_service.net.tls import TlsError
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import StoreError, files

app = typer.Typer(
    name="keybearer-server",
    help="Issue, list, rotate, revoke and validate API keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: as markup, "[env var: …]" would be a style and disappear.
    rich_markup_mode=None,
)
app.command()(quickstart)
app.command()(init)
app.command(epilog=bounds_help())(serve)
for command in (admin_token, backup, restore, move, check, migrate):
    app.command()(command)
audit_app.command("prune")(audit_prune)
app.add_typer(audit_app, name="audit")
app.add_typer(keys_app, name="keys")
app.add_typer(pepper_app, name="pepper")
app.add_typer(users_app, name="users")
app.command()(healthcheck)


def main() -> None:
    """Run the command. A refusal is one line on standard error and an exit code other than 0."""
    _prepare_streams()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (
        ConfigError,
        DataDirError,
        KeyringError,
        ListenError,
        LocalError,
        RuleError,
        ServiceError,
        StoreError,
        TlsError,
    ) as error:
        _refuse(redact(str(error)))
    except CouldNotLookError as error:
        _refuse(redact(str(error)), EXIT_COULD_NOT_LOOK)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        _abandon_output()
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        _abandon_output()
        _refuse(redact(f"{error.filename or 'standard output'}: {error.strerror}"))


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"keybearer-server {version_of('keybearer')} ({files.engine()})")
        raise typer.Exit


def _prepare_streams() -> None:
    # Where a stream is closed, its number would go to the next file that is opened: the database.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # An argument in another encoding than the terminal's is shown in escapes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    # So that the interpreter does not try to flush it again when it ends.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _refuse(message: str, code: int = EXIT_REFUSED) -> NoReturn:
    typer.echo(f"keybearer-server: {message}", err=True)
    sys.exit(code)
