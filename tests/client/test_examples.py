"""The examples run as users run them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from client.support import failure_of, until
from keybearer import Role
from keybearer.testing import OWNER_ID, FakeKeybearer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
METHOD = "/clusters.v1.Clusters/"


@contextmanager
def _running(keybearer: FakeKeybearer, *command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "KEYBEARER_ADDRESS": keybearer.address,
        "KEYBEARER_TOKEN": keybearer.validator_token,
    }
    with subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _metadata(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 10}


def _code(call: Any, request: bytes, arguments: dict[str, Any]) -> grpc.StatusCode:
    try:
        call(request, **arguments)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_the_grpc_service_lets_in_whom_its_proto_says(fake_keybearer: FakeKeybearer) -> None:
    """The example lets readers read, administrators delete, and everybody see the version."""
    reader = _metadata(fake_keybearer.issue(scopes=["clusters.read"]))
    admin = _metadata(fake_keybearer.issue(Role.ADMIN))
    orders, stock = b"\n\x06orders", b"\n\x05stock"
    with _running(fake_keybearer, str(EXAMPLES / "grpc_service.py"), "127.0.0.1:0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with grpc.insecure_channel(address) as channel:
            get: Any = channel.unary_unary(f"{METHOD}GetCluster")
            list_clusters: Any = channel.unary_stream(f"{METHOD}ListClusters")
            delete: Any = channel.unary_unary(f"{METHOD}DeleteCluster")
            version: Any = channel.unary_unary(f"{METHOD}GetVersion")

            assert get(orders, **reader).endswith(OWNER_ID.encode())
            assert list(list_clusters(b"", **reader)) == [orders, stock]
            assert version(b"", timeout=10) == b"\n\x031.0"
            stranger = failure_of(lambda: get(orders, timeout=10))
            assert stranger.code() is grpc.StatusCode.UNAUTHENTICATED
            reading = failure_of(lambda: delete(orders, **reader))
            assert reading.code() is grpc.StatusCode.PERMISSION_DENIED
            delete(orders, **admin)
            assert list(list_clusters(b"", **admin)) == [stock]
            with fake_keybearer.outage():
                # What is known may be answered for two seconds more, section 4 of the contract.
                until(lambda: _code(get, stock, admin) is not grpc.StatusCode.OK)
                assert _code(get, stock, admin) is grpc.StatusCode.UNAVAILABLE


def test_the_fastapi_application_lets_in_whom_its_routes_say(
    fake_keybearer: FakeKeybearer,
) -> None:
    """The example lets readers read, administrators delete, and everybody see the version."""
    reader = {"authorization": f"Bearer {fake_keybearer.issue(scopes=['clusters.read'])}"}
    admin = {"authorization": f"Bearer {fake_keybearer.issue(Role.ADMIN)}"}
    command = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", "fastapi_app:app")
    with _running(fake_keybearer, *command) as process:
        assert process.stderr is not None
        line = ""
        while "running on" not in line:
            line = process.stderr.readline()
            assert line, "uvicorn did not start"
        url = line.split("running on ")[1].split()[0]
        with httpx.Client(base_url=url, trust_env=False) as client:
            assert client.get("/clusters", headers=reader).json() == {
                "clusters": ["orders", "stock"],
                "asked_by": OWNER_ID,
            }
            assert client.get("/clusters").status_code == 401
            assert client.delete("/clusters/orders", headers=reader).status_code == 403
            assert client.delete("/clusters/orders", headers=admin).status_code == 204
            assert client.get("/clusters", headers=admin).json()["clusters"] == ["stock"]
            assert client.get("/version").json() == "1.0"
            assert (
                "keybearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]
            )
            with fake_keybearer.outage():
                until(lambda: client.get("/clusters", headers=reader).status_code != 200)
                assert client.get("/clusters", headers=reader).status_code == 503


def test_the_generated_code_of_the_example_is_that_of_its_proto(tmp_path: Path) -> None:
    """The committed code is what examples/generate.sh generates."""
    python = ROOT / ".venv-generate/bin/python"
    if not (ROOT / ".venv-generate/.installed").exists():
        pytest.skip("there is no environment with the generator; `make check-generated` makes it")
    includes = ["-I", str(EXAMPLES / "protos"), "-I", str(ROOT / "protos")]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    proto = str(EXAMPLES / "protos/clusters/v1/clusters.proto")
    command = [str(python), "-m", "grpc_tools.protoc", *includes, *outputs, proto]
    subprocess.run(command, check=True)
    for name in ("clusters_pb2.py", "clusters_pb2_grpc.py"):
        committed = (EXAMPLES / "clusters/v1" / name).read_text()
        assert committed == (tmp_path / "clusters/v1" / name).read_text()
