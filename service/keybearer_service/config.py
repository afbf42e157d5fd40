"""Configuration: flags over `KEYBEARER_…` environment variables over a TOML file over defaults."""

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from keybearer_service.domain.token_format import is_id
from keybearer_service.net.tls import TlsFiles


class ConfigError(Exception):
    """A setting is wrong. The text names it and says what would be right."""


class Settings(BaseSettings):
    """What `serve` and the other commands take. The names are those of the flags."""

    model_config = SettingsConfigDict(env_prefix="KEYBEARER_", extra="forbid", frozen=True)

    file: ClassVar[Path | None] = None

    data_dir: Path = Path("data")
    listen: str = "127.0.0.1:50051"
    http_listen: str | None = None
    metrics_listen: str | None = None
    http_open: bool = False
    http_account: str = ""
    workers: int = Field(default=1, ge=1, le=64)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    metrics_tls: Literal["off", "server", "mutual"] | None = None
    insecure: bool = False
    reflection: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; no .env file is looked for."""
        if cls.file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.file)

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files, None for plaintext."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(certificate=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def tls_of_metrics(self) -> TlsFiles | None:
        """The TLS files of the port for metrics; the same as of every port, unless set."""
        if self.tls is None or self.metrics_tls == "off":
            return None
        return replace(self.tls, client_ca=None) if self.metrics_tls == "server" else self.tls


def load(file: Path | None, flags: dict[str, Any]) -> Settings:
    """Read the settings.

    Args:
        file: A TOML file, or none.
        flags: What the command line says; None for what it does not say.

    Raises:
        ConfigError: A setting is unknown, ill-formed, or contradicts another.
    """
    if file is not None and not file.is_file():
        raise ConfigError(f"--config: {file} is no file")
    # The class is told through an attribute of a subclass: pydantic-settings asks the class itself.
    settings_class = type("Settings", (Settings,), {"file": file, "__module__": __name__})
    try:
        settings: Settings = settings_class(
            **{name: value for name, value in flags.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}: {first['msg']}") from None
    except ValueError as error:  # a TOML file that is none
        raise ConfigError(f"--config: {error}") from None
    _assert_consistent(settings)
    return settings


def _assert_consistent(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls_cert and tls_key: give both or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigError("tls_client_ca: needs tls_cert and tls_key")
    assert_may_listen("listen", settings.listen, settings)
    _assert_http_consistent(settings)


def _assert_http_consistent(settings: Settings) -> None:
    for name in ("http_listen", "metrics_listen"):
        address: str | None = getattr(settings, name)
        if address is not None:
            if address.startswith("unix:"):
                raise ConfigError(f"{name}: a unix socket is for --listen alone; give host:port")
            assert_may_listen(name, address, settings)
    _assert_metrics_tls_consistent(settings)
    if settings.http_open and settings.http_listen is None:
        raise ConfigError("http_open: needs http_listen")
    if settings.http_open and not settings.http_account:
        raise ConfigError("http_open: needs http_account, the account that is opened, or *")
    if settings.http_account and settings.http_listen is None:
        raise ConfigError("http_account: needs http_listen")
    if settings.http_account not in ("", "*") and not is_id(settings.http_account):
        raise ConfigError("http_account: the id of an account, or * for all")


def _assert_metrics_tls_consistent(settings: Settings) -> None:
    wanted = settings.metrics_tls
    if wanted is not None and settings.metrics_listen is None:
        raise ConfigError("metrics_tls: needs metrics_listen")
    if wanted == "server" and settings.tls is None:
        raise ConfigError("metrics_tls: server needs tls_cert and tls_key")
    if wanted == "mutual" and settings.tls_client_ca is None:
        raise ConfigError("metrics_tls: mutual needs tls_cert, tls_key and tls_client_ca")


def assert_may_listen(name: str, address: str, settings: Settings) -> None:
    """Refuse to send tokens in plain text over a network.

    Raises:
        ConfigError: Not `host:port`, or off loopback without TLS and without `insecure`.
    """
    if address.startswith("unix:"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise ConfigError(f"{name}: {address!r} is not host:port")
    if name == "metrics_listen" and settings.metrics_tls == "off":
        return  # said for this port; metrics and health hold no secret
    if settings.tls is None and not settings.insecure and not _is_loopback(host.strip("[]")):
        raise ConfigError(
            f"{name}: {address} would send tokens in plain text; give --tls-cert and --tls-key, "
            "or --insecure if something in front does TLS"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
