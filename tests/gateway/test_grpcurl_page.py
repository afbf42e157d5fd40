"""docs/grpcurl.md, pasted into a shell: with grpcurl where it is at hand, with buf always."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Service

PAGE = Path(__file__).parents[2] / "docs/grpcurl.md"
_BLOCK = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _tool(name: str) -> Path:
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    if found is None and shutil.which("go"):
        gopath = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True)
        installed = Path(gopath.stdout.strip()) / "bin" / name
        found = str(installed) if installed.exists() else None
    if found is None:
        pytest.skip(f"{name} is not installed here; .ci/run installs it where Go is")
    return Path(found)


def _script(tool: str) -> str:
    """Return what the page says to do with one of the tools, telling each command first."""
    blocks = [text for for_tool, text in _BLOCK.findall(PAGE.read_text()) if for_tool in ("", tool)]
    assert len(blocks) > 8
    return "set -euo pipefail\n" + "\n".join(blocks)


@pytest.mark.parametrize("tool", ["grpcurl", "buf"])
def test_the_page_can_be_pasted(service: Service, tmp_path: Path, tool: str) -> None:
    """Every command does what the page says, and nothing but the shown refusals is refused."""
    program = _tool(tool)
    service.data_dir.admin_token.write_text(service.admin_token)
    script = _script(tool).replace("127.0.0.1:50051", service.address)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / tool).symlink_to(program)

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # One of the tools writes key_id and the other keyId, with blanks or without.
    told = re.sub(r"[\s_]", "", done.stdout).lower()
    for expected in (
        "keybearer.v1.ApiKeyService",
        '"keyName":"firstadminkey"',
        '"name":"nightlybackup"',
        '"description":"thebuildserver"',
        '"state":"API_KEY_STATE_DISABLED"',
        '"outcome":"VALIDATION_OUTCOME_VALID"',
        '"outcome":"VALIDATION_OUTCOME_REVOKED"',
        '"revokedKeyIds":[',
        '"email":"robin@example.com"',
        '"name":"customer"',
        '"action":"AUDIT_ACTION_',
    ):
        assert expected.replace("_", "").lower() in told, expected
    refusals = {"grpcurl": "Code: ", "buf": '"code": "'}[tool]
    assert done.stderr.count(refusals) == 3, done.stderr


def test_the_page_names_both_tools_and_every_service() -> None:
    """A page that leaves a service out leaves its readers alone."""
    text = PAGE.read_text()
    for service in ("Account", "User", "ApiKey", "Token", "Audit"):
        assert f"call {service}Service/" in text
    assert {tool for tool, _ in _BLOCK.findall(text)} == {"", "grpcurl", "buf"}
