"""The console as it is served: settings, TLS, several processes, and without its extra."""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificates import Authority
from console.site import Site
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, initialise, make_app
from keybearer_service.config import load_to_serve
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.tls import TlsFiles
from keybearer_service.storage import files
from reliability.processes import ServerProcess, command, init


def test_the_origin_is_what_people_type() -> None:
    """This machine's own, or the one that is set."""

    def origin(**flags: str) -> str:
        return load_to_serve(None, flags).console_origin

    assert origin() == ""
    assert origin(console_listen="127.0.0.1:8090") == "http://127.0.0.1:8090"
    assert origin(console_listen="localhost:8090") == "http://127.0.0.1:8090"
    assert origin(console_listen="[::1]:8090") == "http://[::1]:8090"
    tls = {"tls_cert": "c.pem", "tls_key": "k.pem"}
    assert origin(console_listen="127.0.0.1:8443", **tls) == "https://127.0.0.1:8443"
    behind = {"console_url": "https://a.example.com:8443", "insecure": "true"}
    assert origin(console_listen="0.0.0.0:1", **behind) == "https://a.example.com:8443"
    url = "https://Keys.example.com/"
    assert origin(console_listen="127.0.0.1:1", console_url=url) == "https://keys.example.com"


def test_the_console_serves_tls(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> None:
    """With the certificate of every port, at the name that is set, and says that it stays so."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    data_dir, created = initialise(tmp_path / "data", clock, entropy)
    listener = Listener(
        address=Address("127.0.0.1", 0), tls=TlsFiles(certificate=certificate, key=key)
    )
    http = HttpConfig(console=listener, console_url="https://keys.example.com")
    app = make_app(data_dir, clock, entropy, listener=ANY_PORT, http=http)
    app.start()
    try:
        port = app.console_port
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            verify=ssl.create_default_context(cafile=authority.certificate),
            headers={"host": "keys.example.com"},
        ) as client:
            site = Site(app.console_origin, client)
            assert site.origin == "https://keys.example.com"
            seen = site.sign_in(created.issued.token)
            assert seen.status == 200
            assert "max-age" in seen.response.headers["strict-transport-security"]
            assert client.get("/console/keys", headers={"host": "127.0.0.1"}).status_code == 421
    finally:
        app.stop(grace_s=0)


def test_a_session_is_good_at_every_process(tmp_path: Path) -> None:
    """Two share the port; whichever answers, one is signed in, and then signed out."""
    if files.sharing_hazard() is not None:
        pytest.skip("this SQLite cannot be shared by processes")
    token = init(tmp_path / "data")["token"]
    process = ServerProcess(
        tmp_path / "data", flags=("--workers", "2", "--console-listen", "127.0.0.1:0")
    )
    try:
        process.wait_for(lambda told: len(_consoles(told)) == 2)
        (port,) = {event["port"] for event in _consoles(process.events)}
        origin = f"http://127.0.0.1:{port}"

        def is_signed_in() -> bool:
            # A connection of its own each time: the kernel gives it to either process.
            with httpx.Client(base_url=origin, timeout=20) as client:
                other = Site(origin, client)
                other.cookies.update(cookies)
                return other.is_signed_in

        with httpx.Client(base_url=origin, timeout=20) as client:
            site = Site(origin, client)
            assert site.sign_in(token).status == 200
            cookies = dict(site.cookies)
            assert {is_signed_in() for _ in range(20)} == {True}
            site.send(site.get("/console/keys").form("/console/sign-out"))
            assert {is_signed_in() for _ in range(20)} == {False}
        assert process.stop() == 0
    finally:
        process.close()


def _consoles(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in told if one["event"] == "serving_http" and one["name"] == "console"]


def test_without_the_extra_it_is_refused_in_one_line(tmp_path: Path) -> None:
    """The line says what to install."""
    init(tmp_path / "data")
    hidden = (
        "import sys; sys.modules['jinja2'] = None; sys.argv[0] = 'keybearer-server';"
        " from keybearer_service.__main__ import main; main()"
    )
    done = command(
        *("serve", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"),
        *("--console-listen", "127.0.0.1:0"),
        entry=("-c", hidden),
    )
    assert done.returncode == 1
    assert done.stderr == (
        "keybearer-server: console_listen: the console needs more packages; run: "
        "pip install 'keybearer[server,console]'\n"
    )
