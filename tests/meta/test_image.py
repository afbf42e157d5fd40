"""The image: its build carried out in a directory, as no container is built or run here.

What is not shown: that the base image has what the steps need, and the user and the rights of the
container.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from keybearer import KeybearerClient
from keybearer_service.config import ConfigError, load_to_serve
from meta.deployment import BUILD, DEPLOY, FINAL, IMAGE_USER, ROOT, VARIABLES, parsed, texts_of

INSTALLED = "/opt/keybearer"
BUILD_TOOLS = ("bin/buf", "hatchling", "editables.py", "pip", "setuptools", "wheel")
TIMEOUT_S = 120
FREE = "127.0.0.1:0"
DIGEST = "sha256:" + "5" * 64


def _pins(name: str) -> set[str]:
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    return set(re.findall(r"^([a-z0-9-]+==\S+)", text, re.MULTILINE))


# --- the lists ------------------------------------------------------------------------------------


def test_the_list_of_what_serves_has_nothing_that_builds() -> None:
    """Build backends, what they need for an editable install, and buf are in other lists."""
    names = {one.partition("==")[0] for one in _pins("server")}
    assert names & {"buf-bin", "hatchling", "editables", "trove-classifiers"} == set()


def test_the_smaller_lists_are_parts_of_the_larger() -> None:
    """The tests run with the versions that serve."""
    assert _pins("build") | _pins("server") < _pins("run") < _pins("dev")


# --- the base image -------------------------------------------------------------------------------


def _check_base(
    base: str, interpreter: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [interpreter, str(DEPLOY / "check_base.py"), base],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _built_with(tmp_path: Path, **variables: str | int) -> dict[str, str]:
    """Return an environment in which Python tells other facts about its own build."""
    facts = {"CONFIG_ARGS": "", "PY_CFLAGS_NODIST": "-std=c11", "Py_DEBUG": 0}
    facts["PGO_PROF_USE_FLAG"] = "-fprofile-use -fprofile-correction"
    (tmp_path / "facts.py").write_text(f"build_time_vars = {facts | variables}\n")
    return {"_PYTHON_SYSCONFIGDATA_NAME": "facts", "PYTHONPATH": str(tmp_path)}


OPTIMISED = {
    "configure": {"CONFIG_ARGS": "'--enable-optimizations' '--with-lto' 'CFLAGS=-g'"},
    "gcc": {"PY_CFLAGS_NODIST": "-std=c11 -fprofile-use -fprofile-correction"},
    "clang": {"PY_CFLAGS_NODIST": "-fprofile-instr-use=code.profclangd"},
}
NOT_OPTIMISED: dict[str, dict[str, str | int]] = {
    "nothing told": {},
    "not asked for": {"CONFIG_ARGS": "'--enable-shared' '--prefix=/usr/local'"},
    "asked not to": {"CONFIG_ARGS": "'--disable-optimizations'"},
    "debug": {"CONFIG_ARGS": "'--enable-optimizations' '--with-pydebug'", "Py_DEBUG": 1},
}


@pytest.mark.parametrize("build", OPTIMISED)
def test_an_optimised_interpreter_is_taken(build: str, tmp_path: Path) -> None:
    """By what was configured, or by what was compiled with."""
    done = _check_base(f"python@{DIGEST}", **_built_with(tmp_path, **OPTIMISED[build]))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("build", NOT_OPTIMISED)
def test_an_interpreter_that_is_not_optimised_ends_the_build(build: str, tmp_path: Path) -> None:
    """That a compiler could have optimised, as PGO_PROF_USE_FLAG says, does not count."""
    done = _check_base(f"python@{DIGEST}", **_built_with(tmp_path, **NOT_OPTIMISED[build]))
    assert done.returncode == 1
    assert "--enable-optimizations" in done.stderr or "debug" in done.stderr


def test_the_interpreter_of_these_tests_is_judged_as_it_was_configured() -> None:
    """With the facts of a real build."""
    configured = str(sysconfig.get_config_var("CONFIG_ARGS"))
    compiled = str(sysconfig.get_config_var("PY_CFLAGS_NODIST"))
    optimised = "--enable-optimizations" in configured or "-fprofile-" in compiled
    assert _check_base(f"python@{DIGEST}").returncode == (0 if optimised else 1)


@pytest.mark.parametrize(
    "base", ["", "python:3.13-slim", "python@sha256:5555", f"@{DIGEST}", f"python@{DIGEST}:latest"]
)
def test_a_base_without_a_digest_ends_the_build(base: str, tmp_path: Path) -> None:
    """A tag can be moved to another image."""
    done = _check_base(base, **_built_with(tmp_path, **OPTIMISED["configure"]))
    assert done.returncode == 1
    assert "digest" in done.stderr


def test_every_stage_is_of_the_base_that_was_checked() -> None:
    """The builder gives it; none is written down, so that none grows old."""
    assert "\nARG BASE\n" in (DEPLOY / "Dockerfile").read_text().partition("FROM")[0]
    assert texts_of(BUILD, "FROM") == ["${BASE} AS build"]
    assert texts_of(FINAL, "FROM") == ["${BASE}"]
    assert texts_of(BUILD, "RUN")[0] == 'python deploy/check_base.py "${BASE}"'


# --- what it is -----------------------------------------------------------------------------------


def test_the_image_runs_as_a_user_without_rights() -> None:
    """A number, so that Kubernetes can see that it is not root's."""
    assert texts_of(FINAL, "USER") == [f"{IMAGE_USER}:{IMAGE_USER}"]
    assert f"--uid {IMAGE_USER}" in texts_of(FINAL, "RUN")[0]


def test_the_image_asks_itself_whether_it_serves() -> None:
    """With the server's own command: there is no other program in it."""
    [check] = texts_of(FINAL, "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["keybearer-server", "healthcheck"]


def test_the_image_does_not_serve_plain_text_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment that it sets, its own command is one that is refused."""
    [command] = texts_of(FINAL, "CMD")
    assert texts_of(FINAL, "ENTRYPOINT") == ['["keybearer-server"]']
    for name, value in VARIABLES.items():
        if name.startswith("KEYBEARER_"):
            monkeypatch.setenv(name, value)
    flags = parsed(json.loads(command))
    with pytest.raises(ConfigError, match="plain text"):
        load_to_serve(None, flags)
    load_to_serve(None, {**flags, "insecure": True})


# --- what it holds --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """The image as a directory."""

    directory: Path
    python: Path
    """An interpreter that has nothing installed."""
    data_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the final stage sets, with directories of this test."""
        there = {
            name: value.replace(INSTALLED, str(self.directory)).replace("$PATH", os.environ["PATH"])
            for name, value in VARIABLES.items()
        }
        # Nothing was compiled here, so the first process does it for those that follow.
        compiling = {"PYTHONDONTWRITEBYTECODE": ""}
        return {**there, **compiling, "KEYBEARER_DATA_DIR": str(self.data_dir)}

    def command(self, *arguments: str) -> list[str]:
        """Return the words that run `keybearer-server` with arguments."""
        return [str(self.python), str(self.directory / "bin/keybearer-server"), *arguments]

    def run(self, *arguments: str) -> str:
        """Run `keybearer-server` to its successful end; return what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[dict[str, int]]:
        """Serve on free ports until the end of the block; gives them by their names in the log."""
        with subprocess.Popen(
            self.command("serve", "--listen", FREE, "--metrics-listen", FREE),
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                ports: dict[str, int] = {}
                for line in process.stderr:
                    event = json.loads(line)
                    if event["event"] in {"serving", "serving_http"}:
                        ports[event.get("name", "grpc")] = event["port"]
                    if {"grpc", "metrics-http"} <= set(ports):
                        break
                yield ports
                process.send_signal(signal.SIGTERM)
                process.stderr.read()
                assert process.wait(TIMEOUT_S) == 0
            finally:
                process.kill()


def _is_sent(path: str) -> bool:
    """Tell whether the builder gets a file, by what the Dockerfile ignores."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    return any(path == one or path.startswith(f"{one}/") for one in kept)


def _copy(text: str, context: Path) -> None:
    *sources, target = text.split()
    for source in sources:
        assert _is_sent(source), f"{source} is ignored"
        into = context / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = into / Path(source).name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, into)


def _carry_out(text: str, context: Path, environment: dict[str, str]) -> None:
    for there in (INSTALLED, "/wheel"):
        text = re.sub(rf"(?<=\s){there}\b", f"{context.parent}{there}", text)
    done = subprocess.run(
        ["sh", "-c", text],
        cwd=context,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if "connection broken by" in done.stderr + done.stdout:
        pytest.skip("no package index is reachable")
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, from the steps of the Dockerfile but the one that judges the base."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python makes no environment with pip")
    place = tmp_path_factory.mktemp("image")
    context = place / "src"
    context.mkdir()
    venv.create(place / "base", with_pip=True)
    venv.create(place / "final", with_pip=False)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join((str(place / "base/bin"), os.environ["PATH"]))
    # Compiling takes longer than all the rest, and shows nothing here.
    environment = {**ours, "PATH": path, "PIP_RETRIES": "1", "PIP_COMPILE": "0"}
    for one in BUILD:
        if one.name == "ENV":
            environment |= one.assignments
            # What an image must not keep, a test is faster with.
            del environment["PIP_NO_CACHE_DIR"]
        elif one.name == "COPY":
            _copy(one.text, context)
        elif one.name == "RUN" and "check_base" not in one.text:
            _carry_out(one.text, context, environment)
    return Image(Path(f"{place}{INSTALLED}"), place / "final/bin/python", place / "data")


def test_the_image_holds_what_serves_and_no_build_tool(image: Image) -> None:
    """The distributions of the list for this platform, the package, and no command but ours."""
    held = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in (path.name.split("-")[0] for path in image.directory.glob("*.dist-info"))
    }
    listed = {one.partition("==")[0] for one in _pins("server")}
    name = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    assert held - listed == {name}
    assert listed - held <= {"colorama", "httpx2-jsfetch", "pysqlite3", "tzdata"}, (
        "but those of other platforms"
    )
    assert sorted(path.name for path in (image.directory / "bin").iterdir()) == [
        "keybearer",
        "keybearer-server",
    ]
    assert [one for one in BUILD_TOOLS if (image.directory / one).exists()] == []


def test_the_image_serves(image: Image) -> None:
    """From a first start to a token that is answered, as user and probes see it."""
    first = ("--account", "example", "--admin-email", "admin@example.com", "--ttl", "1s")
    image.run("init", *first)
    token = image.run("admin-token", "--email", "admin@example.com", "--ttl", "1h").strip()
    with image.serving() as ports:
        address = f"127.0.0.1:{ports['grpc']}"
        assert image.run("healthcheck", "--listen", address) == "SERVING\n"
        alive = httpx.get(f"http://127.0.0.1:{ports['metrics-http']}/healthz", trust_env=False)
        assert alive.status_code == httpx.codes.OK
        with KeybearerClient(address, token=token, tls=False) as client:
            assert client.who_am_i().identity.owner_email == "admin@example.com"
