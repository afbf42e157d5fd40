"""The files under deploy/ but those of gateways: read by checkers, and their commands run.

What is not shown: that a cluster takes the manifests, and that systemd starts the unit.
"""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harness import initialise, make_app
from keybearer._wire.durations import parse_duration
from keybearer_service.config import Settings, load
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from meta.deployment import (
    DEPLOY,
    IMAGE_USER,
    ROOT,
    VARIABLES,
    assert_serves,
    documents,
    objects,
    parsed,
    settings_of,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMAGE = f"keybearer:{PROJECT['version']}"
LONGEST_FIRST_TOKEN = timedelta(hours=1)
DOCUMENTED = [
    path
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *DEPLOY.rglob("*"))
    if path.is_file()
]

COMPOSE = documents("compose.yaml")[0]["services"]
POD = objects("kubernetes.yaml")["StatefulSet"]["spec"]["template"]["spec"]
NODES = documents("compose-nodes.yaml")[0]["services"]
POD_OF_NODES = objects("kubernetes-nodes.yaml")["Deployment"]["spec"]["template"]["spec"]
CONTAINERS = [*POD["initContainers"], *POD["containers"], *POD_OF_NODES["containers"]]
SERVICES = {
    **COMPOSE,
    **{f"{name} of nodes": one for name, one in NODES.items() if name != "database"},
}
MANIFESTS = ("kubernetes.yaml", "kubernetes-nodes.yaml")


# --- no token is left -----------------------------------------------------------------------------


def _commands(path: Path, name: str) -> Iterator[list[str]]:
    """Find the command lines of one command in a file, those of several lines joined."""
    text = re.sub(r"^\s*#", "", path.read_text("utf-8"), flags=re.MULTILINE)
    text = re.sub(r"\\\n|\n(?=\s+--)", " ", text)
    for found in re.finditer(rf"\bkeybearer(?:-server)? +({name} [^\n`|>#]*--[^\n`|>#]*)", text):
        yield shlex.split(found[1])


FIRST_STARTS = {
    "compose.yaml": (COMPOSE["init"]["command"][-1], "/data"),
    "kubernetes.yaml": (POD["initContainers"][0]["command"][-1], "/data/keybearer"),
}
"""The shell command of each file, and its data directory."""


@dataclass(frozen=True)
class FirstStart:
    """The first start of a file, with a directory of this test in place of /data."""

    file: Path
    place: Path
    command: str
    data_dir: Path

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as the file's containers do."""
        kept = {one: text for one, text in os.environ.items() if not one.startswith("KEYBEARER_")}
        path = os.pathsep.join((str(self.place), os.environ["PATH"]))
        of_image = {one: text for one, text in VARIABLES.items() if one.startswith("KEYBEARER_")}
        done = subprocess.run(
            ["sh", "-c", command],
            env={**kept, **of_image, "PATH": path, "KEYBEARER_DATA_DIR": str(self.data_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    @property
    def database(self) -> Path:
        """The file of the database."""
        return self.data_dir / "keybearer.db"

    @property
    def lives(self) -> list[timedelta | None]:
        """How long each key lives, None for ever; the first one first."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            lives = database.execute(
                "SELECT expire_time - create_time FROM api_keys ORDER BY create_time"
            ).fetchall()
        return [None if life is None else timedelta(microseconds=life) for (life,) in lives]


@pytest.fixture(params=FIRST_STARTS)
def first_start(request: pytest.FixtureRequest, tmp_path: Path) -> FirstStart:
    """The first start of each file, which has not run yet."""
    command, data_dir = FIRST_STARTS[request.param]
    (tmp_path / "data").mkdir()
    program = tmp_path / "keybearer-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m keybearer_service "$@"\n')
    program.chmod(0o755)
    return FirstStart(
        file=DEPLOY / request.param,
        place=tmp_path,
        command=command.replace("/data", f"{tmp_path}/data"),
        data_dir=Path(f"{tmp_path}{data_dir}"),
    )


def test_a_first_start_leaves_no_token_and_no_key_that_lives(first_start: FirstStart) -> None:
    """Neither in a file, nor in what a log collector reads; and the key ends in a second."""
    done = first_start.run(first_start.command)

    written = [path for path in (first_start.place / "data").rglob("*") if path.is_file()]
    assert "kbear1_" not in done.stdout + done.stderr
    assert [path.name for path in written if b"kbear1_" in path.read_bytes()] == []
    assert first_start.lives == [timedelta(seconds=1)]


def test_a_first_start_leaves_an_installation_alone(first_start: FirstStart) -> None:
    """A container that is started again makes nothing."""
    first_start.run(first_start.command)
    before = first_start.database.read_bytes()

    assert first_start.run(first_start.command).stderr == ""

    assert first_start.database.read_bytes() == before


def test_after_a_first_start_glass_is_broken_as_the_file_says(first_start: FirstStart) -> None:
    """The administrator of the first start gets a token of an hour."""
    first_start.run(first_start.command)
    [arguments] = _commands(first_start.file, "admin-token")

    done = first_start.run(shlex.join(["keybearer-server", *arguments]))

    assert done.stdout.startswith("kbear1_")
    assert first_start.lives[1:] == [timedelta(hours=1)]


def test_no_text_says_to_leave_a_token_that_never_expires() -> None:
    """Every `init` that is shown ends its key soon, and no command writes a token to a file."""
    shown = {
        f"{path.name}: {shlex.join(command)}": parsed(command)
        for path in DOCUMENTED
        for name in ("init", "admin-token")
        for command in _commands(path, name)
        if "[OPTIONS]" not in command
    }
    assert {one.split(":")[0] for one in shown} >= {
        "README.md",
        "deployment.md",
        "compose.yaml",
        "compose-nodes.yaml",
        "kubernetes.yaml",
        "kubernetes-nodes.yaml",
        "keybearer.service",
    }
    for command, given in shown.items():
        assert parse_duration(given.get("ttl", "99999d")) <= LONGEST_FIRST_TOKEN, command
        assert "token_file" not in given, command


# --- settings -------------------------------------------------------------------------------------

EXAMPLE = (DEPLOY / "keybearer.toml").read_text("utf-8")
_SETTING = re.compile(r"^(# )?([a-z_]+) = (.+)$", re.MULTILINE)
_DEPENDENT: dict[str, dict[str, Any]] = {
    "http_account": {"http_open": True, "http_listen": "127.0.0.1:8081"},
    "metrics_tls": {"metrics_listen": "127.0.0.1:9464"},
    "console_url": {"console_listen": "127.0.0.1:8090"},
    "tls_cert": {"tls_key": "key.pem"},
    "tls_key": {"tls_cert": "cert.pem"},
    "tls_client_ca": {"tls_key": "key.pem", "tls_cert": "cert.pem"},
}
"""What a setting needs beside it."""
SHOWN = {name: tomllib.loads(f"x = {value}")["x"] for _, name, value in _SETTING.findall(EXAMPLE)}


def test_the_example_file_has_every_setting() -> None:
    """A new setting without a line is missed here."""
    assert sorted(SHOWN) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_setting_of_the_example_file_is_explained(name: str) -> None:
    """A sentence stands above it, or above those that it belongs to."""
    lines = EXAMPLE.splitlines()
    [at] = [at for at, line in enumerate(lines) if re.match(rf"(# )?{name} = ", line)]
    above = lines[at - 1]
    if name == "tls_key":
        above = lines[at - 2]
    assert above.startswith("# ")
    assert _SETTING.match(above) is None


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_setting_of_the_example_file_is_the_default_or_an_example_that_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking the `#` away changes nothing, or sets what the comment calls an example."""
    for variable in [one for one in os.environ if one.startswith("KEYBEARER_")]:
        monkeypatch.delenv(variable)
    file = tmp_path / "keybearer.toml"
    [(hidden, value)] = re.findall(rf"^(# )?{name} = (.+)$", EXAMPLE, re.MULTILINE)
    file.write_text(f"{name} = {value}\n")
    settings = load(file, _DEPENDENT.get(name, {}))
    default = Settings.model_fields[name].default
    paragraph = EXAMPLE[: EXAMPLE.index(f"{name} = ")].rpartition("\n\n")[2]
    if hidden and "Example" not in paragraph:
        assert getattr(settings, name) == default
    else:
        assert str(getattr(settings, name)) == str(SHOWN[name])


# --- compose --------------------------------------------------------------------------------------


def test_compose_starts_a_command_that_exists_and_keeps_its_ports_to_itself() -> None:
    """Tokens in plain text stay on this machine."""
    service = COMPOSE["keybearer"]
    assert_serves(service["command"])
    assert all(one.startswith("127.0.0.1:") for one in service["ports"])
    assert DEPLOY.joinpath(service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).exists()
    assert service["build"]["args"] == ["BASE"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_of_compose_is_confined_and_bounded(name: str) -> None:
    """No rights, no memory, processes or log without end, and no core file with secrets."""
    service = SERVICES[name]
    assert service["image"] == IMAGE
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert service["ulimits"]["core"] == 0
    assert service["logging"] == {"driver": "local"}


# --- Kubernetes -----------------------------------------------------------------------------------


def test_the_manifests_fit_together() -> None:
    """Labels, ports and the one replica."""
    found = objects("kubernetes.yaml")
    spec = found["StatefulSet"]["spec"]
    ports = {one["name"] for one in POD["containers"][0]["ports"]}
    labels = spec["template"]["metadata"]["labels"]
    assert set(found) == {"Service", "NetworkPolicy", "StatefulSet"}
    assert spec["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert spec["replicas"] == 1
    assert {one["targetPort"] for one in found["Service"]["spec"]["ports"]} <= ports
    assert_serves(POD["containers"][0]["args"])


@pytest.mark.parametrize("pod", [POD, POD_OF_NODES], ids=MANIFESTS)
def test_the_pod_has_no_rights(pod: dict[str, Any]) -> None:
    """No user but its own, no account of the cluster, and no variable of other services."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == IMAGE_USER
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda one: str(one["name"]))
def test_a_container_of_the_pod_is_confined_and_bounded(container: dict[str, Any]) -> None:
    """Of a version that is named, without capabilities, writing to its volumes alone."""
    assert container["image"] == IMAGE
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"memory", "ephemeral-storage"}


def test_only_named_ports_are_reached_and_nothing_is_called() -> None:
    """The gRPC and HTTP ports from this namespace, the metrics from any."""
    spec = objects("kubernetes.yaml")["NetworkPolicy"]["spec"]
    inside, anywhere = spec["ingress"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    assert spec["egress"] == []
    assert inside["from"] == [{"podSelector": {}}]
    assert [one["port"] for one in inside["ports"]] == ["grpc", "http"]
    assert [one["port"] for one in anywhere["ports"]] == ["metrics"]


@pytest.mark.parametrize("pod", [POD, POD_OF_NODES], ids=MANIFESTS)
def test_a_failing_store_makes_the_pod_unready_and_does_not_restart_it(pod: dict[str, Any]) -> None:
    """Readiness asks for the store; liveness asks what needs none."""
    [container] = pod["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}


def test_with_tls_the_same_probes_are_answered() -> None:
    """The patch gives every port TLS but the one that the kubelet and Prometheus ask."""
    [patch] = documents("kubernetes-tls.yaml")
    pod = patch["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [before] = POD["containers"]
    assert (patch["kind"], patch["metadata"]["name"]) == ("StatefulSet", "keybearer")
    assert container["name"] == before["name"]
    assert not [name for name in container if name.endswith("Probe")]
    plain, secured = (settings_of(one["args"]) for one in (before, container))
    assert plain.metrics_tls == secured.metrics_tls == "off"
    assert secured.tls_of_metrics is None
    assert secured.tls is not None
    assert secured.insecure is False
    for name in ("listen", "http_listen", "metrics_listen"):
        assert getattr(plain, name) == getattr(secured, name)


def test_the_certificate_is_mounted_where_the_command_looks_for_it() -> None:
    """As a whole directory: a file mounted by subPath is never replaced."""
    [patch] = documents("kubernetes-tls.yaml")
    pod = patch["spec"]["template"]["spec"]
    [mount] = pod["containers"][0]["volumeMounts"]
    assert mount["readOnly"] is True
    assert "subPath" not in mount
    assert mount["name"] in {one["name"] for one in pod["volumes"] if "secret" in one}
    tls = settings_of(pod["containers"][0]["args"]).tls
    assert tls is not None
    assert {tls.certificate.parent, tls.key.parent} == {Path(mount["mountPath"])}


# --- several nodes --------------------------------------------------------------------------------


def test_the_nodes_of_compose_share_the_database_and_the_key_files_and_nothing_else() -> None:
    """What `init` draws is read by every node and written by none."""
    node, init = NODES["keybearer"], NODES["init"]
    assert node["environment"] == init["environment"]
    assert node["deploy"]["replicas"] == 3
    [keys] = node["volumes"]
    assert keys["read_only"] is True
    assert f"{keys['source']}:/data" in init["volumes"]
    assert (keys["target"], keys["volume"]["subpath"]) == ("/data/peppers", "peppers")
    assert any(one.startswith("/data:") for one in node["tmpfs"])
    assert all(one.startswith("127.0.0.1:") for one in node["ports"])
    assert_serves(node["command"])


def test_the_manifests_of_several_nodes_fit_together() -> None:
    """Labels and ports; one pod at a time may be missing."""
    found = objects("kubernetes-nodes.yaml")
    spec = found["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    ports = {one["name"] for one in POD_OF_NODES["containers"][0]["ports"]}
    selectors = [
        spec["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    assert selectors == [labels] * 4
    assert {one["targetPort"] for one in found["Service"]["spec"]["ports"]} <= ports
    assert spec["replicas"] > found["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert_serves(POD_OF_NODES["containers"][0]["args"])


def test_a_pod_of_several_nodes_gets_its_secrets_as_files_for_itself() -> None:
    """The key files where they are looked for, and the password where the setting names it."""
    [container] = POD_OF_NODES["containers"]
    mounts = {one["name"]: one for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in POD_OF_NODES["volumes"]}
    environment = {one["name"]: one["value"] for one in container["env"]}
    data_dir = VARIABLES["KEYBEARER_DATA_DIR"]
    assert mounts["data"]["mountPath"] == data_dir
    assert mounts["peppers"]["mountPath"] == f"{data_dir}/peppers"
    for name in ("peppers", "database"):
        assert mounts[name]["readOnly"] is True
        assert volumes[name]["secret"]["defaultMode"] & 0o337 == 0
    place = mounts["database"]["mountPath"]
    assert environment["KEYBEARER_DATABASE_PASSWORD_FILE"] == f"{place}/password"
    assert f"sslrootcert={place}/ca.crt" in environment["KEYBEARER_DATABASE"]


def test_the_key_files_of_a_secret_are_taken(tmp_path: Path) -> None:
    """Behind two links, readable by a group, in a directory of somebody else: as a cluster does."""
    made = DataDir(tmp_path / "made")
    initialise(made.path, SystemClock(), SystemEntropy())
    peppers = tmp_path / "mounted"
    (peppers / "..1").mkdir(parents=True)
    (peppers / "..data").symlink_to("..1")
    for file in made.peppers.iterdir():
        copy = peppers / "..1" / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o440)
        (peppers / file.name).symlink_to(f"..data/{file.name}")
    shutil.rmtree(made.peppers)
    peppers.rename(made.peppers)
    app = make_app(made, SystemClock(), SystemEntropy())
    app.start()
    app.stop(grace_s=0)


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture
def systemd_analyze() -> str:
    """The program, or a skip."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed here")
    return found


def test_systemd_takes_the_unit(systemd_analyze: str, tmp_path: Path) -> None:
    """`systemd-analyze verify`, with a program that exists here in place of the installed one."""
    text = (DEPLOY / "keybearer.service").read_text("utf-8")
    [command] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = command.split()
    assert_serves(arguments)
    unit = tmp_path / "keybearer.service"
    unit.write_text(text.replace(f"ExecStart={program}", "ExecStart=/bin/true"))
    verified = subprocess.run(
        [systemd_analyze, "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_is_confined(systemd_analyze: str) -> None:
    """The score of systemd itself: 0 is confined, 10 is not."""
    done = subprocess.run(
        [
            systemd_analyze,
            "security",
            "--offline=true",
            "--threshold=15",
            "deploy/keybearer.service",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_is_bounded_and_leaves_no_core_file() -> None:
    """Memory, threads and descriptors end somewhere; a core file would hold secrets."""
    text = (DEPLOY / "keybearer.service").read_text("utf-8")
    names = set(re.findall(r"^(\w+)=", text, re.MULTILINE))
    assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= names
    assert "\nLimitCORE=0\n" in text


# --- PostgreSQL with a failover -------------------------------------------------------------------


def test_the_database_loses_nothing_in_a_failover() -> None:
    """What the promises rest on; the failover suite runs with this very file."""
    [patroni] = documents("postgresql-ha/patroni.yml")
    dcs = patroni["bootstrap"]["dcs"]
    assert dcs["synchronous_mode"] is True
    assert dcs["synchronous_mode_strict"] is True
    assert dcs["postgresql"]["parameters"]["synchronous_commit"] == "on"
    assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]
    assert patroni["watchdog"]["mode"] == "required"
