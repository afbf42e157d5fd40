"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keybearer._wire.durations import parse_duration
from keybearer_service.config import CONFIG_VARIABLE, ConfigError, describe
from keybearer_service.domain.clock import SECOND


class Output(StrEnum):
    """The form in which a command prints its result."""

    TEXT = "text"
    JSON = "json"


_METAVARS = {
    "data_dir": "DIR",
    "database": "URL",
    "database_password_file": "FILE",
    "database_proof": "auto|on|off",
    "listen": "ADDRESS",
    "unix_socket_mode": "MODE",
    "http_listen": "HOST:PORT",
    "metrics_listen": "HOST:PORT",
    "console_listen": "HOST:PORT",
    "console_url": "URL",
    "oidc_issuer": "URL",
    "oidc_client_id": "ID",
    "oidc_client_secret_file": "FILE",
    "oidc_bind": "HOW",
    "oidc_bind_account": "ID",
    "console_token_sign_in": "WHEN",
    "http_account": "ID",
    "workers": "N",
    "max_connections": "N",
    "http_max_connections": "N",
    "http_max_connections_per_peer": "N",
    "max_keys_per_account": "N",
    "max_users_per_account": "N",
    "log_level": "LEVEL",
    "log_format": "FORMAT",
}


def setting(name: str) -> Any:
    """Return the option of a setting, whose help names its variable and its default.

    The value goes to `config.load` as it was typed: that is where settings are checked, whichever
    source they come from.
    """
    about = describe(name)
    flag = f"{about.flag}/--no-{about.flag[2:]}" if about.default == "on" else about.flag
    extra = f"env var: {about.variable}" + (f"; default: {about.default}" if about.default else "")
    return typer.Option(
        flag,
        help=f"{about.meaning} [{extra}]",
        show_default=False,
        metavar=_METAVARS.get(name, "FILE" if name.startswith("tls_") else None),
    )


DataDirOption = Annotated[str | None, setting("data_dir")]
DatabaseOption = Annotated[str | None, setting("database")]
DatabasePasswordFileOption = Annotated[str | None, setting("database_password_file")]
InsecureDatabaseOption = Annotated[bool | None, setting("insecure_database")]
ListenOption = Annotated[str | None, setting("listen")]
HttpListenOption = Annotated[str | None, setting("http_listen")]
ConsoleListenOption = Annotated[str | None, setting("console_listen")]
TlsCertOption = Annotated[str | None, setting("tls_cert")]
TlsKeyOption = Annotated[str | None, setting("tls_key")]
LogLevelOption = Annotated[str | None, setting("log_level")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar=CONFIG_VARIABLE, help="TOML file with settings by their names."
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", help="Form of the result.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the token to this new file (0600) instead of showing it."
    ),
]


def duration_micros(option: str, text: str) -> int:
    """Parse the value of an option, such as 90d, into microseconds.

    Raises:
        ConfigError: Not a duration.
    """
    try:
        return int(parse_duration(text).total_seconds()) * SECOND
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
