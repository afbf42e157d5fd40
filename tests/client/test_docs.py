"""docs/client.md: its quick start runs, and what it names exists."""

import re
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

import keybearer
from client.support import failure_of
from keybearer import errors
from keybearer.testing import OWNER_ID, FakeKeybearer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/client.md").read_text("utf-8")


def test_the_quick_start_makes_a_guarded_service(
    fake_keybearer: FakeKeybearer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick start of the page guards a service."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", ["grpc_service.py", "127.0.0.1:0"])
    import grpc_service  # type: ignore[import-not-found]  # noqa: PLC0415 - on the path by now

    match = re.search(r"<!-- test: quick-start -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    code = match[1].replace('"keybearer.example.com:443"', f'"{fake_keybearer.address}", tls=False')
    assert "tls=False" in code
    code = code.replace('"127.0.0.1:8080"', '"127.0.0.1:0"')
    names: dict[str, Any] = {
        **vars(keybearer),
        "grpc": grpc,
        "futures": futures,
        "Clusters": grpc_service.Clusters,
        "add_ClustersServicer_to_server": (
            grpc_service.clusters_pb2_grpc.add_ClustersServicer_to_server
        ),
        "validator_token": fake_keybearer.validator_token,
    }
    exec(code, names)  # noqa: S102 - our own documentation
    token = fake_keybearer.issue(scopes=["clusters.read"])
    with grpc.insecure_channel(f"127.0.0.1:{names['port']}") as channel:
        get: Any = channel.unary_unary("/clusters.v1.Clusters/GetCluster")
        answer = get(b"\n\x06orders", metadata=(("authorization", f"Bearer {token}"),))
        assert OWNER_ID.encode() in answer
        denied = failure_of(lambda: get(b""))
        assert denied.code() is grpc.StatusCode.UNAUTHENTICATED
    names["server"].stop(None).wait()
    names["auth"]._verifier.close()


def test_every_error_it_names_exists_and_every_error_is_named() -> None:
    """The table of errors names exactly the error classes."""
    named = {one for one in re.findall(r"\b\w+Error\b", TEXT) if one.lower() != one}
    classes = {name for name in vars(errors) if name.endswith("Error") and name[0].isupper()}
    classes -= {"DecodeError"}
    families = {family.__name__ for family in errors.KeybearerError.__subclasses__()}
    elsewhere = {"RuleError", "NoIdentityError", "RpcError", "TypeError", "ValueError"}
    assert named - elsewhere <= classes
    assert classes - families <= named


def test_every_argument_it_names_exists() -> None:
    """Every `keybearer.x` name in the page and its examples is importable."""
    for module, name in re.findall(r"`keybearer\.(\w+)\.(\w+)`", TEXT):
        assert hasattr(__import__(f"keybearer.{module}", fromlist=[name]), name)
    for name in re.findall(r"\b([A-Z]\w+(?:Client|Verifier|Interceptor))\b", TEXT):
        assert hasattr(keybearer, name), name
