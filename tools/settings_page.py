"""Writes docs/settings.md from the code: `python tools/settings_page.py > docs/settings.md`."""

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from keybearer_service.cli import app
from keybearer_service.config import Settings, describe
from keybearer_service.net.bounds import described

HEAD = """\
# Settings and commands of keybearer-server

This page is written by `tools/settings_page.py` from the code; a test compares the two.

## Settings

A flag wins over an environment variable, which wins over the file of `--config`
(`KEYBEARER_CONFIG`), which wins over the default. The file is TOML with the names below; an example
is [deploy/keybearer.toml](../deploy/keybearer.toml). An empty variable counts as unset. A variable
whose name is nearly that of a setting is refused, and so is every unknown name in the file; other
`KEYBEARER_…` variables that nothing reads are named in a warning when `serve` starts.

grpc's own log is off unless `GRPC_VERBOSITY` is set: its core writes a line for every handshake
that fails, and waits for the reader of standard error.

Every port serves TLS when `tls_cert` and `tls_key` are given. Plain text off loopback is refused
without `insecure`, on every port.
"""
BOUNDS = """
## Bounds

What each port holds for its clients, in each process; the connections are settings. With few file
descriptors a port takes at most a quarter of them.
"""
COMMANDS = """
## Commands

All but `quickstart`, `init`, `serve`, `restore` and `move` may run beside a server. A refusal is
one line on standard error and exit code 1. Wrong usage is exit code 2. `check` and `audit verify`
have codes for timers: 0 all is well, 1 findings, 2 could not look. `--output json` prints one JSON
document.
"""


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    lines = [HEAD, *settings(), BOUNDS, *bounds(), COMMANDS]
    for name, command in commands(typer.main.get_command(app), "keybearer-server"):
        lines += section(name, command)
    sys.stdout.write("\n".join(lines) + "\n")


def settings() -> Iterator[str]:
    """Yield the table of settings."""
    yield from table("name", "flag", "variable", "default", "meaning")
    for name in Settings.model_fields:
        about = describe(name)
        default = f"`{about.default}`" if about.default else ""
        yield row(f"`{name}`", f"`{about.flag}`", f"`{about.variable}`", default, about.meaning)


def bounds() -> Iterator[str]:
    """Yield the table of bounds."""
    yield from table("bound", "gRPC port", "HTTP port", "metrics port", "console port")
    for one in described():
        yield row(*one)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with the words that call it."""
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{path} {name}")
    if not hasattr(group, "commands"):
        yield path, group


def section(name: str, command: Any) -> Iterator[str]:
    """Yield the section of one command."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = [one.name.upper() for one in arguments]
    required = [f"{one.opts[0]} …" for one in options if one.required]
    yield f"\n### {name}\n"
    yield f"{command.help}\n"
    yield f"```\n{' '.join([name, *words, *required, '[OPTIONS]'])}\n```\n"
    taken = [one for one in options if is_setting(one)]
    own = [one for one in options if not is_setting(one)]
    if taken:
        shared = ", ".join(f"`{one.opts[0]}`" for one in taken)
        yield f"Settings: {shared}.\n"
    yield from table("option", "default", "meaning")
    for one in [*arguments, *own]:
        spelled = " / ".join([*one.opts, *one.secondary_opts])
        yield row(
            f"`{one.name.upper() if one in arguments else spelled}`",
            "" if one.required or one.default in (None, "") else f"`{shown(one.default)}`",
            f"{one.help or ''} `{one.envvar}`" if one.envvar else one.help or "",
        )


def is_setting(option: Any) -> bool:
    """Whether an option is a setting, and not another thing of the same name."""
    name = option.name
    return name in Settings.model_fields and describe(name).meaning in (option.help or "")


def table(*names: str) -> tuple[str, str]:
    """Return the head of a table."""
    return row(*names), "|" + "---|" * len(names)


def row(*cells: str) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(default: Any) -> str:
    """Return a default as one would type it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


if __name__ == "__main__":
    main()
