"""Every method has an access rule, and nothing is served without one."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

import keybearer.v1
from fakes import FakeClock, SeededEntropy
from harness import initialise, make_app
from keybearer.access import RuleError, rule_of, rules_of
from keybearer_service import endpoints
from keybearer_service.app import App
from keybearer_service.installation.data_directory import DataDir


def published_services() -> Iterator[ServiceDescriptor]:
    """Every service of the package, whether the server knows it or not."""
    for module in pkgutil.iter_modules(keybearer.v1.__path__):
        if module.name.endswith("_pb2"):
            loaded = importlib.import_module(f"keybearer.v1.{module.name}")
            yield from loaded.DESCRIPTOR.services_by_name.values()


def published_methods() -> list[MethodDescriptor]:
    """Every method of the package."""
    return [method for service in published_services() for method in service.methods]


@pytest.mark.parametrize("method", published_methods(), ids=lambda method: str(method.full_name))
def test_every_method_has_an_access_rule(method: MethodDescriptor) -> None:
    """A method without the option would be denied for ever, which nobody means."""
    assert rule_of(method) is not None


def test_the_server_serves_every_service_of_the_package() -> None:
    """A service that is published is served, so that none escapes the start's check of rules."""
    assert {one.full_name for one in endpoints.SERVICES} == {
        one.full_name for one in published_services()
    }


def test_only_revoking_ones_own_token_is_public() -> None:
    """The one method that asks for no credential is the one whose proof is in the request."""
    rules = rules_of(published_services())
    assert [path for path, rule in rules.items() if rule.public] == [
        "/keybearer.v1.TokenService/RevokeToken"
    ]


def _service_without_a_rule() -> ServiceDescriptor:
    file = descriptor_pb2.FileDescriptorProto(name="forgotten.proto", package="forgotten")
    file.message_type.add(name="Nothing")
    service = file.service.add(name="ForgottenService")
    service.method.add(name="Forget", input_type=".forgotten.Nothing", output_type="Nothing")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("forgotten.ForgottenService")


def _installation(path: Path) -> DataDir:
    data_dir, _ = initialise(path, FakeClock(), SeededEntropy(1))
    return data_dir


def _built(data_dir: DataDir) -> App:
    return make_app(data_dir, FakeClock(), SeededEntropy(2))


def test_a_service_with_a_method_without_a_rule_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start fails and names the method."""
    data_dir = _installation(tmp_path / "data")
    monkeypatch.setattr(endpoints, "SERVICES", (*endpoints.SERVICES, _service_without_a_rule()))
    with pytest.raises(RuleError, match=r"forgotten\.ForgottenService\.Forget"):
        _built(data_dir)


def test_a_start_that_failed_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refused start the same directory can be served."""
    data_dir = _installation(tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(endpoints, "SERVICES", (*endpoints.SERVICES, _service_without_a_rule()))
        with pytest.raises(RuleError):
            _built(data_dir)
    service = _built(data_dir)
    service.start()
    service.stop(grace_s=0)
