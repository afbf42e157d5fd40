"""What all commands share: settings, client, and how they end."""

import functools
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from keybearer._client.client import KeybearerClient
from keybearer._client.retries import DEFAULT_TIMEOUT, DEFAULT_TRY_TIMEOUT
from keybearer._wire.bearer import authorization_of
from keybearer.cli import connection, output
from keybearer.cli.connection import Connection
from keybearer.cli.refusals import ExitCode, Refusal, as_utf8, of_call, usage
from keybearer.cli.terminal import ask_secret
from keybearer.cli.token_files import read_token_file
from keybearer.errors import KeybearerError


class Output(StrEnum):
    """The form of the output."""

    TEXT = "text"
    JSON = "json"


_PANEL = "Connection and output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The options of every command; None where neither an option nor a variable is set."""

    address: Annotated[
        str | None,
        typer.Option(
            envvar="KEYBEARER_ADDRESS",
            metavar="HOST:PORT",
            help="Or https://host:port or unix:/path. TLS, except on loopback. "
            f"Default: {connection.DEFAULT_ADDRESS}",
            rich_help_panel=_PANEL,
        ),
    ] = None
    credential_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file with your own token. Without: KEYBEARER_TOKEN, then the file named by "
            "KEYBEARER_TOKEN_FILE, then a prompt.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="KEYBEARER_CA",
            metavar="FILE",
            help="PEM, the authorities that may sign the server's certificate. Default: those of "
            "the system",
            rich_help_panel=_PANEL,
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="KEYBEARER_CLIENT_CERT",
            metavar="FILE",
            help="PEM, your certificate, for mutual TLS.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        typer.Option(
            envvar="KEYBEARER_CLIENT_KEY",
            metavar="FILE",
            help="PEM, the key of your certificate.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    server_name: Annotated[
        str | None,
        typer.Option(
            envvar="KEYBEARER_SERVER_NAME",
            metavar="NAME",
            help="The name in the server's certificate, when it is not the one in the address.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    plaintext: Annotated[
        bool | None,
        typer.Option(
            "--plaintext",
            envvar="KEYBEARER_PLAINTEXT",
            help="Use plaintext everywhere: everybody on the way can read the tokens.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=3600,
            envvar="KEYBEARER_TIMEOUT",
            metavar="SECONDS",
            help=f"How long a call may take. Default: {DEFAULT_TIMEOUT:g}",
            rich_help_panel=_PANEL,
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="KEYBEARER_CLIENT_CONFIG",
            metavar="FILE",
            help="A TOML file with these settings, as: address = 'keys.example.com:443'",
            rich_help_panel=_PANEL,
        ),
    ] = None
    output: Annotated[
        Output | None,
        typer.Option(
            "--output",
            "-o",
            envvar="KEYBEARER_OUTPUT",
            metavar="text|json",
            help="The form of the output. Default: text",
            rich_help_panel=_PANEL,
        ),
    ] = None


def _shared_options() -> dict[str, bool]:
    options: dict[str, bool] = {}
    for name, hint in get_type_hints(Flags, include_extras=True).items():
        option = hint.__metadata__[0]
        # Within Annotated, Typer keeps the first name where the default would stand.
        named = [
            one for one in (option.default, *(option.param_decls or ())) if isinstance(one, str)
        ]
        names = named or [f"--{name.replace('_', '-')}"]
        options |= dict.fromkeys(names, name != "plaintext")
    return options


SHARED_OPTIONS: Mapping[str, bool] = _shared_options()
"""The options of every command, each with whether it takes a value."""

_FILE_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "address": str,
    "credential_file": str,
    "ca": str,
    "client_cert": str,
    "client_key": str,
    "server_name": str,
    "plaintext": bool,
    "timeout": (int, float),
    "output": str,
}
_PATHS = {"credential_file", "ca", "client_cert", "client_key"}


class Session:
    """One run of a command: its settings and its clients.

    Args:
        flags: The settings of the command line and the environment.

    Raises:
        Refusal: The settings are invalid.
    """

    def __init__(self, flags: Flags) -> None:
        self._settings = _with_file(flags)
        output = self._settings["output"]
        if output not in set(Output):
            raise usage(f"output: {output!r} is neither text nor json")
        self.as_json = output == Output.JSON
        self._clients: list[KeybearerClient] = []
        self._client: KeybearerClient | None = None
        self._credential_source = ""
        self._changing = False

    @functools.cached_property
    def connection(self) -> Connection:
        """Where the service is.

        Raises:
            Refusal: The settings contradict each other.
        """
        settings = self._settings
        return connection.settle(
            settings["address"],
            plaintext=settings["plaintext"],
            ca=settings["ca"],
            client_cert=settings["client_cert"],
            client_key=settings["client_key"],
            server_name=settings["server_name"],
        )

    @property
    def client(self) -> KeybearerClient:
        """The client that presents the caller's own credential.

        Raises:
            Refusal: There is no credential.
        """
        if self._client is None:
            # Report invalid settings before a token is asked for.
            _ = self.connection
            self._client = self.client_with(self._credential())
        return self._client

    def client_with(self, token: str | None) -> KeybearerClient:
        """Return a client that presents another credential, or none."""
        timeout = self._settings["timeout"]
        client = KeybearerClient(
            self.connection.address,
            token=token,
            tls=self.connection.tls,
            timeout=timeout,
            # A longer timeout also allows a longer single attempt.
            try_timeout=max(DEFAULT_TRY_TIMEOUT, timeout / 3),
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark a call as a change: if its response is lost, the error says what that means."""
        self._changing = True
        yield
        self._changing = False

    def show(self, document: Mapping[str, Any], text: str) -> None:
        """Print the result: the document for programs, the text for people."""
        typer.echo(output.to_json(document) if self.as_json else text)

    def note(self, text: str) -> None:
        """Print a note for people. Programs find the same in the document."""
        if not self.as_json:
            output.note(text)

    def refusal_of(self, error: KeybearerError) -> Refusal:
        """Return the refusal that a failed call means."""
        return of_call(
            error, str(self.connection), self._credential_source, changing=self._changing
        )

    def interruption(self) -> Refusal:
        """Return the refusal that Ctrl-C means."""
        happened = "; the change may have happened all the same" if self._changing else ""
        return Refusal(f"interrupted{happened}", exit_code=ExitCode.INTERRUPTED)

    def _credential(self) -> str:
        token, self._credential_source = self._find_credential()
        try:
            authorization_of(token)
        except ValueError as error:
            raise Refusal(
                f"{self._credential_source}: {error}", exit_code=ExitCode.CREDENTIAL
            ) from None
        return token

    def _find_credential(self) -> tuple[str, str]:
        """Return the caller's own token and where it came from."""
        settings = self._settings
        if settings["credential_file"] is not None:
            return _from_file(settings["credential_file"], "--credential-file")
        if os.environ.get("KEYBEARER_TOKEN"):
            return os.environ["KEYBEARER_TOKEN"], "KEYBEARER_TOKEN"
        if os.environ.get("KEYBEARER_TOKEN_FILE"):
            return _from_file(Path(os.environ["KEYBEARER_TOKEN_FILE"]), "KEYBEARER_TOKEN_FILE")
        if settings["configured_credential_file"] is not None:
            return _from_file(settings["configured_credential_file"], "credential_file")
        token = ask_secret("Your token: ")
        if token is None:
            raise Refusal(
                "no credential: set KEYBEARER_TOKEN or KEYBEARER_TOKEN_FILE, or give "
                "--credential-file",
                exit_code=ExitCode.CREDENTIAL,
            )
        return token, "the prompt"


def _from_file(path: Path, name: str) -> tuple[str, str]:
    return read_token_file(path, name), f"the file {path}"


def _with_file(flags: Flags) -> dict[str, Any]:
    """Return all settings: of the flags, of the file of settings, and the defaults."""
    settings = {field.name: getattr(flags, field.name) for field in fields(flags)}
    # Kept apart: the environment variables of the credential come before this file.
    settings["configured_credential_file"] = None
    if flags.config is not None:
        for key, value in _read_file(flags.config).items():
            name = "configured_credential_file" if key == "credential_file" else key
            if settings[name] is None:
                settings[name] = Path(value).expanduser() if key in _PATHS else value
    defaults = {
        "address": connection.DEFAULT_ADDRESS,
        "plaintext": False,
        "timeout": DEFAULT_TIMEOUT,
        "output": Output.TEXT,
    }
    for name, value in defaults.items():
        if settings[name] is None:
            settings[name] = value
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            read = tomllib.load(file)
    except OSError as error:
        raise usage(f"--config: {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise usage(f"--config: {path}: {error}") from None
    for name, value in read.items():
        if name not in _FILE_TYPES:
            raise usage(f"--config: {path}: {name} is none of {', '.join(_FILE_TYPES)}")
        # True is an int in Python.
        if not isinstance(value, _FILE_TYPES[name]) or (
            isinstance(value, bool) and name != "plaintext"
        ):
            raise usage(f"--config: {path}: {name} has a value of the wrong kind")
    return read


def command(
    group: typer.Typer, name: str, *examples: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command. Its first parameter is the Session, the others are its own.

    The options of Flags are added. The docstring and the examples become the help text, and errors
    become a Refusal.

    Args:
        group: The group of the command.
        name: The name of the command.
        examples: Command lines for the help text.
    """

    def register(run: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(run).parameters.values())[1:]
        shared = inspect.signature(Flags).parameters.values()
        parameters = [
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
            *shared,
        ]

        def invoke(**values: Any) -> None:
            read = {name: _as_text(value) for name, value in values.items()}
            flags = Flags(**{field.name: read.pop(field.name) for field in fields(Flags)})
            _conduct(run, flags, read)

        invoke.__name__ = run.__name__
        # Typer keeps line breaks within a paragraph.
        paragraphs = inspect.cleandoc(run.__doc__ or "").split("\n\n")
        invoke.__doc__ = "\n\n".join(" ".join(one.split()) for one in paragraphs)
        invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        invoke.__annotations__ = {one.name: one.annotation for one in parameters}
        epilog = "\n\n".join(("Examples:" if examples[1:] else "Example:", *examples))
        group.command(name, epilog=epilog)(invoke)
        return run

    return register


def _as_text(value: Any) -> Any:
    """Return the value of a parameter with its strings as text; paths stay what they are."""
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return as_utf8(value) if type(value) is str else value


def _conduct(run: Callable[..., None], flags: Flags, values: dict[str, Any]) -> None:
    session = Session(flags)
    try:
        run(session, **values)
        sys.stdout.flush()
    except Refusal as refusal:
        refusal.as_json = session.as_json
        raise
    except KeybearerError as error:
        failure = session.refusal_of(error)
        failure.as_json = session.as_json
        raise failure from error
    except ValueError as error:
        # The client rejects an argument before it sends anything, and its message names it.
        rejected = usage(str(error))
        rejected.as_json = session.as_json
        raise rejected from error
    except (KeyboardInterrupt, typer.Abort):
        raise session.interruption() from None
    except BrokenPipeError:
        raise Refusal("", exit_code=ExitCode.BROKEN_PIPE) from None
    finally:
        session.close()
