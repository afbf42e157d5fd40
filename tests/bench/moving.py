"""Measures `keybearer-server move` with very many keys, each with its event in the audit log.

    python tests/bench/moving.py --keys 1000000 --root DIR

The installation is made once in DIR and copied for each run. The database is one on this machine:
see `postgres_server`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import postgres_server
from bench.seed import installation
from fakes import SeededEntropy
from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.container import open_container
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.model import SubjectKind
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.storage import CHANGES_KEPT
from reliability.processes import SERVER, environment

_BATCH = 5_000


def logged_installation(root: Path, keys: int) -> Path:
    """Return a data directory in which every key has its event, and the last ones their change."""
    path, _, _ = installation(root, keys)
    done = path.with_name("logged")
    if not done.exists():
        container = open_container(DataDir(path), SystemClock(), SeededEntropy(2))
        account_id = container.installation.operator_account_id
        after, logged = "", 0
        while True:
            with container.mutations.begin_local() as mutation:
                found = mutation.tx.covered_rows("api_keys", after, _BATCH)
                for row in found:
                    after = str(row.columns["id"])
                    mutation.record(
                        AuditAction.API_KEY_CREATED,
                        account_id=account_id,
                        target_type=AuditTargetType.API_KEY,
                        target_id=after,
                    )
                    logged += 1
                    if logged > keys - CHANGES_KEPT:
                        mutation.invalidate(SubjectKind.KEY, after, account_id)
            if not found:
                break
        container.close()
        done.touch()
    return path


def main() -> None:
    """Move the installation, and print how long that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed-only", action="store_true", help="make the installation alone")
    options = parser.parse_args()
    origin = logged_installation(options.root, options.keys)
    if options.seed_only:
        return
    copy = options.root / "moving"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(origin, copy)
    size = sum(one.stat().st_size for one in copy.rglob("*") if one.is_file())
    url = postgres_server.new_database(is_empty=True)
    before = os.times()
    began = time.monotonic()
    subprocess.run(
        [sys.executable, *SERVER, "move", "--data-dir", str(copy), "--to", url.text],
        env=environment(),
        check=True,
    )
    took = time.monotonic() - began
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])
    sys.stdout.write(
        f"{options.keys:,} keys, {size / 1e6:,.0f} MB: {took:.1f} s,"
        f" of which {spent:.1f} s on the processor of the command\n"
    )
    postgres_server.drop_database(url)
    shutil.rmtree(copy)


if __name__ == "__main__":
    main()
