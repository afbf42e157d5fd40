"""Power loss at every system call of a recorded run: the files as they may be, opened and judged.

A write that was not synced may have reached the disk or not, in pieces of 512 bytes, in any order;
so may the making and the removing of a file whose directory was not synced. What a sync answered
for is there. (The order between files is the recorded one.)
"""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keybearer._wire.enums import AuditAction
from keybearer_service.container import open_container
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.offline.audit import check
from keybearer_service.storage import StoreError, dbapi
from reliability.history import StoreImage
from reliability.processes import environment, init
from reliability.tracing import RECORDED, SystemCall, read_trace, require_strace

DATABASE, LOG, DIRECTORY, ACKS = "keybearer.db", "keybearer.db-wal", "data", "acks"
SECTOR = 512
CHANGES = 40
KINDS = ("nothing", "everything", "some sectors")
"""Of what was not synced, what survives."""


@dataclass
class Recording:
    """A run that was traced."""

    before: dict[str, bytes]
    """The files when it began."""
    peppers: Path
    first: StoreImage
    calls: list[SystemCall]
    facts: list[dict[str, Any]]
    """What must be true after so many acknowledgements."""


def record(path: Path, seed: int, bugs: str) -> Recording:
    """Serve, make changes, and record every system call that touches a file."""
    require_strace()
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    data = path / DIRECTORY
    ids = init(data)
    before = {file.name: file.read_bytes() for file in data.glob("keybearer.db*")}
    first = StoreImage(data / DATABASE)
    arguments = [str(data), ids["token"], ids["user_id"], str(seed), str(CHANGES), bugs]
    trace = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "70000"]
    trace += ["-e", f"trace={RECORDED}", "-o", str(path / "trace")]
    subprocess.run(
        [*trace, sys.executable, "-m", "reliability.traced_run", *arguments],
        env=environment(),
        check=True,
        timeout=120,
    )
    acks = [json.loads(line) for line in (path / ACKS).read_text().splitlines()]
    start = {"keys": [], "users": [], "revisions": 0}
    return Recording(before, data / "peppers", first, read_trace(path / "trace"), [start, *acks])


class Files:
    """The files of a directory: what is in them, and whether the directory names them."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = {name: bytearray(content) for name, content in contents.items()}
        self._entries = set(contents)

    def copy(self) -> "Files":
        files = Files({name: bytes(content) for name, content in self._contents.items()})
        files._entries = set(self._entries)
        return files

    def named(self) -> dict[str, bytearray]:
        return {name: self._contents[name] for name in self._entries}

    def apply(self, call: SystemCall) -> None:
        """Do what the call did."""
        if call.kind == "unlink":
            self._entries.discard(call.name)
            self._contents.pop(call.name, None)
            return
        content = self._contents.setdefault(call.name, bytearray())
        if call.kind == "create":
            self._entries.add(call.name)
        elif call.kind == "truncate":
            del content[call.offset :]
        else:
            content.extend(bytes(max(0, call.offset - len(content))))
            content[call.offset : call.offset + len(call.data)] = call.data


@dataclass
class Disk:
    """What has certainly reached the disk, and what may have."""

    synced: Files
    pending: list[SystemCall] = field(default_factory=list)
    acknowledged: int = 0

    def take(self, call: SystemCall) -> None:
        if call.name == ACKS and call.kind == "write":
            self.acknowledged += 1
        elif call.kind == "sync":
            kept = []
            for earlier in self.pending:
                if call.name == (DIRECTORY if _is_entry(earlier) else earlier.name):
                    self.synced.apply(earlier)
                else:
                    kept.append(earlier)
            self.pending = kept
        elif call.name in (DATABASE, LOG):
            self.pending.append(call)

    def survivors(self, kind: str, chance: random.Random) -> dict[str, bytearray]:
        """Return the files after the power was lost now."""
        files = self.synced.copy()
        for call in self.pending if kind != "nothing" else ():
            if kind == "everything":
                files.apply(call)
                continue
            for piece in _pieces(call):
                if chance.random() < 0.5:
                    files.apply(piece)
        return files.named()


def _is_entry(call: SystemCall) -> bool:
    return call.kind in ("create", "unlink")


def _pieces(call: SystemCall) -> Iterator[SystemCall]:
    if call.kind != "write":
        yield call
        return
    for start in range(0, len(call.data), SECTOR):
        data = call.data[start : start + SECTOR]
        yield SystemCall("write", call.name, call.offset + start, data)


class Replay:
    """Opens the store at crash points, and counts what it finds."""

    def __init__(self, recording: Recording, path: Path) -> None:
        self._recording = recording
        self._path = path / "image"
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []

    def run(self, seed: int, sample: int | None = None) -> None:
        """Lose the power after every call, or after so many drawn ones, in each of the kinds."""
        chance = random.Random(seed)
        calls = self._recording.calls
        points = range(1, len(calls) + 1)
        chosen = set(points if sample is None else chance.sample(points, min(sample, len(points))))
        disk = Disk(Files(self._recording.before))
        for number, call in enumerate(calls, 1):
            disk.take(call)
            if number in chosen:
                for kind in KINDS:
                    self._judge(disk, kind, chance, f"after call {number} with {kind}")
        self.counts["acknowledged at the end"] = disk.acknowledged
        sys.stdout.write(f"{len(calls)} system calls; {dict(self.counts)}\n")

    def _judge(self, disk: Disk, kind: str, chance: random.Random, where: str) -> None:
        self.counts["crash states"] += 1
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir()
        (self._path / "peppers").symlink_to(self._recording.peppers)
        for name, content in disk.survivors(kind, chance).items():
            (self._path / name).write_bytes(content)
        try:
            container = open_container(DataDir(self._path), SystemClock(), SystemEntropy())
            try:
                damage = check(container.store, container.keyring.audit_key).findings
            finally:
                container.close()
            image = StoreImage(self._path / DATABASE)
        except (StoreError, KeyringError, dbapi.DatabaseError) as error:
            damage = [str(error)]
        if damage:
            self.counts["corrupt"] += 1
            self.findings.append(f"{where}: {damage[0]}")
            return
        self._compare(image, disk.acknowledged, where)

    def _compare(self, image: StoreImage, acknowledged: int, where: str) -> None:
        first = self._recording.first
        changes = sum(map(len, image.actions.values())) - sum(map(len, first.actions.values()))
        if changes < acknowledged:
            self.counts["lost acknowledged changes"] += 1
            self.findings.append(f"{where}: {changes} changes of {acknowledged} acknowledged ones")
            return
        facts = self._recording.facts[changes]
        keys = [list(row) for name, row in image.keys.items() if name not in first.keys]
        users = [list(row) for email, row in image.users.items() if email not in first.users]
        silent = [
            key_id
            for _, key_id, *_ in keys
            if AuditAction.API_KEY_CREATED not in image.actions[key_id]
            or not image.changes[1, key_id]
        ]
        revisions = image.revision - first.revision
        whole = (
            sorted(keys) == sorted(facts["keys"])
            and sorted(users) == sorted(facts["users"])
            and revisions == facts["revisions"] == image.counted - first.counted
            and not silent
        )
        # One more than was acknowledged may have happened: the one in flight.
        if not whole or changes > acknowledged + 1:
            self.counts["half changes"] += 1
            self.findings.append(
                f"{where}: {changes} changes, {revisions} revisions, {keys}, {users}"
            )


def test_drawn_crash_points_lose_nothing(tmp_path: Path, seed: int) -> None:
    """After a loss of power at drawn system calls the store is whole, with all it acknowledged."""
    replay = Replay(record(tmp_path, seed, "small-wal"), tmp_path)
    replay.run(seed, 40)
    assert replay.findings == []
    assert replay.counts["acknowledged at the end"] == CHANGES


@pytest.mark.slow
def test_every_crash_point_loses_nothing(tmp_path: Path, seed: int) -> None:
    """After a loss of power at any system call the store is whole, with all it acknowledged."""
    replay = Replay(record(tmp_path, seed, "small-wal"), tmp_path)
    replay.run(seed)
    assert replay.findings == []


def test_a_store_that_does_not_wait_for_the_disk_is_found_out(tmp_path: Path, seed: int) -> None:
    """With synchronous=NORMAL the replay finds acknowledged changes lost."""
    replay = Replay(record(tmp_path, seed, "small-wal,synchronous-normal"), tmp_path)
    replay.run(seed, 40)
    assert replay.counts["lost acknowledged changes"] > 0


@pytest.mark.slow
def test_every_crash_point_of_a_store_that_does_not_wait(tmp_path: Path, seed: int) -> None:
    """With synchronous=NORMAL many crash points lose acknowledged changes; printed for scale."""
    replay = Replay(record(tmp_path, seed, "small-wal,synchronous-normal"), tmp_path)
    replay.run(seed)
    assert replay.counts["lost acknowledged changes"] > 0
