"""On what a measurement ran: interpreter, machine, libraries, pinning. Printed beside figures."""

import os
import platform
import sysconfig
import timeit
from functools import cache
from importlib import metadata
from pathlib import Path

from keybearer_service.storage import dbapi

_CALLS = 200_000
_CORES = sorted(os.sched_getaffinity(0))
SERVERS = set(_CORES[:1])
"""The core of the servers."""
GENERATOR = set(_CORES[1:]) or SERVERS
"""The cores of the generator; the same where there is only one."""


@cache
def interpreter() -> str:
    """Return the version and the build of the interpreter.

    Distributions may build with a profile without naming it in the arguments of `configure`, so the
    time of a function call is measured too.
    """
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = "with" if "--enable-optimizations" in arguments else "without"
    call = min(timeit.repeat("f(1)", "f = lambda one: one", number=_CALLS, repeat=7)) / _CALLS
    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.python_compiler()}, configured {optimised} --enable-optimizations; a function "
        f"call takes {call * 1e9:.0f} ns"
    )


def machine() -> str:
    """Return processor, memory and load."""
    model = _fact("/proc/cpuinfo", "model name")
    memory = int(_fact("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"load {load} before the run"
    )


def libraries() -> str:
    """Return the versions of what a validation runs through."""
    versions = (f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf"))
    return f"{', '.join(versions)}, SQLite {'.'.join(map(str, dbapi.VERSION))}"


def pinning() -> str:
    """Return who runs where."""
    return f"servers on core {_listed(SERVERS)}, the generator on {_listed(GENERATOR)}"


def _listed(cores: set[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _fact(path: str, name: str) -> str:
    for line in Path(path).read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
