"""The access rules of gRPC methods, by path."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from keybearer._wire.arguments import kind_of, strings, text
from keybearer.access import AccessRule, RuleError, method_path, rule_of

log = logging.getLogger(__name__)

_PATH: Final = re.compile(r"/[^/\s]+/[^/\s]+")

HEALTH_AND_REFLECTION: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The methods that probes and tools call without a credential."""


class Rules:
    """Finds the rule of a gRPC method.

    Args:
        services: Descriptors of services whose methods must all have a rule.
        rules: Rules by method path, `/package.Service/Method`, for methods whose proto has none.
            They override the options in the proto.
        public_methods: Paths that need no credential. A path must match exactly.

    Raises:
        RuleError: A method of `services` has no rule, a rule cannot be judged here, or a path names
            no method.
        TypeError: An argument has another type.
    """

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        rules: Mapping[str, AccessRule] | None,
        public_methods: Collection[str],
    ) -> None:
        self._rules = dict(_checked_rules({} if rules is None else rules))
        for method in _methods_of(services):
            path = method_path(method)
            rule = self._rules.get(path) or rule_of(method)
            if rule is None:
                raise RuleError(f"{method.full_name} has no option (keybearer.v1.access)")
            self._rules[path] = rule
        for path, rule in self._rules.items():
            assert_judgeable(path, rule)
        for path in strings("public_methods", public_methods):
            if path not in HEALTH_AND_REFLECTION:
                _assert_names_method("public_methods", path)
            self._rules.setdefault(path, AccessRule(public=True))

    def of(self, path: str) -> AccessRule | None:
        """Return the rule of a method, or None when it has none, which is a denial."""
        rule = self._rules.get(path)
        if rule is not None:
            return rule
        try:
            rule = _declared_rule(path)
            if rule is not None:
                assert_judgeable(path, rule)
        except RuleError:
            log.exception("%s is denied to everybody", path)
            return None
        if rule is None:
            log.error("%s is denied to everybody: it has no option (keybearer.v1.access)", path)
        return rule


def _checked_rules(rules: object) -> Mapping[str, AccessRule]:
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a mapping from paths to AccessRule, not {kind_of(rules)}")
    for path, rule in rules.items():
        if not isinstance(rule, AccessRule):
            raise TypeError(f"rules[{path!r}] must be an AccessRule, not {kind_of(rule)}")
        _assert_names_method("rules", text("a path of rules", path))
    return rules


def _methods_of(services: object) -> Iterator[MethodDescriptor]:
    if isinstance(services, ServiceDescriptor) or not isinstance(services, Iterable):
        raise TypeError(f"services must be a list of descriptors, not {kind_of(services)}")
    for service in services:
        if not isinstance(service, ServiceDescriptor):
            raise TypeError(
                "services must be descriptors, such as "
                f"x_pb2.DESCRIPTOR.services_by_name['X'], not {kind_of(service)}"
            )
        yield from service.methods


def _assert_names_method(argument: str, path: str) -> None:
    """Reject a path that no call can have.

    Raises:
        RuleError: It is not `/package.Service/Method`, or the service has no such method.
    """
    if _PATH.fullmatch(path) is None:
        raise RuleError(f"{argument}: {path!r} is not /package.Service/Method")
    service_name, _, method_name = path[1:].partition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
    except KeyError:
        return
    if method_name not in service.methods_by_name:
        raise RuleError(
            f"{argument}: {service_name} has no method {method_name!r}; it has "
            f"{', '.join(sorted(service.methods_by_name))}"
        )


def assert_judgeable(name: str, rule: AccessRule) -> None:
    """Reject a rule that only keybearer itself can judge.

    Raises:
        RuleError: The rule is `operator_only`.
    """
    if rule.operator_only:
        raise RuleError(f"{name}: operator_only is for keybearer's own methods")


def _declared_rule(path: str) -> AccessRule | None:
    """Return the rule of a method whose proto is loaded in this process."""
    service_name, _, method_name = path.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        method = service.methods_by_name[method_name]
    except KeyError:
        return None
    return rule_of(method)
