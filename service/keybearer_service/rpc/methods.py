"""The methods that a port serves: read from descriptors and joined with their servicers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from keybearer.access import AccessRule, method_path, rules_of
from keybearer_service.rpc.pipeline import MethodSpec


def specs_of(services: Iterable[ServiceDescriptor]) -> Mapping[str, MethodSpec]:
    """Return every method of the services, by path.

    Raises:
        RuleError: A method has no access rule.
    """
    listed = list(services)
    rules = rules_of(listed)
    return {spec.path: spec for service in listed for spec in _specs(service, rules)}


def behaviour_of(servicers: Mapping[str, object], spec: MethodSpec) -> Callable[..., Any]:
    """Return the function that serves a method.

    Args:
        servicers: By the full name of their service.
        spec: The method.

    Raises:
        LookupError: No servicer serves it.
    """
    service, _, name = spec.path.removeprefix("/").partition("/")
    found = getattr(servicers.get(service), name, None)
    if found is None:
        raise LookupError(f"{spec.path} is declared and not served")
    serve: Callable[..., Any] = found
    return serve


def _specs(service: ServiceDescriptor, rules: Mapping[str, AccessRule]) -> Iterator[MethodSpec]:
    for method in service.methods:
        path = method_path(method)
        yield MethodSpec(
            path=path,
            rule=rules[path],
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            is_stream=method.server_streaming,
        )
