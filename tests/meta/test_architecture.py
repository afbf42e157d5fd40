"""The map and the walks of docs/architecture.md are true of the code."""

import ast
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

from fakes import FakeClock, SeededEntropy
from harness import Stubs, running
from keybearer_service.storage import CLAIMED_FOR

ROOT = Path(__file__).parents[2]
SERVICE, CLIENT = ROOT / "service/keybearer_service", ROOT / "client/keybearer"
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
WALKS: dict[str, Callable[[Stubs, str], object]] = {
    "A ValidateToken, step by step": lambda stubs, token: stubs.validate(token),
    "A CreateApiKey, step by step": lambda stubs, _: stubs.create_key(),
}


class Step(NamedTuple):
    """One function of a walk; nested ones are joined with dots."""

    file: str
    function: str


def section(title: str) -> str:
    """Return the text of a section, up to the next heading."""
    return re.split(r"^#+ ", PAGE.partition(f" {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def path_of(written: str) -> Path:
    """Return the file that the page means; files of the service are written short."""
    return ROOT / written if written.startswith("client/") else SERVICE / written


def steps_of(title: str) -> list[Step]:
    """Return the steps of a walk, in their order."""
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \| `([\w/.]+)` \|", section(title), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    return [Step(str(path_of(file)), function) for _, function, file in rows]


def constant_of(file: str, name: str) -> object:
    """Return the literal that a test assigns to a name."""
    for node in ast.parse((ROOT / "tests/meta" / file).read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value:
            return ast.literal_eval(re.sub(r"\bset\(\)", "()", ast.unparse(node.value)))
    raise LookupError(name)


def functions_in(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the names of the functions of a module, those of classes and functions included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name
            yield from functions_in(child, f"{name}.")


def first_missing(steps: list[Step], trace: list[Step]) -> Step | None:
    """Return the first step that a trace does not pass in its turn; None when it passes all."""
    passed = iter(trace)
    return next((step for step in steps if step not in passed), None)


@contextmanager
def traced() -> Iterator[list[Step]]:
    """Record each function of ours that a thread enters; threads that began before are not seen."""
    trace: list[Step] = []

    def enter(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith((str(SERVICE), str(CLIENT))):
            trace.append(Step(code.co_filename, code.co_qualname.replace("<locals>.", "")))

    before = threading.getprofile()
    threading.setprofile(enter)
    try:
        yield trace
    finally:
        threading.setprofile(before)


def test_the_map_has_exactly_the_rooms_of_the_table() -> None:
    """Each room on its floor, and none that is not there."""
    shown = re.findall(r"^\| (\d+) \| `(\w+)` \|", section("The service, top down"), re.MULTILINE)
    floors = constant_of("test_layers.py", "FLOORS")
    assert isinstance(floors, tuple)
    expected = [(n, room) for n, rooms in enumerate(floors, 1) for room in rooms]
    assert [(int(floor), room) for floor, room in shown] == expected


def test_the_map_has_exactly_the_parts_of_the_client() -> None:
    """As the table of imports names them."""
    shown = re.findall(r"^\| `(\w+)` \|", section("The client, bottom up"), re.MULTILINE)
    parts = constant_of("test_client_layers.py", "MAY_IMPORT")
    assert isinstance(parts, dict)
    assert sorted(shown) == sorted(parts)


@pytest.mark.parametrize("title", WALKS)
def test_each_function_of_a_walk_is_in_its_file(title: str) -> None:
    """A function that was renamed or moved is renamed or moved on the page too."""
    missing = [
        f"{step.function} in {step.file}"
        for step in steps_of(title)
        if step.function not in functions_in(ast.parse(Path(step.file).read_text("utf-8")))
    ]
    assert missing == []


@pytest.mark.parametrize("title", WALKS)
def test_a_real_call_takes_the_walk(title: str, tmp_path: Path, seed: int) -> None:
    """A call to a running service passes each function of the walk, in the order of the page."""
    steps = steps_of(title)
    clock, entropy = FakeClock(), SeededEntropy(seed)
    with traced() as trace, running(tmp_path / "data", clock, entropy, hot_loop=True) as service:
        stubs: Stubs = service.admin
        token = stubs.create_key().token
        clock.advance(CLAIMED_FOR)
        trace.clear()
        WALKS[title](stubs, token)
    assert first_missing(steps, trace) is None


def test_a_step_out_of_its_turn_is_noticed() -> None:
    """A walk that is true in all but the order of two steps is not taken."""
    first, second, third = (Step("file", name) for name in ("first", "second", "third"))
    assert first_missing([first, third], [first, second, third]) is None
    assert first_missing([second, first], [first, second, third]) == first
