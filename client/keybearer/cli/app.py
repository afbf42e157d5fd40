"""The whole command: its groups, its own options, and how a run ends."""

import os
import sys
from typing import Annotated

import typer

from keybearer._client.version import VERSION
from keybearer.cli import accounts, audit, keys, token, users, whoami
from keybearer.cli.refusals import ExitCode, Refusal, assert_no_token, assert_utf8, usage
from keybearer.cli.session import SHARED_OPTIONS

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
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"keybearer {VERSION}")
    elif context.invoked_subcommand is None:
        _help(context)


def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


_GROUPS = ("keys", "users", "accounts", "token", "audit")
for group, name, text in (
    (keys.app, "keys", "Create, list, change, rotate and revoke keys."),
    (users.app, "users", "Create, list, change and delete the users that own keys."),
    (accounts.app, "accounts", "Create, list and disable accounts (operators only)."),
    (token.app, "token", "Validate or revoke a token, renew your own."),
    (audit.app, "audit", "List what was done, and by whom."),
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
    """Print the script with which a shell completes commands, options and their values."""
    if shell not in _SHELLS:
        raise usage(f"completion: {shell!r} is not one of {', '.join(_SHELLS)}")
    os.environ["_KEYBEARER_COMPLETE"] = f"source_{shell}"
    app(args=[], prog_name="keybearer")


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code. Every error is one line on standard error."""
    try:
        assert_no_token(arguments)
        assert_utf8(arguments)
        if sys.stdout is None:
            # The connection would get file descriptor 1, and a token could not be written.
            raise usage("standard output is closed; send it to /dev/null if nobody reads it")
        # Characters that the terminal cannot show are escaped instead of raising an error.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = app(
            args=_behind_the_command(arguments), prog_name="keybearer", standalone_mode=False
        )
    except Refusal as refusal:
        return _refuse(refusal, arguments)
    except _USAGE_ERROR as error:
        return _refuse(_of_usage(error), arguments)
    except OSError as error:
        # Errors of files are refusals already, so this is a result that cannot be written.
        return _refuse(Refusal(f"standard output: {error.strerror}"), arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _refuse(Refusal("interrupted", exit_code=ExitCode.INTERRUPTED), arguments)
    return code if isinstance(code, int) else ExitCode.DONE


def _behind_the_command(arguments: list[str]) -> list[str]:
    """Return the arguments with the options of every command behind its name.

    `keybearer -o json keys list` is `keybearer keys list -o json`.
    """
    words: list[str] = []
    options: list[str] = []
    rest = list(arguments)
    needed = 1
    while rest and len(words) < needed:
        name, equals, _ = rest[0].partition("=")
        if name in SHARED_OPTIONS:
            takes_value = SHARED_OPTIONS[name] and not equals
            options += rest[: 1 + takes_value]
            del rest[: 1 + takes_value]
        elif rest[0].startswith("-"):
            return arguments
        else:
            words.append(rest.pop(0))
            needed = 2 if words[0] in _GROUPS else 1
    return [*words, *options, *rest]


def _of_usage(error: Exception) -> Refusal:
    """Return the refusal that an error of Typer means."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "keybearer"
    message: str = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    missing, choose, _ = message.partition("Choose from:")
    if choose:
        # Typer lists the numbers of an enum; the help text has the names.
        help_text = getattr(getattr(error, "param", None), "help", "") or ""
        _, _, names = help_text.partition("One of: ")
        message = f"{missing.rstrip(' .')}: one of {names}"
    if path.startswith("keybearer token") and "unexpected extra argument" in message:
        # The argument may be a token, whatever it looks like.
        message = "no token as an argument: give it on standard input or in --token-file"
    if path == "keybearer" and message.startswith("No such option"):
        message += "; the options of one command alone go after it"
    _, space, name = path.partition(" ")
    return usage(f"{name}{space and ': '}{message}; see `{path} --help`")


def _refuse(refusal: Refusal, arguments: list[str]) -> int:
    if refusal.exit_code is ExitCode.BROKEN_PIPE or not _stdout_is_whole():
        # The reader is gone; the interpreter must not try to flush the output again.
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
    """Return whether a program reads the error; Typer may not have parsed the arguments."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in {"--output", "-o"}:
            return (value if equals else "".join(arguments[index + 1 : index + 2])) == "json"
    return os.environ.get("KEYBEARER_OUTPUT") == "json"
