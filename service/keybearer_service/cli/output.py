"""How commands print their results."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import typer

from keybearer_service.cli.options import Output
from keybearer_service.installation.data_directory import secret_file
from keybearer_service.offline.errors import LocalError

EXIT_REFUSED = 1
EXIT_FINDINGS = 1
"""Of the commands that look for something wrong: they found it."""
EXIT_COULD_NOT_LOOK = 2
"""Of the same commands: they could not look, so nothing is known."""


class CouldNotLookError(Exception):
    """A command that looks for something wrong could not look; the text says why."""


def print_result(result: dict[str, Any], text: str, output: Output) -> None:
    """Print a result as JSON, or as the text for people."""
    typer.echo(json.dumps(result) if output is Output.JSON else text)


@contextmanager
def progress_line() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows how far a command is, on one line of a terminal and nowhere else."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda what, done, total: None  # noqa: ARG005 - shows nothing
        return

    def show(what: str, done: int, total: int) -> None:
        typer.echo(f"\r{done:,} of {total:,} {what}\x1b[K", nl=False, err=True)

    try:
        yield show
    finally:
        typer.echo("\r\x1b[K", nl=False, err=True)


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """Where a new token goes: into a file of its own, or to standard output."""

    path: Path | None
    file: TextIO | None
    output: Output

    def write(self, ids: dict[str, str], token: str) -> None:
        """Write the token, and print what it belongs to."""
        if self.file is not None:
            self.file.write(token + "\n")
        if self.output is Output.JSON:
            shown = {"token": token} if self.path is None else {"token_file": str(self.path)}
            typer.echo(json.dumps({**ids, **shown}))
            return
        # The facts go to standard error, so that the token goes alone into a pipe.
        for name, value in ids.items():
            typer.echo(f"{name}: {value}", err=True)
        typer.echo(token if self.path is None else f"The token is in {self.path}.")


@contextmanager
def token_output(token_file: Path | None, output: Output) -> Iterator[TokenOutput]:
    """Make sure where a token goes before it is issued: one that is lost cannot be shown again.

    Raises:
        DataDirError: The file exists or cannot be written.
        LocalError: Standard output is closed.
    """
    if token_file is not None:
        with secret_file(token_file) as file:
            yield TokenOutput(token_file, file, output)
        return
    if sys.stdout is None:
        raise LocalError("standard output is closed; give --token-file")
    yield TokenOutput(None, None, output)
