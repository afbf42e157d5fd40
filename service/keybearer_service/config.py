"""Configuration: flags over `KEYBEARER_…` environment variables over a TOML file over defaults."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from keybearer._wire.peer import is_loopback
from keybearer_service.domain.token_format import is_id
from keybearer_service.net.addresses import Address
from keybearer_service.net.bounds import GRPC, HTTP
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.net.sign_in import (
    Binding,
    KeySignIn,
    ProviderSettings,
    SignInSettings,
    is_safe_url,
)
from keybearer_service.net.tls import TlsFiles

PREFIX: Final = "KEYBEARER_"
CONFIG_VARIABLE: Final = "KEYBEARER_CONFIG"
CLIENT_VARIABLES: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ADDRESS",
        "CA",
        "CLIENT_CERT",
        "CLIENT_CONFIG",
        "CLIENT_KEY",
        "GATEWAY_TOKEN",
        "OUTPUT",
        "PLAINTEXT",
        "SERVER_NAME",
        "TIMEOUT",
        "TOKEN",
        "TOKEN_FILE",
        "URL",
    )
)
"""Read by the command `keybearer` and the gateways' files, which may share our environment."""
HEALTHCHECK_VARIABLES: Final = (f"{PREFIX}TLS_CA", f"{PREFIX}TLS_NAME")
"""Read by `healthcheck` alone."""
PRUNE_VARIABLES: Final = (f"{PREFIX}KEEP_AUDIT_EVENTS", f"{PREFIX}KEEP_REVOKED_KEYS")
"""Read by `audit prune` and by `keys prune` alone."""
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)
"""What Kubernetes sets for every pod beside a Service that is called keybearer."""


class ConfigError(Exception):
    """A setting is wrong. The text names it and what would be right."""


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _path(value: object) -> object:
    if value == "":
        raise ValueError("is empty; leave it out or name a file")
    return value


def _mode(value: object) -> object:
    # TOML has octal numbers, which arrive as integers; everything else is read as octal digits.
    text = f"{value:o}" if isinstance(value, int) else str(value)
    if not re.fullmatch(r"0?[0-7]{3}", text, re.ASCII):
        raise ValueError("three octal digits are needed, such as 660")
    return f"0{text[-3:]}"


def _database(value: object) -> object:
    if isinstance(value, str) and value:
        DatabaseUrl(text=value)
    return value


def _origin(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value
    try:
        parts = urlsplit(value)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:
        host = None
    if not host or parts.path not in ("", "/") or {"@", "?", "#", "\\"} & set(value):
        raise ValueError("a scheme and a host are needed, such as https://keys.example.com")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError("must begin with https: browsers keep no sign-in otherwise")
    return f"{parts.scheme}://{parts.netloc}".lower()


def _issuer(value: object) -> object:
    # It is compared with the issuer in the provider's metadata, so it is kept as written.
    if isinstance(value, str) and value and ("?" in value or not is_safe_url(value)):
        raise ValueError("the URL of the provider is needed, such as https://id.example.com/realm")
    return value


AddressSetting = Annotated[InstanceOf[Address], NoDecode, BeforeValidator(_address)]
PathSetting = Annotated[Path, BeforeValidator(_path)]


class Settings(BaseSettings):
    """The settings of `serve` and the other commands. The names are those of the flags."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    file: ClassVar[Path | None] = None

    data_dir: PathSetting = Field(
        default=Path("data"),
        description="Directory of the database, the key files and the lock; on a local disk.",
    )
    database: Annotated[str, BeforeValidator(_database)] = Field(
        default="",
        description="postgresql://USER@HOST/NAME of a database that several nodes share. Without: "
        "a file in data_dir, which then holds the key files alone. No password: see "
        "database_password_file.",
    )
    database_password_file: PathSetting | None = Field(
        default=None,
        description="File with the password of database. Without: PGPASSWORD, or ~/.pgpass.",
    )
    insecure_database: bool = Field(
        default=False,
        description="Let the way to a database on another machine do without sslmode=verify-full.",
    )
    database_proof: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether a database is believed only as long as it can commit with a "
        "synchronous standby, which one that was replaced cannot: auto where it has such standbys, "
        "on always, off never.",
    )
    listen: AddressSetting = Field(
        default=Address("127.0.0.1", 50051),
        description="Address of the gRPC port: host:port, [v6]:port or unix:/path. Port 0 takes a "
        "free one.",
    )
    unix_socket_mode: Annotated[str, BeforeValidator(_mode)] = Field(
        default="0600",
        description="Permissions of the file of a unix socket: who may write it may connect.",
    )
    http_listen: AddressSetting | None = Field(
        default=None, description="host:port for gateways, health and metrics over HTTP."
    )
    metrics_listen: AddressSetting | None = Field(
        default=None, description="host:port for metrics and health alone."
    )
    console_listen: AddressSetting | None = Field(
        default=None,
        description="host:port of the console, the pages for administrators. Needs the extra "
        "console of the package.",
    )
    console_url: Annotated[str, BeforeValidator(_origin)] = Field(
        default="",
        description="Scheme and host at which browsers reach the console, such as "
        "https://keys.example.com; needed off loopback. Without: http://127.0.0.1 and the port.",
    )
    oidc_issuer: Annotated[str, BeforeValidator(_issuer)] = Field(
        default="",
        description="Issuer of the OpenID Connect provider at which people sign in to the console, "
        "exactly as the provider writes it. Needs oidc_client_id.",
    )
    oidc_client_id: str = Field(
        default="", description="What the provider calls the console. Needs oidc_issuer."
    )
    oidc_client_secret_file: PathSetting | None = Field(
        default=None,
        description="File with the secret of oidc_client_id. Without: a public client.",
    )
    oidc_bind: Binding = Field(
        default="invitation",
        description="What makes somebody at the provider a user here: an invitation of an "
        "administrator, or verified-email, the verified address of one of oidc_bind_account. Only "
        "for a provider that is the directory of that account alone.",
    )
    oidc_bind_account: str = Field(
        default="",
        description="Account, by id, whose users verified-email finds. Without: the operator "
        "account.",
    )
    console_token_sign_in: KeySignIn = Field(
        default="auto",
        description="Whether the token of an ADMIN key opens the console: on, off, or auto, "
        "without a provider, until an operator is connected with a sign-in there, and while the "
        "provider has not answered for a minute.",
    )
    http_open: bool = Field(
        default=False,
        description="Demand no credential of gateways. Needs http_account.",
    )
    http_account: str = Field(
        default="",
        description="Account, by id, or * for all, whose keys gateways of the operator account may "
        "ask about over HTTP beside their own; with http_open, whose keys anybody may.",
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="Processes that share the ports, 1 to 64."
    )
    tls_cert: PathSetting | None = Field(
        default=None, description="PEM certificate chain of the server. Needs tls_key."
    )
    tls_key: PathSetting | None = Field(
        default=None, description="PEM private key of tls_cert, not encrypted."
    )
    tls_client_ca: PathSetting | None = Field(
        default=None, description="Demand a client certificate of this authority (mutual TLS), PEM."
    )
    metrics_tls: Literal["off", "server", "mutual"] | None = Field(
        default=None,
        description="TLS of metrics_listen: off, server, or mutual (with client certificates). off "
        "is plain text, off loopback too: metrics and health hold no secret. As every port, unless "
        "given.",
    )
    max_connections: int = Field(
        default=GRPC.connections,
        ge=1,
        description="Connections of the gRPC port, of each process.",
    )
    http_max_connections: int = Field(
        default=HTTP.connections,
        ge=1,
        description="Connections of http_listen, of each process. A new one takes the place of the "
        "one that has been silent longest.",
    )
    http_max_connections_per_peer: int = Field(
        default=HTTP.connections_of_one_peer,
        ge=1,
        description="Of these, connections from one address (IPv6: one /64).",
    )
    insecure: bool = Field(
        default=False,
        description="Serve plain text off loopback, because something in front does TLS.",
    )
    reflection: bool = Field(
        default=True, description="Let tools such as grpcurl list the methods and messages."
    )
    hot_loop: bool = Field(
        default=True,
        description="Serve validations on a thread of their own, at little more than half the "
        "processor time. Uses private parts of grpcio.",
    )
    max_keys_per_account: int = Field(
        default=1_000_000,
        ge=0,
        description="Most keys of an account that are not revoked; 0 for no limit. Commands on the "
        "data directory are not limited.",
    )
    max_users_per_account: int = Field(
        default=100_000,
        ge=0,
        description="Most users of an account that are not deleted; 0 for no limit.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged: debug, info, warning or error."
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="Format of log lines: json or text."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; .env files are not read."""
        if cls.file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.file)

    @property
    def database_url(self) -> DatabaseUrl | None:
        """The database on a server of its own; None for the file in data_dir."""
        if not self.database:
            return None
        return DatabaseUrl(
            text=self.database,
            password_file=self.database_password_file,
            is_insecure=self.insecure_database,
        )

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files, None for plaintext.

        Raises:
            ConfigError: Only one of the two files is given.
        """
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ConfigError("tls_cert and tls_key: give both or neither")
        return TlsFiles(certificate=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def console_origin(self) -> str:
        """The scheme and host at which browsers reach the console; empty without one."""
        address = self.console_listen
        if address is None:
            return ""
        return self.console_url or address.web_origin(is_tls=self.tls is not None)

    @property
    def sign_in(self) -> SignInSettings:
        """How people may sign in at the console."""
        provider = None
        if self.oidc_issuer:
            provider = ProviderSettings(
                issuer=self.oidc_issuer,
                client_id=self.oidc_client_id,
                secret_file=self.oidc_client_secret_file,
            )
        return SignInSettings(
            provider=provider,
            bind=self.oidc_bind,
            bind_account=self.oidc_bind_account,
            key_sign_in=self.console_token_sign_in,
        )

    @property
    def tls_of_metrics(self) -> TlsFiles | None:
        """The TLS files of the port for metrics; the same as of every port, unless set."""
        if self.tls is None or self.metrics_tls == "off":
            return None
        return replace(self.tls, client_ca=None) if self.metrics_tls == "server" else self.tls


@dataclass(frozen=True, slots=True)
class Description:
    """How one setting is given and what it means; for help texts and the reference."""

    name: str
    flag: str
    variable: str
    default: str
    """As one would write it; empty where the setting is unset by default."""
    meaning: str


def describe(name: str) -> Description:
    """Return the description of a setting.

    Raises:
        KeyError: There is no such setting.
    """
    field = Settings.model_fields[name]
    default = field.default
    return Description(
        name=name,
        flag=f"--{name.replace('_', '-')}",
        variable=f"{PREFIX}{name.upper()}",
        default=("on" if default else "off") if isinstance(default, bool) else str(default or ""),
        meaning=field.description or "",
    )


def load(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read the settings.

    Args:
        file: A TOML file, or None.
        flags: The values of the command line; None for a flag that was not given.

    Raises:
        ConfigError: A setting is unknown or ill-formed, or the name of an environment variable is
            nearly that of a setting.
    """
    if file is not None and not file.is_file():
        raise ConfigError(f"--config: {file} is no file")
    _assert_no_near_miss()
    # pydantic-settings asks the class for its sources, so the file is an attribute of a subclass.
    settings_class = type("Settings", (Settings,), {"file": file, "__module__": __name__})
    try:
        settings: Settings = settings_class(
            **{name: value for name, value in flags.items() if value is not None}
        )
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None
    except (ValueError, OSError) as error:  # not TOML, or not to be read
        raise ConfigError(f"--config: {error}") from None
    return settings


def load_to_serve(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read the settings of a server.

    The other commands share its file and environment, but what is given to `serve` as a flag is
    unknown to them. So they do not ask whether the settings of the ports fit each other.

    Raises:
        ConfigError: As from `load`, or a setting contradicts another.
    """
    settings = load(file, flags)
    _assert_consistent(settings)
    return settings


def unknown_variables() -> list[str]:
    """Return the `KEYBEARER_…` variables of the environment that nothing of keybearer reads."""
    known = {
        CONFIG_VARIABLE,
        *CLIENT_VARIABLES,
        *HEALTHCHECK_VARIABLES,
        *PRUNE_VARIABLES,
        *(describe(one).variable for one in _NAMES),
    }
    return sorted(
        name
        for name in map(str.upper, os.environ)
        if name.startswith(PREFIX)
        and name not in known
        and not _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
    )


_NAMES: Final = tuple(Settings.model_fields)


def _assert_no_near_miss() -> None:
    # A misspelt variable would be ignored: a server without the TLS, say, that it was to have.
    for name in unknown_variables():
        near = _near(name.removeprefix(PREFIX).lower())
        if near:
            meant = CONFIG_VARIABLE if near == "config" else describe(near).variable
            raise ConfigError(f"{name}: there is no such setting; did you mean {meant}?")


def _near(name: str) -> str:
    return next(iter(difflib.get_close_matches(name, [*_NAMES, "config"], n=1, cutoff=0.8)), "")


def _first_problem(error: ValidationError) -> str:
    # Never the value: what was mistyped into a variable may be a secret.
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = _near(name)
        return f"{name}: there is no such setting" + (f"; did you mean {near}?" if near else "")
    return f"{name}: {first['msg'].removeprefix('Value error, ')}"


def _assert_consistent(settings: Settings) -> None:
    if settings.tls_client_ca is not None and settings.tls is None:
        raise ConfigError("tls_client_ca: needs tls_cert and tls_key")
    _assert_may_listen("listen", settings.listen, settings)
    _assert_http_consistent(settings)


def _assert_http_consistent(settings: Settings) -> None:
    for name in ("http_listen", "metrics_listen", "console_listen"):
        address: Address | None = getattr(settings, name)
        if address is not None:
            if address.is_unix:
                raise ConfigError(f"{name}: a unix socket is for --listen alone; give host:port")
            _assert_may_listen(name, address, settings)
    _assert_metrics_tls_consistent(settings)
    _assert_console_consistent(settings)
    _assert_sign_in_consistent(settings)
    if settings.http_max_connections_per_peer > settings.http_max_connections:
        raise ConfigError(
            "http_max_connections_per_peer: at most http_max_connections, "
            f"{settings.http_max_connections}"
        )
    if settings.http_open and settings.http_listen is None:
        raise ConfigError("http_open: needs http_listen")
    if settings.http_open and not settings.http_account:
        raise ConfigError("http_open: needs http_account, the account that is opened, or *")
    if settings.http_account and settings.http_listen is None:
        raise ConfigError("http_account: needs http_listen")
    if settings.http_account not in ("", "*") and not is_id(settings.http_account):
        raise ConfigError("http_account: the id of an account, or * for all")


def _assert_console_consistent(settings: Settings) -> None:
    address = settings.console_listen
    if address is None:
        if settings.console_url:
            raise ConfigError("console_url: needs console_listen")
        return
    if not settings.console_url and not address.is_loopback:
        raise ConfigError(
            f"console_listen: {address} is off loopback; give --console-url, the address that "
            "people type, such as https://keys.example.com"
        )


def _assert_sign_in_consistent(settings: Settings) -> None:
    if settings.oidc_issuer and settings.console_listen is None:
        raise ConfigError("oidc_issuer: needs console_listen")
    if settings.oidc_issuer and not settings.oidc_client_id:
        raise ConfigError("oidc_issuer: needs oidc_client_id, what the provider calls the console")
    for name in ("oidc_client_id", "oidc_client_secret_file", "oidc_bind_account"):
        if getattr(settings, name) and not settings.oidc_issuer:
            raise ConfigError(f"{name}: needs oidc_issuer")
    if settings.oidc_bind != "invitation" and not settings.oidc_issuer:
        raise ConfigError("oidc_bind: needs oidc_issuer")
    if settings.oidc_bind_account and settings.oidc_bind != "verified-email":
        raise ConfigError("oidc_bind_account: needs oidc_bind = verified-email")
    if settings.oidc_bind_account and not is_id(settings.oidc_bind_account):
        raise ConfigError("oidc_bind_account: the id of an account")
    sign_in = settings.sign_in
    if sign_in.key_sign_in == "off" and sign_in.provider is None:
        raise ConfigError("console_token_sign_in: off leaves nobody a way in without oidc_issuer")


def _assert_metrics_tls_consistent(settings: Settings) -> None:
    wanted = settings.metrics_tls
    if wanted is not None and settings.metrics_listen is None:
        raise ConfigError("metrics_tls: needs metrics_listen")
    if wanted == "server" and settings.tls is None:
        raise ConfigError("metrics_tls: server needs tls_cert and tls_key")
    if wanted == "mutual" and settings.tls_client_ca is None:
        raise ConfigError("metrics_tls: mutual needs tls_cert, tls_key and tls_client_ca")


def _assert_may_listen(name: str, address: Address, settings: Settings) -> None:
    if name == "metrics_listen" and settings.metrics_tls == "off":
        return  # said for this port; metrics and health hold no secret
    if settings.tls is None and not settings.insecure and not address.is_loopback:
        raise ConfigError(
            f"{name}: {address} would send tokens in plain text; give --tls-cert and --tls-key, "
            "or --insecure if something in front does TLS"
        )
