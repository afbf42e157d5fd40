"""How secrets are compared: in constant time, and with the same work for what is not there."""

import ast
import inspect

from keybearer_service.validation import validator


def _matching() -> ast.AST:
    return ast.parse(inspect.getsource(validator))


def test_digests_are_never_compared_by_their_bytes_one_by_one() -> None:
    """`==` ends at the first difference, which a clock can measure."""
    compared = {
        ast.unparse(side)
        for node in ast.walk(_matching())
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
        for side in (node.left, *node.comparators)
    }
    assert not [side for side in compared if "digest" in side or side == "presented"]


def test_an_unknown_id_costs_a_digest_and_a_comparison() -> None:
    """Else the time an answer takes would tell which ids exist."""
    [matching] = [
        node
        for node in ast.walk(_matching())
        if isinstance(node, ast.FunctionDef) and node.name == "_match"
    ]
    [unknown] = [
        node
        for node in ast.walk(matching)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "record is None"
    ]
    calls = [
        ast.unparse(node.func)
        for statement in unknown.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    ]
    assert calls == ["token_format.digest_by", "hmac.compare_digest"]
