"""How commands print their results."""

import json
from pathlib import Path
from typing import Any

import typer

from keybearer_service.cli.options import Output
from keybearer_service.installation.data_directory import write_secret_file
from keybearer_service.offline.errors import LocalError

EXIT_REFUSED = 1
EXIT_FINDINGS = 2


def print_result(result: dict[str, Any], text: str, output: Output) -> None:
    """Print a result as JSON, or as the text that says the same."""
    typer.echo(json.dumps(result) if output is Output.JSON else text)


def print_token(ids: dict[str, str], token: str, token_file: Path | None, output: Output) -> None:
    """Print a new token, or write it to its file and print where it is."""
    if token_file is not None:
        write_secret_file(token_file, token)
    if output is Output.JSON:
        shown = {"token": token} if token_file is None else {"token_file": str(token_file)}
        typer.echo(json.dumps({**ids, **shown}))
        return
    # The facts go to standard error, so that the token goes alone into a pipe.
    for name, value in ids.items():
        typer.echo(f"{name}: {value}", err=True)
    typer.echo(token if token_file is None else f"The token is in {token_file}.")


def assert_new(token_file: Path | None) -> None:
    """Refuse a token file that exists, before anything is issued: an unwritten token is lost.

    Raises:
        LocalError: The file exists.
    """
    if token_file is not None and token_file.exists():
        raise LocalError(f"--token-file: {token_file} exists already")
