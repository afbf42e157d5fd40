"""The methods that a port serves: read from descriptors and joined with their servicers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
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
    return {
        path: _spec(method, rules[path])
        for service in listed
        for method in service.methods
        for path in (method_path(method),)
    }


def public_specs_of(service: Any) -> tuple[MethodSpec, ...]:
    """Return the methods of a service that asks for no credential."""
    rule = AccessRule(public=True)
    return tuple(_spec(method, rule) for method in service.methods)


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


def _spec(method: MethodDescriptor, rule: AccessRule) -> MethodSpec:
    return MethodSpec(
        path=method_path(method),
        rule=rule,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        is_stream=method.server_streaming,
    )
