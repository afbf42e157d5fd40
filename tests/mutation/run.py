"""Mutation test of the code that decides: `make mutation`, or this program.

Each mutant of a module meets the tests of that module, in a process of its own with a time limit.
One that no test fails with survives, and is printed, unless `explained.py` says why it may. Mutants
are drawn by the seed, from each module in turn, until the time is up.
"""

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutation.explained import EXPLAINED
from mutation.mutants import VARIABLE, mutants_of

ROOT = Path(__file__).resolve().parents[2]
TESTS: dict[str, tuple[str, ...]] = {
    "keybearer.access": (
        "unit/test_access.py",
        "client/test_arguments.py",
        "client/test_interceptor.py",
    ),
    "keybearer._cache.verdict_cache": ("watch/test_verdict_cache.py", "watch/test_caching.py"),
    "keybearer._guard.check": ("client/test_interceptor.py", "client/test_surfaces.py"),
    "keybearer._guard.rules": ("client/test_interceptor.py", "client/test_arguments.py"),
    "keybearer_service.domain.verdict": ("rpc/test_tokens.py", "rpc/test_api_keys.py"),
    "keybearer_service.domain.account_scope": (
        "rpc/test_isolation.py",
        "rpc/test_access_matrix.py",
    ),
    "keybearer_service.validation.validator": (
        "unit/test_secret_comparison.py",
        "rpc/test_tokens.py",
        "rpc/test_calls.py",
        "rpc/test_watch.py",
    ),
    "keybearer_service.validation.callers": (
        "rpc/test_calls.py",
        "rpc/test_access_matrix.py",
        "rpc/test_hot_loop.py",
        "gateway/test_requirements.py",
    ),
    "keybearer_service.validation.usage": ("unit/test_usage.py", "rpc/test_tokens.py"),
    "keybearer_service.usecases.access": (
        "rpc/test_isolation.py",
        "rpc/test_access_matrix.py",
        "rpc/test_accounts.py",
        "gateway/test_requirements.py",
    ),
    "keybearer_service.usecases.idempotency": ("rpc/test_replays.py",),
    "keybearer_service.usecases.users": (
        "rpc/test_users.py",
        "rpc/test_isolation.py",
        "rpc/test_cascades.py",
        "rpc/test_audit.py",
    ),
    "keybearer_service.usecases.keys": (
        "rpc/test_api_keys.py",
        "rpc/test_accounts.py",
        "rpc/test_audit.py",
        "rpc/test_replays.py",
        "rpc/test_tokens.py",
    ),
    "keybearer_service.usecases.key_writes": ("rpc/test_api_keys.py", "rpc/test_audit.py"),
    "keybearer_service.usecases.revoking": (
        "rpc/test_api_keys.py",
        "rpc/test_revoking.py",
        "rpc/test_tokens.py",
    ),
}
"""The modules, and the tests that must notice what is wrong with them."""
OPTIONS = ("-x", "-q", "-p", "mutation.mutants", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Drawn:
    """A mutant that is to meet its tests."""

    module: str
    number: int
    line: int
    what: str


def drawn(modules: list[str], rng: random.Random) -> Iterator[Drawn]:
    """Return the mutants of modules in a drawn order, one of each module in turn."""
    waiting = []
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        found = enumerate(mutants_of(Path(spec.origin).read_text("utf-8")))
        mutants = [Drawn(module, number, one.line, one.what) for number, one in found]
        rng.shuffle(mutants)
        waiting.append(mutants)
    while any(waiting):
        for mutants in waiting:
            if mutants:
                yield mutants.pop()


def passes(module: str, mutant: str, limit_s: float) -> bool:
    """Return whether the tests of a module pass in time, with a mutant of it or with none."""
    tests = [f"tests/{one}" for one in TESTS[module]]
    environment = {**os.environ, VARIABLE: mutant, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *OPTIONS, *tests],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    """Return how many survivors nobody has explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="how long to go on")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="of the list above")
    asked = parser.parse_args()
    sys.stdout.write(f"--seed {asked.seed}\n")
    ends = time.monotonic() + asked.seconds
    limits: dict[str, float] = {}
    for module in asked.modules:
        began = time.monotonic()
        assert passes(module, "", 600), f"the tests of {module} fail without a mutant"
        limits[module] = 5 * (time.monotonic() - began) + 30
    met: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    unexplained = 0
    for one in drawn(asked.modules, random.Random(asked.seed)):
        if time.monotonic() > ends:
            break
        met[one.module] += 1
        if not passes(one.module, f"{one.module}:{one.number}", limits[one.module]):
            killed[one.module] += 1
        elif (one.module, one.what) in EXPLAINED:
            explained[one.module] += 1
        else:
            unexplained += 1
            sys.stdout.write(f"survives: {one.module}:{one.line}: {one.what}\n")
        sys.stdout.flush()
    for module in asked.modules:
        sys.stdout.write(
            f"{module}: {met[module]} mutants, {killed[module]} killed, "
            f"{explained[module]} survive and are explained\n"
        )
    sys.stdout.write(f"{met.total()} mutants, {unexplained} survive unexplained\n")
    return min(unexplained, 100)


if __name__ == "__main__":
    sys.exit(main())
