"""The command as a whole: its groups, its own options, and how a run ends."""

import os
import sys
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from keybearer.cli import accounts, audit, keys, token, users, whoami
from keybearer.cli.refusals import ExitCode, Refusal, assert_no_token, usage

app = typer.Typer(
    name="keybearer",
    help="Manage the API keys, users and accounts of a keybearer service.",
    pretty_exceptions_enable=False,
)

# Typer does not export the classes of what it raises about a command line.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

_SHELLS = ("bash", "zsh", "fish")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"keybearer {version_of('keybearer')}")
    elif context.invoked_subcommand is None:
        _help(context)


def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


for group, name, text in (
    (keys.app, "keys", "Create, list, change, rotate and revoke keys."),
    (users.app, "users", "Create, list, change and delete the users that own keys."),
    (accounts.app, "accounts", "Create, list and disable accounts (operators only)."),
    (token.app, "token", "Validate or revoke a token, renew your own."),
    (audit.app, "audit", "See what was done, and who did it."),
):
    app.add_typer(group, name=name, help=text, callback=_help, invoke_without_command=True)
whoami.register(app)


@app.command(
    "completion",
    epilog="Example:\n\n"
    "keybearer completion bash > ~/.local/share/bash-completion/completions/keybearer",
)
def _completion(
    shell: Annotated[
        str,
        typer.Argument(
            metavar="SHELL",
            autocompletion=lambda: list(_SHELLS),
            help=f"One of: {', '.join(_SHELLS)}",
        ),
    ],
) -> None:
    """Print the script that makes a shell complete commands, options and their values."""
    if shell not in _SHELLS:
        raise usage(f"completion: {shell!r} is not one of {', '.join(_SHELLS)}")
    os.environ["_KEYBEARER_COMPLETE"] = f"source_{shell}"
    app(args=[], prog_name="keybearer")


def run(arguments: list[str]) -> int:
    """Run the command and answer its exit code. Every refusal is one line on standard error."""
    try:
        assert_no_token(arguments)
        if sys.stdout is None:
            # Its number would go to the connection, and a token has nowhere to go.
            raise usage("standard output is closed; send it to /dev/null if nobody reads it")
        # A name in another script than the terminal's is shown in escapes instead of not at all.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = app(args=arguments, prog_name="keybearer", standalone_mode=False)
    except Refusal as refusal:
        return _refuse(refusal, arguments)
    except _USAGE_ERROR as error:
        return _refuse(_of_usage(error), arguments)
    except OSError as error:
        # Files have had their own refusal; what is left is an answer that cannot be written.
        return _refuse(Refusal(f"standard output: {error.strerror}"), arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _refuse(Refusal("interrupted", exit_code=ExitCode.INTERRUPTED), arguments)
    return code if isinstance(code, int) else ExitCode.DONE


def _of_usage(error: Exception) -> Refusal:
    """Answer the refusal that a complaint of Typer means."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "keybearer"
    message: str = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    if path.startswith("keybearer token") and "unexpected extra argument" in message:
        # What somebody gave there may be a token, whatever it looks like.
        message = "no token as an argument: give it on standard input or in --token-file"
    if path == "keybearer" and message.startswith("No such option"):
        message += "; the options of a command go after it"
    _, space, name = path.partition(" ")
    return usage(f"{name}{space and ': '}{message}; see `{path} --help`")


def _refuse(refusal: Refusal, arguments: list[str]) -> int:
    if refusal.exit_code is ExitCode.BROKEN_PIPE or not _stdout_is_whole():
        # Whoever read our output has enough; the interpreter must not try to flush it again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
    if refusal.exit_code is not ExitCode.BROKEN_PIPE:
        as_json = _wants_json(arguments) if refusal.as_json is None else refusal.as_json
        line = refusal.document() if as_json else refusal.line()
        typer.echo(line, err=True)
    return refusal.exit_code


def _stdout_is_whole() -> bool:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return False
    return True


def _wants_json(arguments: list[str]) -> bool:
    """Whether the error is for a program; the arguments may be such that Typer cannot tell."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in {"--output", "-o"}:
            return (value if equals else "".join(arguments[index + 1 : index + 2])) == "json"
    return os.environ.get("KEYBEARER_OUTPUT") == "json"
