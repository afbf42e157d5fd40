"""An outage of the service under many clients with warm caches."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from reliability.processes import ServerProcess, init, serving
from watch.measurements import note
from watch.test_cost import Program

pytestmark = pytest.mark.alone

BOUND_S = 2.0
RECOVERY_S = 5.0
PEAK = 3.0
KEYS = 20
_LOOK_EVERY_S = 0.25


class ClientProcesses:
    """Several processes of clients, read together."""

    def __init__(self, address: str, own: str, tokens: list[str], clients: int, at: int) -> None:
        self.clients = clients
        self._programs = [
            Program("watch.many_clients", address, str(clients // at), str(0.5)) for _ in range(at)
        ]
        for program in self._programs:
            program.ask(own, answered=False)
        warm = [program.ask(" ".join(tokens)) for program in self._programs]
        assert warm == ["warm"] * at

    def look(self) -> dict[str, Any]:
        reports = [json.loads(program.ask("look")) for program in self._programs]
        together: dict[str, Any] = {
            name: sum(report[name] for report in reports)
            for name in ("questions", "checks", "unavailable", "leases")
        }
        together["last_allowed"] = max(report["last_allowed"] for report in reports)
        together["at"] = time.monotonic()
        return together

    def close(self) -> None:
        for program in self._programs:
            program.close()


def _outage(tmp_path: Path, clients: int, processes: int, down: float, steady_for: float) -> None:
    token = init(tmp_path / "data")["token"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path / "data"))
        address, admin = server.address, server.stubs(token)
        tokens = [admin.create_key().token for _ in range(KEYS)]
        processes_of_clients = ClientProcesses(address, token, tokens, clients, processes)
        stack.callback(processes_of_clients.close)
        before = processes_of_clients.look()
        time.sleep(steady_for)
        after = processes_of_clients.look()
        # What they ask in the long run: every answer lasts for a minute.
        steady = max(clients * KEYS / 60, (after["questions"] - before["questions"]) / steady_for)
        server.kill()
        gone = time.monotonic()
        time.sleep(down)
        during = processes_of_clients.look()
        back = stack.enter_context(_again(tmp_path / "data", address))
        returned = time.monotonic()
        looks = [during]
        while looks[-1]["leases"] < clients:
            assert time.monotonic() - returned < 60, "not all of them came back"
            time.sleep(_LOOK_EVERY_S)
            looks.append(processes_of_clients.look())
        recovered = time.monotonic() - returned
        for _ in range(int(3 / _LOOK_EVERY_S)):
            time.sleep(_LOOK_EVERY_S)
            looks.append(processes_of_clients.look())
        assert not back.has_ended
    rates = [
        (later["questions"] - earlier["questions"]) / (later["at"] - earlier["at"])
        for earlier, later in zip(looks[1:], looks[5:], strict=False)
    ]
    allowed_for = during["last_allowed"] - gone
    note(
        f"outage of {down} s, {clients} clients with {KEYS} keys each: last allow after "
        f"{allowed_for:.2f} s, every lease back after {recovered:.2f} s, peak of questions "
        f"{max(rates, default=0) / steady:.2f} x steady ({steady:.0f}/s)"
    )
    assert allowed_for <= BOUND_S
    assert recovered <= RECOVERY_S
    assert max(rates, default=0) <= PEAK * steady


def _again(data_dir: Path, address: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """Start the service again at the same address."""
    return serving(data_dir, flags=("--listen", address))


def test_an_outage_ends_allows_in_time_and_its_end_brings_them_back(tmp_path: Path) -> None:
    """Few clients: allows end in time, and leases return after three seconds of outage."""
    _outage(tmp_path, clients=20, processes=1, down=3.0, steady_for=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("down", [1.5, 3.0, 20.0])
def test_an_outage_under_500_clients(tmp_path: Path, down: float) -> None:
    """500 clients in five processes recover from an outage."""
    _outage(tmp_path, clients=500, processes=5, down=down, steady_for=20.0)
