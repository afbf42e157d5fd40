"""strace: whether it may be used here, and reading what it wrote."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

RECORDED = "pwrite64,write,fdatasync,fsync,ftruncate,openat,unlink,rename"
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_ON_FILE = re.compile(r"(pwrite64|write|fdatasync|fsync|ftruncate)\(\d+<([^>]*)>(.*)\) += (-?\d+)")
_ON_NAME = re.compile(r'(openat|unlink|rename)\((?:[^"]*, )?"([^"]*)"(.*)\) += (-?\d+)')


@functools.cache
def _refusal() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"ptrace is not permitted: {tried.stderr.strip()}"


def require_strace() -> None:
    """Skip the test where no process can be traced."""
    if _refusal():
        pytest.skip(_refusal())


@dataclass(frozen=True)
class SystemCall:
    """One call that touched a file, or a directory's entry for it."""

    kind: str
    """write, sync, truncate, create or unlink."""
    name: str
    """The file's name, without its directory."""
    offset: int = 0
    """Where a write begins, or where a truncation ends; -1 appends."""
    data: bytes = b""


def read_trace(path: Path) -> list[SystemCall]:
    """Read a trace made with -f -y -xx: writes stand where they began, syncs where they ended."""
    calls: list[SystemCall | None] = []
    begun: dict[str, tuple[int, str]] = {}
    with path.open(encoding="ascii") as lines:
        for line in lines:
            pid, _, text = line.rstrip("\n").partition(" ")
            text = text.lstrip()
            place = len(calls)
            if text.endswith(_UNFINISHED):
                begun[pid] = (place, text.removesuffix(_UNFINISHED))
                calls.append(None)
                continue
            resumed = _RESUMED.match(text)
            if resumed is not None:
                place, start = begun.pop(pid)
                text = start + text[resumed.end() :]
            for call in _parse(text):
                if call.kind == "sync" or place == len(calls):
                    calls.append(call)
                else:
                    calls[place] = call
    return [call for call in calls if call is not None]


def _parse(text: str) -> Iterator[SystemCall]:
    on_file = _ON_FILE.match(text)
    if on_file is not None:
        function, path, rest, result = on_file.groups()
        name = Path(_text(path)).name
        if function in ("fdatasync", "fsync") and result == "0":
            yield SystemCall("sync", name)
        elif function == "ftruncate" and result == "0":
            yield SystemCall("truncate", name, int(rest.strip(", ")))
        elif function in ("pwrite64", "write") and int(result) > 0:
            data = _bytes(rest.split('"')[1])[: int(result)]
            offset = int(rest.rsplit(",", 1)[1]) if function == "pwrite64" else -1
            yield SystemCall("write", name, offset, data)
        return
    on_name = _ON_NAME.match(text)
    if on_name is not None and int(on_name[4]) >= 0:
        name = Path(_text(on_name[2])).name
        if on_name[1] == "unlink":
            yield SystemCall("unlink", name)
        elif on_name[1] == "openat" and "O_CREAT" in on_name[3]:
            yield SystemCall("create", name)
        elif on_name[1] == "rename":
            raise AssertionError(f"nothing of ours renames a file while it serves: {text}")


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(name: str) -> str:
    return _bytes(name).decode() if "\\x" in name else name
