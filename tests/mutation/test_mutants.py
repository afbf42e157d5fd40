"""The tool that changes modules: it makes the changes that it names, and no others."""

import ast
import random
from itertools import islice

from mutation.mutants import mutants_of
from mutation.run import TESTS, drawn

SOURCE = """
def may(role: int | None, held: list[int]) -> bool:
    if role is None or role < 2:
        raise ValueError(role)
    held.append(role)
    log.info("asked", role=3)
    return role in held
"""


def test_every_kind_of_change_is_made() -> None:
    """Comparisons, conditions, numbers, calls, errors and answers; no annotations, no log."""
    assert [str(one) for one in mutants_of(SOURCE)] == [
        "line 3: 2: 3 in `if role is None or role < 2:`",
        "line 3: if role is None or role < 2: negated",
        "line 3: role < 2: GtE",
        "line 3: role < 2: LtE",
        "line 3: role is None or role < 2: and",
        "line 3: role is None or role < 2: without `role < 2`",
        "line 3: role is None or role < 2: without `role is None`",
        "line 3: role is None: IsNot",
        "line 4: raise ValueError(role): removed",
        "line 5: held.append(role): removed",
        "line 7: return role in held: None",
        "line 7: role in held: NotIn",
    ]


def test_a_mutant_differs_in_one_place_from_the_source() -> None:
    """Every tree is a program of its own, and none is the program itself."""
    lines = ast.unparse(ast.parse(SOURCE)).splitlines()
    for one in mutants_of(SOURCE):
        changed = ast.unparse(one.tree()).splitlines()
        assert sum(a != b for a, b in zip(lines, changed, strict=True)) == 1, str(one)


def test_modules_take_turns() -> None:
    """So that a short run looks at all of them."""
    modules = list(TESTS)
    first = [one.module for one in islice(drawn(modules, random.Random(1)), len(modules))]
    assert first == modules
