"""The files under deploy/gateways/, as far as parsers can tell."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.proxies import envoy_program
from gateway.support import IDENTITY

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize(
    "file", ["nginx/keybearer-identity.conf", "caddy/Caddyfile", "haproxy/keybearer.lua"]
)
def test_every_identity_header_is_in_the_file(file: str) -> None:
    """One that is left out would be the client's own."""
    text = (DEPLOY / "gateways" / file).read_text().lower()
    assert [name for name in IDENTITY if name not in text] == []


def test_every_gateway_refuses_the_same_paths() -> None:
    """The expression is one, written down in each language."""
    gateways = DEPLOY / "gateways"
    nginx = (gateways / "nginx/keybearer-path.conf").read_text()
    [expression] = re.findall(r'\$request_uri ~\* "(.+)"\)', nginx)
    for file, count in (
        ("caddy/Caddyfile", 1),
        ("envoy/envoy.yaml", 1),
        ("haproxy/haproxy.cfg", 2),
    ):
        assert (gateways / file).read_text().count(expression) == count, file


def test_traefik_files_name_what_they_use_and_every_identity_header() -> None:
    """As far as a parser can tell; few machines have one to run."""
    [static] = _documents("gateways/traefik/traefik.yaml")
    [dynamic] = _documents("gateways/traefik/keybearer.yaml")
    http = dynamic["http"]
    assert static["providers"]["file"]["filename"] == "keybearer.yaml"
    assert static["entryPoints"]["clients"]["http"]["aliasHeadersStrategy"] == "delete"
    assert not any(static["entryPoints"]["clients"]["http"]["encodedCharacters"].values())
    ambiguous = http["routers"].pop("ambiguous")
    assert (ambiguous["service"], ambiguous["priority"]) == ("noop@internal", 1000)
    for name, router in http["routers"].items():
        assert set(router["middlewares"]) <= set(http["middlewares"])
        assert router["service"] in http["services"]
        assert set(router["entryPoints"]) <= set(static["entryPoints"])
        assert router["middlewares"][0] == "distrust"
        assert ("keybearer" in router["middlewares"]) == (name != "probes")
    taken = {
        name.lower() for name in http["middlewares"]["distrust"]["headers"]["customRequestHeaders"]
    }
    given = {
        one.lower()
        for one in http["middlewares"]["keybearer"]["forwardAuth"]["authResponseHeaders"]
    }
    assert given == set(IDENTITY) <= taken


def test_envoy_takes_its_file() -> None:
    """As shipped, with nothing replaced."""
    done = subprocess.run(
        [envoy_program(), "--mode", "validate", "-c", "deploy/gateways/envoy/envoy.yaml"],
        cwd=ROOT,
        env={"KEYBEARER_GATEWAY_TOKEN": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
