"""The access rules of gRPC methods, by path."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from keybearer.access import AccessRule, RuleError, method_path, rule_of

log = logging.getLogger(__name__)

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
        RuleError: A method of `services` has no rule, or a rule cannot be judged here.
    """

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        rules: Mapping[str, AccessRule] | None,
        public_methods: Collection[str],
    ) -> None:
        self._rules = dict(rules or {})
        for method in (method for service in services for method in service.methods):
            path = method_path(method)
            rule = self._rules.get(path) or rule_of(method)
            if rule is None:
                raise RuleError(f"{method.full_name} has no option (keybearer.v1.access)")
            self._rules[path] = rule
        for path, rule in self._rules.items():
            assert_judgeable(path, rule)
        for path in public_methods:
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
