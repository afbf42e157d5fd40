"""`quickstart`: the first start, and the commands that it prints."""

import json
import os
import shlex
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

import typer

from keybearer_service.cli.initialising import make_installation
from keybearer_service.cli.options import (
    ConfigOption,
    ConsoleListenOption,
    DataDirOption,
    HttpListenOption,
    ListenOption,
    LogLevelOption,
)
from keybearer_service.cli.serving import run_server
from keybearer_service.config import load_to_serve
from keybearer_service.domain.token_format import DEFAULT_PREFIX
from keybearer_service.installation.data_directory import DataDir, write_secret_file
from keybearer_service.installation.ownership import give
from keybearer_service.net.addresses import Address
from keybearer_service.usecases.accounts import NewAccount
from keybearer_service.usecases.issuing import Expiration

ACCOUNT = "default"
EMAIL = "admin@localhost"


def quickstart(
    *,
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    http_listen: HttpListenOption = None,
    console_listen: ConsoleListenOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Set everything up at the first start, then serve."""
    flags = {
        "data_dir": data_dir,
        "listen": listen,
        "http_listen": http_listen,
        "console_listen": console_listen,
        "log_level": log_level,
    }
    settings = load_to_serve(config, flags)
    directory = DataDir(settings.data_dir, settings.database_url)
    if directory.is_initialised:
        typer.echo(
            f"{settings.data_dir} holds an installation: serving it. Its first token was shown "
            "once; `keybearer-server admin-token` issues another."
        )
        run_server(settings, on_serving=_show_console)
        return
    _first_start(directory)
    run_server(settings, on_serving=_show_first_commands)


def first_commands(address: Address) -> list[str]:
    """Return three commands that work when pasted: who am I, make a key, list the keys."""
    header = '-H "authorization: Bearer $KEYBEARER_TOKEN"'
    service = "keybearer.v1.ApiKeyService"
    new_key = json.dumps({"name": "my first key", "role": "ROLE_DEVELOPER", "ttl": "2592000s"})
    buf = f"{_buf()} curl --protocol grpc {header}"
    target = address.connectable
    who_am_i = "keybearer.v1.TokenService/WhoAmI"
    return [
        f"grpcurl -plaintext {header} {target} {who_am_i}"
        if shutil.which("grpcurl")
        else f"{buf} http://{target}/{who_am_i}",
        f"{buf} -d '{new_key}' http://{target}/{service}/CreateApiKey",
        f"{buf} http://{target}/{service}/ListApiKeys",
    ]


def _first_start(directory: DataDir) -> None:
    new = NewAccount(
        name=ACCOUNT,
        admin_email=EMAIL,
        admin_display_name="Administrator",
        expiration=Expiration(),
    )
    token = make_installation(directory, new, DEFAULT_PREFIX).issued.token
    if sys.stdout.isatty():
        typer.echo("The admin token, shown this once. In another shell:\n")
        export = f"export KEYBEARER_TOKEN={token}"
    else:
        write_secret_file(directory.admin_token, token)
        give(directory.admin_token)
        typer.echo(f"The admin token is in {directory.admin_token}. In another shell:\n")
        export = f'export KEYBEARER_TOKEN="$(cat {shlex.quote(str(directory.admin_token))})"'
    typer.echo(f"  {export}\n")


def _show_first_commands(address: Address, console: str) -> None:
    lines = ["Then, in that shell:", "", *(f"  {one}" for one in first_commands(address)), "", ""]
    _show([*lines, *_console_lines(console)])


def _show_console(_address: Address, console: str) -> None:
    _show(_console_lines(console))


def _console_lines(console: str) -> list[str]:
    return [f"The console, for that token: {console}/console", "", ""] if console else []


def _show(lines: list[str]) -> None:
    # On a thread of its own: a terminal that is stopped (Ctrl-S) must not stop the server's end.
    threading.Thread(target=_write, args=("\n".join(lines),), daemon=True).start()


def _write(text: str) -> None:
    # Not through sys.stdout: a thread that still holds its lock would abort the interpreter's end.
    with suppress(OSError, ValueError):
        os.write(sys.stdout.fileno(), text.encode("utf-8", "backslashreplace"))


def _buf() -> str:
    # In a virtual environment that is not activated, the plain name would not be found.
    beside = Path(sys.executable).parent / "buf"
    if shutil.which("buf") or not beside.exists():
        return "buf"
    nearby = os.path.relpath(beside)
    return shlex.quote(str(beside) if nearby.startswith("..") else nearby)
