"""Settings: which source wins, and what is refused."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from keybearer_service.config import ConfigError, Settings, load, load_to_serve, unknown_variables

FILE = "listen = '127.0.0.1:1'\nlog_level = 'error'\ndata_dir = 'from-file'\n"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KEYBEARER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A TOML file."""
    path = tmp_path / "keybearer.toml"
    path.write_text(FILE, "utf-8")
    return path


def test_defaults_serve_on_loopback() -> None:
    """Without any setting nothing is reachable from outside, in one process."""
    settings = load(None, {})
    assert str(settings.listen) == "127.0.0.1:50051"
    assert settings.data_dir == Path("data")
    assert settings.workers == 1
    assert settings.tls is None


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three settings comes from the highest source that says it."""
    monkeypatch.setenv("KEYBEARER_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("KEYBEARER_LOG_LEVEL", "debug")
    settings = load(file, {"listen": "127.0.0.1:3", "log_level": None})
    assert str(settings.listen) == "127.0.0.1:3"
    assert settings.log_level == "debug"
    assert settings.data_dir == Path("from-file")


def test_one_load_does_not_leave_its_file_behind(file: Path) -> None:
    """The next load without a file has the defaults."""
    load(file, {})
    assert load(None, {}).log_level == "info"


def test_flags_that_are_not_given_say_nothing(file: Path) -> None:
    """None is not a value."""
    assert load(file, {"insecure": None, "log_level": None}).log_level == "error"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown setting": ({"speed": 9}, "speed"),
    "no address": ({"listen": "nowhere"}, "listen"),
    "no port": ({"listen": "127.0.0.1:"}, "listen"),
    "port too large": ({"listen": "127.0.0.1:65536"}, "listen"),
    "port not a number": ({"listen": "127.0.0.1:http"}, "listen"),
    "port in other digits": ({"listen": "127.0.0.1:\u0661\u0662"}, "listen"),
    "plaintext everywhere": ({"listen": "0.0.0.0:50051"}, "plain text"),
    "plaintext on a network": ({"listen": "192.0.2.1:50051"}, "plain text"),
    "plaintext on a name": ({"listen": "keybearer.example.com:50051"}, "plain text"),
    "plaintext on all of IPv6": ({"listen": "[::]:50051"}, "plain text"),
    "a certificate without its key": ({"tls_cert": "c.pem"}, "tls_cert and tls_key"),
    "a key without its certificate": ({"tls_key": "k.pem"}, "tls_cert and tls_key"),
    "an authority without a certificate": ({"tls_client_ca": "ca.pem"}, "tls_client_ca"),
    "no connections": ({"max_connections": 0}, "max_connections"),
    "no connections over HTTP": ({"http_max_connections": 0}, "http_max_connections"),
    "one peer with more than all": (
        {"http_max_connections_per_peer": 1001},
        "http_max_connections_per_peer: at most http_max_connections, 1000",
    ),
    "a console without a port": ({"console_url": "https://a.example.com"}, "needs console_listen"),
    "a console off loopback": (
        {"console_listen": "0.0.0.0:8443", "tls_cert": "c.pem", "tls_key": "k.pem"},
        "console_listen: 0.0.0.0:8443 is off loopback; give --console-url",
    ),
    "a console at a path": (
        {"console_listen": "127.0.0.1:1", "console_url": "https://a.example.com/keys"},
        "console_url: a scheme and a host",
    ),
    "a console at no host": (
        {"console_listen": "127.0.0.1:1", "console_url": "a.example.com"},
        "console_url: a scheme and a host",
    ),
    "a console at a user": (
        {"console_listen": "127.0.0.1:1", "console_url": "https://me@a.example.com"},
        "console_url: a scheme and a host",
    ),
    "a console in plain text": (
        {"console_listen": "127.0.0.1:1", "console_url": "http://a.example.com"},
        "console_url: must begin with https",
    ),
    "a console on a socket": ({"console_listen": "unix:/run/console"}, "console_listen: a unix"),
    "no workers": ({"workers": 0}, "workers"),
    "too many workers": ({"workers": 65}, "workers"),
    "workers that are no number": ({"workers": "two"}, "workers"),
    "a quota below nothing": ({"max_keys_per_account": -1}, "max_keys_per_account"),
    "a quota that is no number": ({"max_users_per_account": "many"}, "max_users_per_account"),
    "an unknown level": ({"log_level": "loud"}, "log_level"),
    "an unknown format": ({"log_format": "xml"}, "log_format"),
    "no boolean": ({"insecure": "perhaps"}, "insecure"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_wrong_setting_is_refused_by_name(name: str) -> None:
    """One line that names the setting and says what would be right."""
    flags, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as caught:
        load_to_serve(None, flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_wrong_setting_is_refused_in_a_file_too(name: str, tmp_path: Path) -> None:
    """Whatever the source, the same rules."""
    flags, said = REFUSED[name]
    file = tmp_path / "keybearer.toml"
    file.write_text(
        "".join(
            f"{key} = {value!r}\n" if isinstance(value, str) else f"{key} = {value}\n"
            for key, value in flags.items()
        ),
        "utf-8",
    )
    with pytest.raises(ConfigError, match=said):
        load_to_serve(file, {})


ALLOWED: dict[str, dict[str, Any]] = {
    "IPv4 loopback": {"listen": "127.0.0.2:1"},
    "IPv6 loopback": {"listen": "[::1]:1"},
    "the name of loopback": {"listen": "localhost:1"},
    "a free port": {"listen": "127.0.0.1:0"},
    "a socket in the file system": {"listen": "unix:run/keybearer.sock"},
    "plaintext that was asked for": {"listen": "0.0.0.0:1", "insecure": True},
    "TLS": {"listen": "0.0.0.0:1", "tls_cert": "c.pem", "tls_key": "k.pem"},
}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_what_is_safe_is_allowed(name: str) -> None:
    """Loopback, sockets, TLS, and plaintext only when it was asked for by name."""
    assert str(load_to_serve(None, ALLOWED[name]).listen) == ALLOWED[name]["listen"]


@pytest.mark.parametrize(
    "flags",
    [
        {"listen": "0.0.0.0:50051"},
        {"tls_cert": "c.pem"},
        {"http_open": True},
        {"metrics_tls": "server"},
    ],
    ids=str,
)
def test_settings_of_a_server_that_are_not_whole_do_not_stop_the_other_commands(
    flags: dict[str, Any],
) -> None:
    """`serve` may get the rest as flags, which a `backup` with the same environment never sees."""
    assert load(None, flags).data_dir == Path("data")
    with pytest.raises(ConfigError):
        load_to_serve(None, flags)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("KEYBEARER_LISTNE", "KEYBEARER_LISTEN"),
        ("KEYBEARER_TLS_CLIENTCA", "KEYBEARER_TLS_CLIENT_CA"),
        ("KEYBEARER_DATADIR", "KEYBEARER_DATA_DIR"),
        ("KEYBEARER_CONFIG_", "KEYBEARER_CONFIG"),
        ("keybearer_worker", "KEYBEARER_WORKERS"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    """Ignored, it would leave the server without what it was to have. Its value is not repeated."""
    monkeypatch.setenv(variable, "hunter2")
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    assert str(caught.value) == (
        f"{variable.upper()}: there is no such setting; did you mean {meant}?"
    )


def test_variables_of_the_client_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one that the command's page names may stand in the same environment."""
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text("utf-8")
    named = set(re.findall(r"KEYBEARER_[A-Z_]+", page))
    assert len(named) > 8
    for name in named:
        monkeypatch.setenv(name, "x")
    load(None, {})
    assert unknown_variables() == []


def test_variables_that_a_cluster_sets_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes describes a Service called keybearer to every pod beside it."""
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_GRPC",
        "PORT",
        "PORT_50051_TCP_ADDR",
    ):
        monkeypatch.setenv(f"KEYBEARER_{name}", "tcp://192.0.2.1:50051")
    monkeypatch.setenv("KEYBEARER_HTTP_PORT_8081_TCP", "tcp://192.0.2.1:8081")
    load(None, {})
    assert unknown_variables() == []


def test_other_unknown_variables_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may belong to something else, so they stop nothing."""
    monkeypatch.setenv("KEYBEARER_FAVOURITE_COLOUR", "blue")
    load(None, {})
    assert unknown_variables() == ["KEYBEARER_FAVOURITE_COLOUR"]


def test_an_empty_variable_counts_as_unset(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and units write `KEYBEARER_TLS_CERT=` for nothing; the file below it counts."""
    for name in Settings.model_fields:
        monkeypatch.setenv(f"KEYBEARER_{name.upper()}", "")
    assert load(file, {}).log_level == "error"
    assert load(file, {}).data_dir == Path("from-file")
    assert load(None, {}).tls is None


@pytest.mark.parametrize("name", ["data_dir", "tls_cert", "tls_key", "tls_client_ca"])
def test_an_empty_path_is_refused(name: str) -> None:
    """It would be the working directory: `--data-dir "$UNSET"` is a mistake."""
    with pytest.raises(ConfigError, match=f"{name}: is empty"):
        load(None, {name: ""})


@pytest.mark.parametrize("written", ["0o660", "'660'", "'0660'"])
def test_the_mode_of_a_socket_is_octal_in_every_spelling(tmp_path: Path, written: str) -> None:
    """As in `chmod`, and as TOML writes octal numbers."""
    file = tmp_path / "keybearer.toml"
    file.write_text(f"unix_socket_mode = {written}\n", "utf-8")
    assert load(file, {}).unix_socket_mode == "0660"


@pytest.mark.parametrize("written", ["9", "888", "rw", "07777", "", "-660"])
def test_a_mode_that_is_none_is_refused(written: str) -> None:
    """With an example."""
    with pytest.raises(ConfigError, match="unix_socket_mode: three octal digits"):
        load(None, {"unix_socket_mode": written})


def test_an_unknown_setting_in_a_file_is_refused_with_the_one_that_was_meant(
    tmp_path: Path,
) -> None:
    """As for variables."""
    file = tmp_path / "keybearer.toml"
    file.write_text("listne = '127.0.0.1:1'\n", "utf-8")
    with pytest.raises(ConfigError, match=r"listne: .* did you mean listen\?"):
        load(file, {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A mistyped name is not an empty file."""
    with pytest.raises(ConfigError, match="is no file"):
        load(tmp_path / "nothing.toml", {})


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    """With a line that names the flag."""
    file = tmp_path / "keybearer.toml"
    file.write_text("listen: 1\n", "utf-8")
    with pytest.raises(ConfigError, match="--config"):
        load(file, {})


def test_a_refused_value_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was mistyped into an environment variable may be a secret."""
    monkeypatch.setenv("KEYBEARER_LOG_LEVEL", "hunter2")
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    assert "hunter2" not in str(caught.value)
