"""The files under deploy/: read by parsers and checkers, as neither Docker nor a cluster runs here.

What is not shown: that the image builds and runs, that a cluster takes the manifests, that systemd
starts the unit, and anything of Traefik.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from gateway.proxies import envoy_program
from gateway.support import IDENTITY
from keybearer_service.cli import app
from keybearer_service.config import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
IMAGE_USER = 10001


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def _instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line[len(name) + 1 :] for line in joined.splitlines() if line.startswith(f"{name} ")]


def assert_serves(arguments: list[str]) -> None:
    """Check that `keybearer-server` takes a command line, without running it."""
    name, *options = arguments
    group: Any = typer.main.get_command(app)
    parsed = group.commands[name].make_context(name, options).params
    flags = {key: value for key, value in parsed.items() if value is not None}
    flags.pop("config", None)
    load(None, flags)


# --- the image ------------------------------------------------------------------------------------


def test_the_image_is_slim_and_runs_as_a_user_without_rights() -> None:
    """A number, so that Kubernetes can see that it is not root's."""
    assert all(":" in one and one.split()[0].endswith("-slim") for one in _instructions("FROM"))
    assert _instructions("USER") == [f"{IMAGE_USER}:{IMAGE_USER}"]
    assert f"--uid {IMAGE_USER}" in DOCKERFILE


def test_the_image_asks_itself_whether_it_serves() -> None:
    """With the server's own command: there is no other program in it."""
    [check] = _instructions("HEALTHCHECK")
    assert '["keybearer-server", "healthcheck"]' in check


def test_the_image_starts_with_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment that the image sets."""
    [entry], [command] = _instructions("ENTRYPOINT"), _instructions("CMD")
    assert yaml.safe_load(entry) == ["keybearer-server"]
    for name, value in re.findall(r"(KEYBEARER_\w+)=(\S+)", DOCKERFILE):
        monkeypatch.setenv(name, value)
    assert_serves(yaml.safe_load(command))


def test_the_package_builds_from_what_the_image_copies(tmp_path: Path) -> None:
    """Nothing that the build needs is left out, by the Dockerfile or by what it ignores."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for copied in _instructions("COPY"):
        if copied.startswith("--from"):
            continue
        *sources, target = copied.split()
        for source in sources:
            top = source.split("/")[0]
            assert f"!{top}" in ignored, f"{source} is ignored"
            into = tmp_path / target / (source if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, into)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr


# --- compose and Kubernetes -----------------------------------------------------------------------


def test_compose_starts_a_command_that_exists_and_keeps_its_ports_to_itself() -> None:
    """Tokens in plain text stay on this machine."""
    [document] = _documents("compose.yaml")
    service = document["services"]["keybearer"]
    assert_serves(service["command"])
    assert all(one.startswith("127.0.0.1:") for one in service["ports"])
    assert (DEPLOY / "compose.yaml").parent.joinpath(service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).exists()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_the_manifests_probe_by_grpc_and_give_no_rights() -> None:
    """Every container is confined, and the three probes ask the gRPC port."""
    documents = {one["kind"]: one for one in _documents("kubernetes.yaml")}
    assert set(documents) == {"Service", "StatefulSet"}
    spec = documents["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert documents["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert spec["replicas"] == 1
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == IMAGE_USER
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    [container] = pod["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": ports["grpc"]}
    assert_serves(container["args"])
    assert {one["targetPort"] for one in documents["Service"]["spec"]["ports"]} <= set(ports)


def test_the_manifests_initialise_with_a_command_that_exists() -> None:
    """The init container makes an installation where there is none."""
    documents = {one["kind"]: one for one in _documents("kubernetes.yaml")}
    [init] = documents["StatefulSet"]["spec"]["template"]["spec"]["initContainers"]
    words = shlex.split(init["command"][-1])
    arguments = words[words.index("keybearer-server") + 1 :]
    group: Any = typer.main.get_command(app)
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


# --- systemd --------------------------------------------------------------------------------------


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify`, with a program that exists here in place of the installed one."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    text = (DEPLOY / "keybearer.service").read_text()
    [command] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = command.split()
    assert_serves(arguments)
    unit = tmp_path / "keybearer.service"
    unit.write_text(text.replace(program, "/bin/true"))
    verified = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_is_confined(tmp_path: Path) -> None:
    """The score of systemd itself: 0 is confined, 10 is not."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=15", "deploy/keybearer.service"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:]


# --- gateways -------------------------------------------------------------------------------------


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
    """As far as a parser can tell: it has not been run."""
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
